"""Which shapes batches have, and which examples go into which batch, alone in a row or with others.

Both are plain functions of the examples' lengths and a random generator; text and tokens play no part.
Lengths count tokens including EOS; `lengths` is int[N, 2] everywhere, source then target.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from transformer_jax.data.packing import pack_sizes
from transformer_jax.errors import UserError

OVERLONG = ("drop", "truncate")
# What a target position costs, in source positions: it has cross-attention and the vocabulary's logits too.
# By multiplications, 3.0 in Transformer-Tiny with 10,000 pieces, 1.9 in Transformer-base with 37,000.
TARGET_COST = 3


@dataclass(frozen=True)
class BatchingConfig:
    """How examples become batches of few shapes.

    Attributes:
      tokens_per_batch: padded positions of the longer side that a batch holds: rows × max(S, T) comes as
        close to it from below as `rows_multiple` allows.
      num_shapes: most shapes (rows, S, T) that batches may have; each costs a compilation of the train step.
      max_length: longest source or target in tokens, EOS included.
      overlong: what happens to longer training examples: `drop` leaves them out, `truncate` cuts them; both
        are counted and reported.
      rows_multiple: rows of every batch are a multiple of this, so that devices and processes divide them.
      packed_length: pairs of at most so many tokens on both sides share rows of that length, so that little is
        padding and two shapes do; longer pairs have rows of their own. 0: every pair has its own.
    """

    tokens_per_batch: int
    num_shapes: int
    max_length: int
    overlong: str
    rows_multiple: int
    packed_length: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("tokens_per_batch", 1),
            ("num_shapes", 1),
            ("max_length", 2),
            ("rows_multiple", 1),
            ("packed_length", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"batching.{name} is {getattr(self, name)}: it must be at least {least}")
        if self.overlong not in OVERLONG:
            raise UserError(f"batching.overlong is {self.overlong!r}: choose one of {', '.join(OVERLONG)}")
        if self.packed_length > self.max_length:
            raise UserError(
                f"batching.packed_length is {self.packed_length}: it may be at most batching.max_length = "
                f"{self.max_length}"
            )
        if self.packed_length and self.num_shapes < 2:
            raise UserError(
                f"batching.num_shapes is {self.num_shapes}: with batching.packed_length it must be at least 2, as "
                "pairs that are too long to share rows have a shape of their own"
            )
        if self.rows_multiple * self.max_length > self.tokens_per_batch:
            raise UserError(
                f"batching.tokens_per_batch is {self.tokens_per_batch}, too few for batching.rows_multiple = "
                f"{self.rows_multiple} rows of batching.max_length = {self.max_length} tokens: set it to at "
                f"least {self.rows_multiple * self.max_length}, or lower max_length"
            )


class Shape(NamedTuple):
    """Shape of a batch: source is int32[rows, source_length], target int32[rows, target_length]. If it is packed, a row
    may hold several examples.
    """

    rows: int
    source_length: int
    target_length: int
    packed: bool = False

    @property
    def lengths(self) -> tuple[int, int]:
        return self.source_length, self.target_length

    @property
    def row_cost(self) -> int:
        """What a row costs to compute, in source positions."""
        return self.source_length + TARGET_COST * self.target_length


class PlannedBatch(NamedTuple):
    """One batch before its tokens are filled in: row r holds ``examples[bounds[r] : bounds[r + 1]]``, in an unpacked
    shape one; rows beyond the last are padding.
    """

    shape: Shape
    examples: np.ndarray  # int64
    bounds: np.ndarray  # int64[<= rows + 1]

    def block(self, index: int, count: int) -> "PlannedBatch":
        """One of the ``count`` equal blocks of its rows."""
        rows = self.shape.rows // count
        some = self.bounds[min(index * rows, len(self.bounds) - 1) :][: rows + 1]
        return PlannedBatch(self.shape._replace(rows=rows), self.examples[some[0] : some[-1]], some - some[0])


def one_a_row(shape: Shape, examples: np.ndarray) -> PlannedBatch:
    return PlannedBatch(shape, examples, np.arange(len(examples) + 1))


def make_shape(source_length: int, target_length: int, config: BatchingConfig, packed: bool = False) -> Shape:
    """The shape of these lengths with as many rows as the token budget allows, at least `rows_multiple`."""
    multiple = config.rows_multiple
    rows = config.tokens_per_batch // max(source_length, target_length) // multiple * multiple
    return Shape(max(rows, multiple), source_length, target_length, packed)


def plan_shapes(lengths: np.ndarray, largest: tuple[int, int], config: BatchingConfig) -> list[Shape]:
    """Chooses at most `num_shapes` shapes that waste the least work on padding, cheapest first.

    An example costs as much as a row of the cheapest shape that holds it. Shapes are added one at a time,
    then each is moved in turn to its best place given the others, until none moves: each move is exact, by
    cumulative sums over the table of lengths. Of the resulting lists of 1, 2, ... shapes, the one whose
    planned epoch costs least is taken: with little data, partly filled batches cost more than padding.

    With `packed_length` the first shape is the packed one, and the others are for what is longer.

    Args:
      lengths: int[N, 2], none above `largest`.
      largest: (source, target) lengths of the largest shape, which holds every example.
    """
    if config.packed_length:
        packed = make_shape(config.packed_length, config.packed_length, config, packed=True)
        rest = replace(config, packed_length=0, num_shapes=config.num_shapes - 1)
        longer = lengths[~_fits(lengths, packed)]
        return [packed, *(plan_shapes(longer, largest, rest) if max(largest) > config.packed_length else [])]
    table = np.zeros((largest[0] + 1, largest[1] + 1), np.int64)
    np.add.at(table, (lengths[:, 0], lengths[:, 1]), 1)
    sizes = [largest]  # sizes[0] stays: every example must fit somewhere
    candidates = []
    while True:
        shapes = sorted({make_shape(*size, config) for size in sizes}, key=lambda shape: shape.row_cost)
        batches = plan_epoch(lengths, shapes, np.random.default_rng(0))
        candidates.append((sum(batch.shape.rows * batch.shape.row_cost for batch in batches), shapes))
        another = _best_size(table, sizes)
        if len(sizes) == config.num_shapes or another is None:
            return min(candidates, key=lambda candidate: candidate[0])[1]
        sizes = _settle(table, [*sizes, another])


def _settle(table: np.ndarray, sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Moves each size but the first to its best place given the others, until nothing moves."""
    total = lambda some: int((table * _cost_of_each(table, some)).sum())
    moved = True
    while moved:
        moved = False
        for k in range(1, len(sizes)):
            others = sizes[:k] + sizes[k + 1 :]
            best = _best_size(table, others)
            if best and total([*others, best]) < total(sizes):
                sizes, moved = [*sizes[:k], best, *sizes[k + 1 :]], True
    return sizes


def _cost_of_each(table: np.ndarray, sizes: list[tuple[int, int]]) -> np.ndarray:
    """For each (source, target) length: the cost of a row of the cheapest size that holds it."""
    costs = np.zeros(table.shape, np.int64)
    for source, target in sorted(sizes, key=lambda size: Shape(1, *size).row_cost, reverse=True):
        costs[: source + 1, : target + 1] = Shape(1, source, target).row_cost
    return costs


def _best_size(table: np.ndarray, others: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The size that saves most when added to `others`; None if none saves anything."""
    costs = _cost_of_each(table, others)
    own = np.add.outer(np.arange(table.shape[0]), TARGET_COST * np.arange(table.shape[1]))
    saved = np.zeros(table.shape, np.int64)
    for cost in np.unique(costs):
        # How many examples within each (S, T) have this cost now.
        held = np.where(costs == cost, table, 0).cumsum(0).cumsum(1)
        saved += held * np.maximum(cost - own, 0)
    source, target = np.unravel_index(saved.argmax(), saved.shape)
    return (int(source), int(target)) if saved.any() else None


def plan_epoch(lengths: np.ndarray, shapes: list[Shape], rng: np.random.Generator) -> list[PlannedBatch]:
    """Puts every example into exactly one batch; examples, their company and the batches in random order.

    An example goes to the cheapest shape that holds it. What does not fill a batch there goes on to the next
    shape that holds it, so only the last shape has a batch with empty rows, and the last batch of the packed one.

    Args:
      lengths: int[N, 2]; every row fits the last shape.
      shapes: cheapest first, as `plan_shapes` returns them.
    """
    assigned = np.full(len(lengths), -1, np.int32)
    for k in reversed(range(len(shapes))):
        assigned[_fits(lengths, shapes[k])] = k
    if (assigned < 0).any():
        raise ValueError(f"{int((assigned < 0).sum())} examples are longer than the last shape {shapes[-1]}")
    batches = []
    for k, shape in enumerate(shapes):
        if shape.packed:
            members = np.flatnonzero(assigned == k)
            order, bounds = pack_sizes(lengths[members], shape.lengths, rng)
            for first in range(0, len(bounds) - 1, shape.rows):
                some = bounds[first : first + shape.rows + 1]
                batches.append(PlannedBatch(shape, members[order[some[0] : some[-1]]], some - some[0]))
            continue
        members = rng.permutation(np.flatnonzero(assigned == k))
        full = len(members) // shape.rows * shape.rows
        batches += [one_a_row(shape, rows) for rows in members[:full].reshape(-1, shape.rows)]
        rest = members[full:]
        for larger in reversed(range(k + 1, len(shapes))):
            assigned[rest[_fits(lengths[rest], shapes[larger])]] = larger
        stuck = rest[assigned[rest] == k]
        if len(stuck):
            batches.append(one_a_row(shape, stuck))
    return [batches[i] for i in rng.permutation(len(batches))]


def _fits(lengths: np.ndarray, shape: Shape) -> np.ndarray:
    return (lengths[:, 0] <= shape.source_length) & (lengths[:, 1] <= shape.target_length)
