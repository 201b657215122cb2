"""Labelled texts as batches of token ids: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP]."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transformer_jax.data.batches import ArraySpec, Batch, Batches, BatchSpec, EvaluationBatch
from transformer_jax.data.bucketing import (
    BatchingConfig,
    PlannedBatch,
    Shape,
    make_shape,
    one_a_row,
    plan_epoch,
    plan_shapes,
)
from transformer_jax.data.labelled import LabelledDataset, Text, label_ids
from transformer_jax.data.text_tokenizers import TextTokenizer, marks_of
from transformer_jax.data.tokenizers import PAD, Tokenizer
from transformer_jax.errors import UserError

UNLABELLED = -1
LEAST = 5  # tokens for [CLS] a [SEP] b [SEP]
SHORTEST = 32  # of the batches of an evaluation


@dataclass(frozen=True)
class LabelledBatchingConfig:
    """How texts become batches of few shapes: as in `BatchingConfig`, but longer texts are always cut."""

    tokens_per_batch: int
    num_shapes: int
    max_length: int
    rows_multiple: int

    def __post_init__(self) -> None:
        if self.max_length < LEAST:
            raise UserError(f"batching.max_length is {self.max_length}: beside its marks a text needs {LEAST} tokens")
        assert self.buckets  # which raises what is wrong with the others

    @property
    def buckets(self) -> BatchingConfig:
        return BatchingConfig(self.tokens_per_batch, self.num_shapes, self.max_length, "truncate", self.rows_multiple)


class EncodedText(NamedTuple):
    """One example.

    Attributes:
      ids: [CLS], the tokens, [SEP].
      second: how many of ``ids`` are of the second text, its [SEP] included.
      words: for each of the words that there was room for, the place of its first token in ``ids``.
    """

    ids: list[int]
    second: int
    words: list[int]


class TextEncoder:
    """Texts to ids, cut to at most ``max_length``; of a pair the longer one first."""

    def __init__(self, tokenizer: TextTokenizer | Tokenizer, max_length: int, words: bool):
        self._tokenizer, self._max_length, self._words = tokenizer, max_length, words

    def __call__(self, texts: Sequence[Text]) -> list[EncodedText]:
        return [self._one_by_words(text) for text in texts] if self._words else self._whole(texts)

    def _whole(self, texts: Sequence[Text]) -> list[EncodedText]:
        marks = marks_of(self._tokenizer)
        rows = iter(self._tokenizer.encode([part for text in texts for part in text]))
        found = []
        for text in texts:
            first, second = next(rows), next(rows) if len(text) == 2 else None
            room = self._max_length - 2 - (second is not None)
            while len(first) + len(second or ()) > room:
                (first if second is None or len(first) > len(second) else second).pop()
            tail = [] if second is None else [*second, marks.end]
            found.append(EncodedText([marks.first, *first, marks.end, *tail], len(tail), []))
        return found

    def _one_by_words(self, words: Text) -> EncodedText:
        """Words with a space before each but the first; those that do not fit whole are left out."""
        marks = marks_of(self._tokenizer)
        ids, places = [marks.first], []
        for pieces in self._tokenizer.encode([f" {word}" if i else word for i, word in enumerate(words)]):
            if len(ids) + len(pieces) + 1 > self._max_length:
                break
            places.append(len(ids))
            ids += pieces
        return EncodedText([*ids, marks.end], 0, places)


def lengths_of(encoded: Sequence[EncodedText]) -> np.ndarray:
    """int64[N, 2], as bucketing takes them: an encoder has no second side."""
    return np.asarray([(len(one.ids), 1) for one in encoded], np.int64)


def fill_labelled(
    encoded: Sequence[EncodedText], labels: Sequence[Sequence[int]] | None, planned: PlannedBatch, words: bool
) -> Batch:
    """ "inputs" and "types" int32[rows, length], and "labels" int32[rows], or [rows, length] where words have them: at
    the first token of each. UNLABELLED is where none is asked for."""
    rows, length = planned.shape.rows, planned.shape.source_length
    inputs, types = np.full((rows, length), PAD, np.int32), np.zeros((rows, length), np.int32)
    wanted = np.full((rows, length) if words else rows, UNLABELLED, np.int32)
    for row, example in enumerate(planned.examples):
        one = encoded[example]
        inputs[row, : len(one.ids)] = one.ids
        types[row, len(one.ids) - one.second : len(one.ids)] = 1
        if labels is not None and words:
            wanted[row, one.words] = labels[example][: len(one.words)]
        elif labels is not None:
            wanted[row] = labels[example][0]
    return {"inputs": inputs, "types": types, "labels": wanted}


class LabelledEpoch:
    """One pass over the training examples."""

    def __init__(self, plan: list[PlannedBatch], fill: Callable[[PlannedBatch], Batch]):
        self._plan, self._fill = plan, fill

    def __len__(self) -> int:
        return len(self._plan)

    def batch(self, index: int, blocks: Sequence[int], count: int) -> Batch:
        parts = [self._fill(self._plan[index].block(block, count)) for block in blocks]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class LabelledBatches(Batches):
    """The training split, bucketed by length, ordered anew in every epoch."""

    counted = "inputs"

    def __init__(
        self, dataset: LabelledDataset, encoder: TextEncoder, config: LabelledBatchingConfig, words: bool, seed: int
    ):
        super().__init__()
        self._dataset, self._words, self._seed = dataset, words, seed
        train = dataset.splits["train"]
        self._encoded, self._labels = encoder(train.texts), label_ids(train, dataset.labels, "dataset.train")
        self._lengths = lengths_of(self._encoded)
        longest = int(self._lengths[:, 0].max())
        self.shapes = plan_shapes(self._lengths, (longest, 1), config.buckets)

    @property
    def specs(self) -> list[BatchSpec]:
        def spec(shape: Shape) -> BatchSpec:
            both = (shape.rows, shape.source_length)
            made = {"inputs": both, "types": both, "labels": both if self._words else both[:1]}
            return {name: ArraySpec(size, "int32") for name, size in made.items()}

        return [spec(shape) for shape in self.shapes]

    def make_epoch(self, index: int) -> LabelledEpoch:
        plan = plan_epoch(self._lengths, self.shapes, np.random.default_rng((self._seed, index)))
        return LabelledEpoch(plan, lambda one: fill_labelled(self._encoded, self._labels, one, self._words))

    def describe(self) -> str:
        cells = [len(one.ids) for one in self._encoded]
        shapes = ", ".join(f"{shape.rows} x {shape.source_length}" for shape in self.shapes)
        counts = ", ".join(f"{split} {len(labelled):,}" for split, labelled in self._dataset.splits.items())
        labels = self._dataset.labels
        return "\n".join(
            [
                f"examples       {counts}",
                f"labels         {len(labels)}: {', '.join(labels[:12])}{', ...' if len(labels) > 12 else ''}",
                f"tokens         {sum(cells):,} in training, {np.mean(cells):.1f} an example, at most {max(cells)}",
                f"batches        {len(self.epoch(0)):,} an epoch, of rows x tokens: {shapes}",
            ]
        )


def labelled_batches(
    encoded: Sequence[EncodedText], labels: Sequence[Sequence[int]] | None, config: LabelledBatchingConfig, words: bool
) -> Iterator[EvaluationBatch]:
    """All examples once, of like lengths together, in batches of a few lengths: powers of two, and the longest."""
    lengths = lengths_of(encoded)[:, 0]
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        size = SHORTEST
        while size < lengths[order[start]]:
            size *= 2
        shape = make_shape(min(size, config.max_length), 1, config.buckets)
        fitting = int(np.searchsorted(lengths[order], shape.source_length, side="right"))
        chosen = order[start : min(start + shape.rows, fitting)]
        examples = np.full(shape.rows, -1, np.int64)
        examples[: len(chosen)] = chosen
        yield EvaluationBatch(fill_labelled(encoded, labels, one_a_row(shape, chosen), words), examples)
        start += len(chosen)
