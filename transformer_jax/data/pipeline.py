"""Endless training batches from a dataset: a pure function of (seed, epoch, batch), resumable at any batch.

Also the batches of an evaluation split, and the report of what was made of the data.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

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

Batch = dict[str, np.ndarray]  # {"source": int32[B, S], "target": int32[B, T]}
START = {"epoch": 0, "batch": 0}
HEADROOM = 1.1  # with subword sampling, how much longer than the longest seen example the largest shape is
STATISTICS = 100_000  # with subword sampling, most examples sampled to choose the shapes
_ORDER, _SAMPLING, _SHAPES = range(3)  # what random numbers are for; mixed into every seed


class Epoch:
    """One pass over the training split: its tokens, and its batches in order."""

    def __init__(self, pairs: EncodedPairs, shapes: list[Shape], config: BatchingConfig, rng: np.random.Generator):
        largest = shapes[-1][1:]
        lengths = pairs.lengths
        long = (lengths > largest).any(axis=1)
        kept = np.flatnonzero(~long) if config.overlong == "drop" else np.arange(len(lengths))
        self.dropped = len(lengths) - len(kept)
        self.truncated = int(long.sum()) - self.dropped
        self.lengths = np.minimum(lengths[kept], largest)
        self.pairs = pairs
        self.plan = [PlannedBatch(shape, kept[examples]) for shape, examples in plan_epoch(self.lengths, shapes, rng)]

    def __len__(self) -> int:
        return len(self.plan)

    def batch(self, index: int, shard_index: int, shard_count: int) -> Batch:
        """B / shard_count rows of batch `index`: the shards, one after another, are the whole batch."""
        shape, examples = self.plan[index]
        rows = shape.rows // shard_count
        return _assemble(self.pairs, Shape(rows, *shape[1:]), examples[shard_index * rows :][:rows])


def _assemble(pairs: EncodedPairs, shape: Shape, examples: np.ndarray) -> Batch:
    return {
        "source": pairs.source.fill(examples, shape.rows, shape.source_length),
        "target": pairs.target.fill(examples, shape.rows, shape.target_length),
    }


class Pipeline:
    """The training split as batches of a few shapes.

    Every epoch holds each example exactly once (but for dropped ones), in new company and order. With
    subword sampling each epoch has its own tokens, and its batches are planned from these; the shapes stay.

    Args:
      dataset: its split "train" is read.
      tokenizers: `tokenizers.config.sampling` switches subword sampling on.
      seed: of everything random here.

    Raises:
      UserError: no example is left to train on.
    """

    shapes: list[Shape]
    """All shapes that batches can have, at most `batching.num_shapes`; the last holds every example."""

    def __init__(self, dataset: Dataset, tokenizers: TokenizerPair, batching: BatchingConfig, seed: int):
        if "train" not in dataset.splits or not len(dataset.splits["train"]):
            raise UserError("the training split is empty: check the dataset's files and filters")
        if seed < 0:
            raise UserError(f"seed is {seed}: it must be 0 or more")
        self._tokenizers, self._batching, self._seed = tokenizers, batching, seed
        self._filters = {split: dict(counts) for split, counts in dataset.report.items()}
        self._epochs: dict[int, Epoch] = {}
        self._background: dict[int, threading.Thread] = {}
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

    def epoch(self, index: int) -> Epoch:
        """Epoch `index`, made on first use; the one after it is then made in the background."""
        if index in self._background:
            self._background.pop(index).join()
        if index not in self._epochs:
            self._make_epoch(index)
        following = index + 1
        if following not in self._epochs and following not in self._background:
            # A daemon, so that a program that wants to end does not wait for it. Should it fail, then so does
            # whoever asks for its epoch, in the lines above.
            thread = threading.Thread(target=self._make_epoch, args=(following,), daemon=True)
            self._background[following] = thread
            thread.start()
        for old in set(self._epochs) - {index, following}:
            del self._epochs[old]
        return self._epochs[index]

    def _make_epoch(self, index: int) -> None:
        if self._texts:
            pairs = sample_pairs(self._texts, self._tokenizers, (self._seed, _SAMPLING, index))
        else:
            pairs = self._pairs
        rng = np.random.default_rng((self._seed, _ORDER, index))
        self._epochs[index] = Epoch(pairs, self.shapes, self._batching, rng)

    def iterator(
        self, position: Mapping[str, int] = START, shard_index: int = 0, shard_count: int = 1
    ) -> "BatchIterator":
        """Batches from `position` on, for ever. See `BatchIterator`."""
        return BatchIterator(self, position, shard_index, shard_count)

    def report(self, epoch: int = 0) -> dict[str, Any]:
        """What the batches of an epoch are made of: counts, shapes, shares of padding and unknown tokens."""
        made = self.epoch(epoch)
        used = Counter(shape for shape, _ in made.plan)
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


class BatchIterator(Iterator[Batch]):
    """Endless batches, numpy int32, of which each process of a run can take its own rows.

    `position` is that of the batch to come: given to `Pipeline.iterator`, it continues exactly there, with
    any number of shards.

    Raises:
      UserError: the pipeline has no such position, or `shard_count` does not divide the rows of its batches.
    """

    def __init__(self, pipeline: Pipeline, position: Mapping[str, int], shard_index: int, shard_count: int):
        if set(position) != set(START) or min(position.values()) < 0:
            raise UserError(f"data position {dict(position)}: it must be like {START}, and not negative")
        if any(shape.rows % shard_count for shape in pipeline.shapes):
            raise UserError(
                f"{shard_count} processes cannot share batches of {[s.rows for s in pipeline.shapes]} rows: "
                f"set batching.rows_multiple to a multiple of {shard_count}"
            )
        self._pipeline, self._shard = pipeline, (shard_index, shard_count)
        batches = len(pipeline.epoch(position["epoch"]))
        if position["batch"] > batches:
            raise UserError(
                f"data position {dict(position)}: epoch {position['epoch']} has {batches} batches, so the "
                "position was saved with another dataset, tokenizer, seed or batching"
            )
        self._open(position["epoch"], position["batch"])

    def _open(self, epoch: int, batch: int) -> None:
        made = self._pipeline.epoch(epoch)
        if batch == len(made):
            return self._open(epoch + 1, 0)
        self._epoch, self._batch, self._batches = epoch, batch, len(made)
        plan = grain.MapDataset.range(batch, len(made)).map(lambda index: made.batch(int(index), *self._shard))
        # Everything is in memory: reading ahead in threads costs more than it saves.
        self._rest = iter(plan.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    @property
    def position(self) -> dict[str, int]:
        """Where the next batch is: plain numbers, for a checkpoint."""
        if self._batch == self._batches:
            return {"epoch": self._epoch + 1, "batch": 0}
        return {"epoch": self._epoch, "batch": self._batch}

    def __next__(self) -> Batch:
        if self._batch == self._batches:
            self._open(self._epoch + 1, 0)
        self._batch += 1
        return next(self._rest)


class EvaluationBatch(NamedTuple):
    """A batch, and the index in its split of each row's example: int64[rows], -1 for padding rows."""

    batch: Batch
    examples: np.ndarray


def validation_batches(
    pairs: PairSource, tokenizers: TokenizerPair, shapes: Sequence[Shape], batching: BatchingConfig
) -> list[EvaluationBatch]:
    """Every example of a split exactly once and whole, in the training shapes wherever they hold it.

    Examples longer than the last of `shapes` get shapes of their own: its lengths doubled until they fit.
    """
    encoded = encode_pairs(pairs.texts(), tokenizers)
    lengths = encoded.lengths
    doublings = np.ceil(np.log2(np.maximum(lengths / shapes[-1][1:], 1).max(axis=1))).astype(int)
    batches = []
    for doubling in np.unique(doublings):
        size = [length << int(doubling) for length in shapes[-1][1:]]
        group = np.flatnonzero(doublings == doubling)
        fitting = [make_shape(size[0], size[1], batching)] if doubling else list(shapes)
        for shape, members in plan_epoch(lengths[group], fitting, np.random.default_rng(0)):
            rows = np.full(shape.rows, -1, np.int64)
            rows[: len(members)] = group[members]
            batches.append(EvaluationBatch(_assemble(encoded, shape, group[members]), rows))
    return batches


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
        lines.append("               {:>4}  {:>6}  {:>6}  {:>7}".format(*numbers))
    return "\n".join(lines)
