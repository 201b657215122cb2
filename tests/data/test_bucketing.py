"""Bucketing: few shapes, little padding, every example once."""

from dataclasses import replace

import numpy as np
import pytest

from transformer_jax.data.bucketing import (
    TARGET_COST,
    BatchingConfig,
    Shape,
    make_shape,
    plan_epoch,
    plan_shapes,
)
from transformer_jax.errors import UserError

CONFIG = BatchingConfig(tokens_per_batch=512, num_shapes=4, max_length=40, overlong="drop", rows_multiple=4)


def made_lengths(count: int, seed: int = 0) -> np.ndarray:
    """int[count, 2]: like sentences, source and target correlated."""
    rng = np.random.default_rng(seed)
    source = rng.gamma(5, 2.5, count)
    return np.clip(np.stack([source, source + rng.normal(0, 2, count)], 1), 2, 40).astype(int)


def padded(lengths: np.ndarray, sizes: list[tuple[int, int]]) -> int:
    """Cost of all rows, each in the cheapest of the sizes that hold it, by trying them all."""
    cost = lambda source, target: source + TARGET_COST * target
    return sum(min(cost(*size) for size in sizes if size[0] >= s and size[1] >= t) for s, t in lengths)


@pytest.mark.parametrize("num_shapes", [1, 2, 5])
def test_shapes_are_few_hold_everything_and_keep_the_budget(num_shapes):
    lengths = made_lengths(3000)
    shapes = plan_shapes(lengths, (40, 40), replace(CONFIG, num_shapes=num_shapes))
    assert 1 <= len(shapes) <= num_shapes
    assert shapes[-1].lengths == (40, 40)
    for rows, source, target, packed in shapes:
        assert not packed
        assert rows % 4 == 0
        assert 512 - 4 * max(source, target) < rows * max(source, target) <= 512


def test_two_shapes_are_the_best_two():
    lengths = made_lengths(2000)
    shapes = plan_shapes(lengths, (40, 40), replace(CONFIG, num_shapes=2))
    table = np.unique(lengths, axis=0)
    tried = {(s, t) for s in np.unique(table[:, 0]) for t in np.unique(table[:, 1]) if 5 <= s <= 30 and abs(s - t) < 6}
    best = min(padded(lengths, [(40, 40), size]) for size in sorted(tried)[::3])
    assert padded(lengths, [shape.lengths for shape in shapes]) <= best


def test_more_shapes_waste_less():
    lengths = made_lengths(20_000)
    work = [
        padded(lengths, [s.lengths for s in plan_shapes(lengths, (40, 40), replace(CONFIG, num_shapes=n))])
        for n in (1, 2, 4, 8)
    ]
    assert work == sorted(work, reverse=True)
    assert work[3] < 1.17 * (lengths @ [1, TARGET_COST]).sum()


def test_little_data_gets_few_shapes():
    assert len(plan_shapes(made_lengths(30), (40, 40), replace(CONFIG, num_shapes=8, tokens_per_batch=4096))) <= 2


def test_examples_of_one_length_get_one_shape():
    assert plan_shapes(np.full((100, 2), 7), (7, 7), CONFIG) == [make_shape(7, 7, CONFIG)]


def test_every_example_is_in_one_batch_and_one_batch_is_partial():
    lengths = made_lengths(3001)
    shapes = plan_shapes(lengths, (40, 40), CONFIG)
    batches = plan_epoch(lengths, shapes, np.random.default_rng(1))
    assert sorted(np.concatenate([batch.examples for batch in batches])) == list(range(3001))
    assert sum(len(examples) < shape.rows for shape, examples, _ in batches) <= 1
    for shape, examples, bounds in batches:
        assert shape in shapes
        assert (lengths[examples] <= shape.lengths).all()
        assert list(bounds) == list(range(len(examples) + 1))


def test_packed_rows_hold_every_example_once_and_little_padding():
    lengths = made_lengths(3001)
    config = replace(CONFIG, packed_length=24, num_shapes=3)
    shapes = plan_shapes(lengths, (40, 40), config)
    assert len(shapes) <= 3
    assert shapes[0] == Shape(20, 24, 24, packed=True)
    assert not any(shape.packed for shape in shapes[1:])
    batches = plan_epoch(lengths, shapes, np.random.default_rng(1))
    assert sorted(np.concatenate([batch.examples for batch in batches])) == list(range(3001))
    packed = [batch for batch in batches if batch.shape.packed]
    for shape, examples, bounds in packed:
        assert len(bounds) <= shape.rows + 1
        assert (np.add.reduceat(lengths[examples], bounds[:-1]) <= shape.lengths).all()
    held = sum(lengths[batch.examples].sum() for batch in packed)
    assert held > 0.9 * sum(2 * 24 * batch.shape.rows for batch in packed)
    assert all((lengths[batch.examples] > 24).any(axis=1).all() for batch in batches if not batch.shape.packed)
    blocks = [packed[0].block(index, 4) for index in range(4)]
    assert [len(block.bounds) for block in blocks] == [6] * 4
    np.testing.assert_array_equal(np.concatenate([block.examples for block in blocks]), packed[0].examples)


def test_epochs_differ_in_order_and_company():
    lengths = made_lengths(2000)
    shapes = plan_shapes(lengths, (40, 40), CONFIG)
    plan = lambda seed: [set(batch.examples) for batch in plan_epoch(lengths, shapes, np.random.default_rng(seed))]
    assert plan(0) == plan(0)
    assert not set(map(frozenset, plan(0))) & set(map(frozenset, plan(1)))
    order = [batch.shape.row_cost for batch in plan_epoch(lengths, shapes, np.random.default_rng(0))]
    assert order != sorted(order)
    assert order != sorted(order, reverse=True)


def test_an_example_without_a_shape_is_an_error():
    with pytest.raises(ValueError, match="longer"):
        plan_epoch(np.array([[5, 5]]), [Shape(8, 4, 9)], np.random.default_rng(0))


def test_long_shapes_keep_at_least_the_multiple():
    assert make_shape(1000, 3, CONFIG).rows == 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokens_per_batch": 100}, "at least 160"),
        ({"num_shapes": 0}, "batching.num_shapes"),
        ({"max_length": 1}, "batching.max_length"),
        ({"rows_multiple": 0}, "batching.rows_multiple"),
        ({"overlong": "keep"}, "drop, truncate"),
        ({"packed_length": -1}, "batching.packed_length"),
        ({"packed_length": 41}, "at most batching.max_length = 40"),
        ({"packed_length": 8, "num_shapes": 1}, "at least 2"),
    ],
)
def test_impossible_values_are_named(change, named):
    with pytest.raises(UserError, match=named):
        replace(CONFIG, **change)
