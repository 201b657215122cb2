"""Batches of sentence pairs: those of the training split, those of an evaluation split, and the report of what was
made of the data.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transformer_jax.data.batches import ArraySpec, Batch, Batches, BatchSpec, EvaluationBatch
from transformer_jax.data.bucketing import (
    BatchingConfig,
    PlannedBatch,
    Shape,
    make_shape,
    plan_epoch,
    plan_shapes,
)
from transformer_jax.data.datasets import Dataset, PairSource
from transformer_jax.data.encoded import EncodedPairs, cached_pairs, encode_pairs, sample_pairs
from transformer_jax.data.tokenizers import UNK, TokenizerPair
from transformer_jax.errors import UserError

SIDES = EncodedPairs._fields
HEADROOM = 1.1  # with subword sampling, how much longer than the longest seen example the largest shape is
STATISTICS = 100_000  # with subword sampling, most examples sampled to choose the shapes
_ORDER, _SAMPLING, _SHAPES = range(3)  # what random numbers are for; mixed into every seed


class PairEpoch:
    """One pass over the training split: its tokens, and its batches in order."""

    def __init__(self, pairs: EncodedPairs, shapes: list[Shape], config: BatchingConfig, rng: np.random.Generator):
        largest = shapes[-1].lengths
        lengths = pairs.lengths
        long = (lengths > largest).any(axis=1)
        kept = np.flatnonzero(~long) if config.overlong == "drop" else np.arange(len(lengths))
        self.dropped = len(lengths) - len(kept)
        self.truncated = int(long.sum()) - self.dropped
        self.lengths = np.minimum(lengths[kept], largest)
        self.pairs = pairs
        self.plan = [batch._replace(examples=kept[batch.examples]) for batch in plan_epoch(self.lengths, shapes, rng)]

    def __len__(self) -> int:
        return len(self.plan)

    def batch(self, index: int, blocks: Sequence[int], count: int) -> Batch:
        """As `Epoch.batch`: {"source": int32[B, S], "target": int32[B, T]}, and of packed shapes ``source_segments``
        and ``target_segments``: which pair of its row each token belongs to, from 1; 0 is padding.
        """
        parts = [_assemble(self.pairs, self.plan[index].block(block, count)) for block in blocks]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _assemble(pairs: EncodedPairs, planned: PlannedBatch) -> Batch:
    shape, examples, bounds = planned
    batch, segments = {}, {}
    for side, texts, length in zip(SIDES, pairs, shape.lengths, strict=True):
        batch[side], segments[f"{side}_segments"] = texts.fill(examples, bounds, shape.rows, length)
    return batch | segments if shape.packed else batch


class Pipeline(Batches):
    """The training split of sentence pairs as batches of a few shapes.

    Every epoch holds each example exactly once (but for dropped ones), in new company and order. With
    subword sampling each epoch has its own tokens, and its batches are planned from these; the shapes stay.

    Args:
      dataset: its split "train" is read.
      tokenizers: `tokenizers.config.sampling` switches subword sampling on.
      seed: of everything random here.

    Raises:
      UserError: no example is left to train on.
    """

    counted = "target"
    shapes: list[Shape]
    """All shapes that batches can have, at most `batching.num_shapes`; the last holds every example."""

    def __init__(self, dataset: Dataset, tokenizers: TokenizerPair, batching: BatchingConfig, seed: int):
        if "train" not in dataset.splits or not len(dataset.splits["train"]):
            raise UserError("the training split is empty: check the dataset's files and filters")
        if seed < 0:
            raise UserError(f"seed is {seed}: it must be 0 or more")
        self._tokenizers, self._batching, self._seed = tokenizers, batching, seed
        self._filters = {split: dict(counts) for split, counts in dataset.report.items()}
        super().__init__()
        self._texts: tuple[Sequence[str], Sequence[str]] | None = None
        if tokenizers.config.sampling:
            self._texts = dataset.splits["train"].texts()
            stride = -(-len(self._texts[0]) // STATISTICS)
            some = (self._texts[0][::stride], self._texts[1][::stride])
            lengths = sample_pairs(some, tokenizers, (seed, _SHAPES)).lengths
        else:
            self._pairs = cached_pairs(dataset, "train", tokenizers)
            lengths = self._pairs.lengths
        longest = batching.max_length
        if batching.overlong == "drop":
            lengths = lengths[(lengths <= longest).all(axis=1)]
        if not len(lengths):
            raise UserError(
                f"no training example has at most batching.max_length = {longest} tokens on both sides: "
                "raise it, or set batching.overlong to 'truncate'"
            )
        lengths = np.minimum(lengths, longest)
        headroom = HEADROOM if self._texts else 1
        largest = np.minimum(np.ceil(lengths.max(axis=0) * headroom), longest).astype(int)
        self.shapes = plan_shapes(lengths, (int(largest[0]), int(largest[1])), batching)

    @property
    def specs(self) -> list[BatchSpec]:
        def spec(shape: Shape) -> BatchSpec:
            lengths = zip(SIDES, shape.lengths, strict=True)
            sides = {side: ArraySpec((shape.rows, length), "int32") for side, length in lengths}
            return sides | ({f"{side}_segments": array for side, array in sides.items()} if shape.packed else {})

        return [spec(shape) for shape in self.shapes]

    def describe(self) -> str:
        return format_report(self.report())

    def make_epoch(self, index: int) -> PairEpoch:
        if self._texts:
            pairs = sample_pairs(self._texts, self._tokenizers, (self._seed, _SAMPLING, index))
        else:
            pairs = self._pairs
        rng = np.random.default_rng((self._seed, _ORDER, index))
        return PairEpoch(pairs, self.shapes, self._batching, rng)

    def report(self, epoch: int = 0) -> dict[str, Any]:
        """What the batches of an epoch are made of: counts, shapes, shares of padding and unknown tokens."""
        made: Any = self.epoch(epoch)
        used = Counter(batch.shape for batch in made.plan)
        cells = np.array([[s.rows * s.source_length * n, s.rows * s.target_length * n] for s, n in used.items()])
        tokens, cells = made.lengths.sum(axis=0), cells.sum(axis=0)
        waste = 1 - tokens / cells
        unknown = [float((side.ids[:-1] == UNK).mean()) if len(side.ids) > 1 else 0.0 for side in made.pairs]
        return {
            "examples": len(made.lengths),
            "dropped_overlong": made.dropped,
            "truncated": made.truncated,
            "source_tokens": int(tokens[0]),
            "target_tokens": int(tokens[1]),
            "batches": len(made),
            "shapes": [{**shape._asdict(), "batches": used[shape]} for shape in self.shapes],
            "padding": {
                "source": float(waste[0]),
                "target": float(waste[1]),
                "both": float(1 - tokens.sum() / cells.sum()),
            },
            "unknown": {"source": unknown[0], "target": unknown[1]},
            "filters": self._filters,
        }


def validation_batches(
    pairs: PairSource, tokenizers: TokenizerPair, shapes: Sequence[Shape], batching: BatchingConfig, longest: int
) -> tuple[list[EvaluationBatch], int]:
    """Every example of a split exactly once and whole, in the training shapes wherever they hold it.

    Examples longer than the last of `shapes` get shapes of their own: its lengths doubled until they fit. Those with
    a side of more than `longest` tokens, which the model does not take, are left out; the second result counts them.
    """
    encoded = encode_pairs(pairs.texts(), tokenizers)
    lengths = encoded.lengths
    taken = (lengths <= longest).all(axis=1)
    largest = shapes[-1].lengths
    doublings = np.ceil(np.log2(np.maximum(lengths / largest, 1).max(axis=1))).astype(int)
    batches = []
    for doubling in np.unique(doublings[taken]):
        size = [min(length << int(doubling), longest) for length in largest]
        group = np.flatnonzero(taken & (doublings == doubling))
        fitting = [make_shape(size[0], size[1], batching)] if doubling else [s._replace(packed=False) for s in shapes]
        for planned in plan_epoch(lengths[group], fitting, np.random.default_rng(0)):
            planned = planned._replace(examples=group[planned.examples])
            rows = np.full(planned.shape.rows, -1, np.int64)
            rows[: len(planned.examples)] = planned.examples
            batches.append(EvaluationBatch(_assemble(encoded, planned), rows))
    return batches, int(np.sum(~taken))


def format_report(report: Mapping[str, Any]) -> str:
    """The report as plain text, a few lines, for the start of a run."""
    padding, unknown = report["padding"], report["unknown"]
    lines = [
        f"examples       {report['examples']:,} ({report['dropped_overlong']:,} dropped as too long, "
        f"{report['truncated']:,} truncated)",
        f"tokens         {report['source_tokens']:,} source, {report['target_tokens']:,} target "
        f"(unknown: {unknown['source']:.3%} and {unknown['target']:.3%})",
        f"batches        {report['batches']:,} an epoch, "
        f"{report['target_tokens'] / report['batches']:,.0f} target tokens each",
        f"padding        {padding['both']:.1%} of all positions "
        f"(source {padding['source']:.1%}, target {padding['target']:.1%})",
    ]
    for name, counts in report["filters"].items():
        lines.append(f"{name:<14} " + ", ".join(f"{value:,} {key}" for key, value in counts.items()))
    lines.append("shapes         rows  source  target  batches")
    for shape in report["shapes"]:
        numbers = (shape["rows"], shape["source_length"], shape["target_length"], shape["batches"])
        packed = "  several pairs a row" if shape["packed"] else ""
        lines.append("               {:>4}  {:>6}  {:>6}  {:>7}".format(*numbers) + packed)
    return "\n".join(lines)
