"""Arrays as batches: each example once an epoch, in an order that follows from the seed, in blocks that fit."""

import numpy as np
import pytest

from transformer_jax.data.captions import caption_rows
from transformer_jax.data.images import ArrayBatches, array_batches
from transformer_jax.data.text_tokenizers import CharacterTokenizer
from transformer_jax.errors import UserError

ARRAYS = {"x": np.arange(10, dtype=np.int32) + 1, "y": np.arange(20, dtype=np.float32).reshape(10, 2)}


def batches(seed=0):
    return ArrayBatches(ARRAYS, 4, seed, "x", "ten")


def test_an_epoch_has_each_example_once_and_ends_in_rows_without_weight():
    epoch = batches().epoch(0)
    made = [epoch.batch(i, (0,), 1) for i in range(len(epoch))]
    weights = np.concatenate([batch["weights"] for batch in made])
    kept = np.concatenate([batch["x"] for batch in made])[weights > 0]
    assert sorted(kept) == ARRAYS["x"].tolist()
    assert weights.tolist() == [1] * 10 + [0] * 2
    assert all((batch["y"][:, 0] == 2 * (batch["x"] - 1)).all() for batch in made)
    other = np.concatenate([batches(1).epoch(0).batch(i, (0,), 1)["x"] for i in range(3)])
    later = np.concatenate([batches().epoch(1).batch(i, (0,), 1)["x"] for i in range(3)])
    assert kept.tolist() not in (other[:10].tolist(), later[:10].tolist())


def test_blocks_make_up_the_batch_and_positions_go_on():
    epoch = batches().epoch(0)
    for index in range(3):
        whole = epoch.batch(index, (0,), 1)
        parts = [epoch.batch(index, (block,), 4) for block in range(4)]
        for name, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
    made = batches()
    (spec,) = made.specs
    assert {name: (array.shape, array.dtype) for name, array in spec.items()} == {
        name: (value.shape, str(value.dtype)) for name, value in whole.items()
    }
    iterator = made.iterator()
    first = [next(iterator)["x"].tolist() for _ in range(5)]
    resumed = batches().iterator({"epoch": 0, "batch": 2})
    assert [next(resumed)["x"].tolist() for _ in range(3)] == first[2:]


def test_evaluation_is_in_order():
    made = array_batches(ARRAYS, 4)
    assert [batch.examples.tolist() for batch in made] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    np.testing.assert_array_equal(made[2].batch["weights"], [1, 1, 0, 0])


def test_captions_end_in_padding_of_their_own():
    letters = CharacterTokenizer("abc")
    rows = caption_rows(["ab", "", "cab"], letters, 4)
    a, b, c = 4, 5, 6
    assert rows.tolist() == [[a, b, 9, 10], [7, 8, 9, 10], [c, a, b, 10]]
    with pytest.raises(UserError, match=r"'abcab' has 5 tokens, model.text_length is 4"):
        caption_rows(["abcab"], letters, 4)
    with pytest.raises(UserError, match="'xyz' has characters that stand in no training caption"):
        caption_rows(["xyz"], letters, 4)
