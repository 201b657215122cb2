"""Packed text with tokens masked (Devlin et al. 2019, section 3.1): anew in every epoch, the same ones in validation.

A piece of a document is put between [CLS] and [SEP] and packed as a language model's are. Which of its tokens are
masked is a pure function of (seed, epoch, row), whichever process makes the row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transformer_jax.data.batches import Batch, EvaluationBatch
from transformer_jax.data.packing import (
    PackedEpoch,
    PackedText,
    PackingConfig,
    Pieces,
    Rows,
    Stream,
    cut_documents,
    pack,
    places,
)
from transformer_jax.data.text import TextDataset
from transformer_jax.data.text_tokenizers import Marks, TextTokenizer, ids_with_mask, marks_of
from transformer_jax.data.tokenizers import BOS, PAD
from transformer_jax.data.wordpiece import PREFIX, WordPieceTokenizer
from transformer_jax.errors import UserError

ENDS = 2  # [CLS] and [SEP]
VALIDATION = (0x6D61736B, 0)  # the seed and epoch of validation's masks: those of every run


@dataclass(frozen=True)
class MaskingConfig:
    """What is hidden of a text.

    Attributes:
      rate: share of the tokens of a row that are to be predicted; at least one.
      mask_share, random_share: of those, how many become [MASK] and how many another token; the others stay.
      unit: "token", or "word": all tokens of a word or none.
    """

    rate: float
    mask_share: float
    random_share: float
    unit: Literal["token", "word"]

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UserError(f"masking.rate is {self.rate}: it must be above 0 and below 1")
        for name in ("mask_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"masking.{name} is {getattr(self, name)}: it must be from 0 to 1")
        if self.mask_share + self.random_share > 1:
            raise UserError(
                f"masking.mask_share={self.mask_share} and masking.random_share={self.random_share} are more than all: "
                "together they may be at most 1"
            )


class Masker:
    """Hides tokens of rows.

    Args:
      tokenizer: decides which tokens begin a word: those that begin with a space or a sign, and those after a sign.
    """

    def __init__(self, tokenizer: TextTokenizer, config: MaskingConfig):
        self._config, self.marks = config, marks_of(tokenizer)
        ids = np.arange(ids_with_mask(tokenizer))
        special = np.isin(ids, self.marks) | (ids <= BOS)
        self._ordinary = ids[~special]
        self._begins, self._ends = np.ones(len(ids), bool), np.ones(len(ids), bool)
        if config.unit == "word" and isinstance(tokenizer, WordPieceTokenizer):
            self._begins = np.asarray([not name.startswith(PREFIX) for name in tokenizer.names])
            self._ends[:] = False
        elif config.unit == "word":
            texts = tokenizer.decode(self._ordinary[:, None].tolist())
            in_word = lambda character: character.isalnum() or character == "\ufffd"  # a part of a character
            self._begins[self._ordinary] = [not (text and in_word(text[0])) for text in texts]
            self._ends[self._ordinary] = [
                bool(text) and not (in_word(text[-1]) or text[-1].isspace()) for text in texts
            ]

    def __call__(self, tokens: np.ndarray, seed: tuple[int, ...], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks rows int32[R, T] of the given numbers int[R].

        Returns: inputs int32[R, T], and targets int32[R, T]: the tokens to be predicted, PAD elsewhere.
        """
        config, (R, T) = self._config, tokens.shape
        drawn = np.zeros((R, 3, T), np.float32)
        for row, number in enumerate(numbers):
            drawn[row] = np.random.default_rng((*seed, int(number))).random((3, T), np.float32)
        chosen = self._choose(tokens, drawn[:, 0])
        targets = np.where(chosen, tokens, PAD).astype(np.int32)
        others = self._ordinary[(drawn[:, 2] * len(self._ordinary)).astype(np.int64)]
        masked = chosen & (drawn[:, 1] < config.mask_share)
        random = chosen & ~masked & (drawn[:, 1] < config.mask_share + config.random_share)
        inputs = np.where(masked, self.marks.mask, np.where(random, others, tokens)).astype(np.int32)
        return inputs, targets

    def _choose(self, tokens: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Which are to be predicted: the share of each row with the smallest numbers, those of a word being one."""
        columns = np.arange(tokens.shape[1])[None]
        ordinary = ~np.isin(tokens, (PAD, self.marks.first, self.marks.end))
        group = np.broadcast_to(columns, tokens.shape)
        if self._config.unit == "word":
            starts = self._begins[tokens]
            starts[:, 1:] |= self._ends[tokens[:, :-1]]
            group = np.maximum.accumulate(np.where(starts | ~ordinary, columns, 0), axis=1)
        count = ordinary.sum(axis=1)
        wanted = np.where(count, np.maximum(1, np.rint(self._config.rate * count)), 0).astype(np.int64)[:, None]
        order = np.argsort(np.where(ordinary, np.take_along_axis(drawn, group, 1), 2.0), axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.broadcast_to(columns, order.shape), axis=1)
        # A word that the last of the chosen tokens cuts is left out, or taken whole if it is the only one.
        of = lambda place: np.take_along_axis(group, np.take_along_axis(order, place, 1), 1)
        last, following = of(np.maximum(wanted - 1, 0)), of(np.minimum(wanted, tokens.shape[1] - 1))
        cut = (wanted < count[:, None]) & (last == following)
        alone = cut & (last == of(np.zeros_like(wanted)))
        return ordinary & (((rank < wanted) & ~(cut & (group == last))) | (alone & (group == last)))


def pack_between_marks(stream: Stream, length: int, rng: np.random.Generator) -> Rows:
    """Rows of pieces that have room for the marks around them; the ends of documents in the stream are left out."""
    pieces = cut_documents(stream.offsets[:-1], np.diff(stream.offsets) - 1, length - ENDS, rng)
    return pack(Pieces(pieces.start, pieces.length + ENDS, pieces.context), length, rng)


def fill_masked(
    stream: Stream, rows: Rows, chosen: np.ndarray, count: int, length: int, masker: Masker, seed: tuple[int, ...]
) -> Batch:
    """A batch int32[count, length] of the rows ``chosen`` and then of padding: "inputs" and "targets" as `Masker` gives
    them, and "segments", the number of the piece in its row from 1, 0 being padding."""
    source, within, piece, cell, segment = places(rows, chosen, length)
    marks: Marks = masker.marks
    tokens, segments = np.zeros((2, count, length), np.int32)
    ends = within == rows.pieces.length[piece] - 1
    tokens.reshape(-1)[cell] = np.where(within == 0, marks.first, np.where(ends, marks.end, stream.ids[source - 1]))
    segments.reshape(-1)[cell] = segment
    inputs, targets = masker(tokens, seed, np.arange(count) if not len(chosen) else chosen[0] + np.arange(count))
    return {"inputs": inputs, "targets": targets, "segments": segments}


class MaskedText(PackedText):
    """The training split of a text dataset as packed and masked batches of one shape."""

    def __init__(
        self, dataset: TextDataset, tokenizer: TextTokenizer, config: PackingConfig, masking: MaskingConfig, seed: int
    ):
        super().__init__(dataset, tokenizer, config, seed)
        self._masker = Masker(tokenizer, masking)

    def make_epoch(self, index: int) -> PackedEpoch:
        seed, length = (self._seed, index), self._config.length
        rows = pack_between_marks(self._stream, length, np.random.default_rng(seed))
        make = lambda chosen, count: fill_masked(self._stream, rows, chosen, count, length, self._masker, seed)
        return PackedEpoch(rows, self._config, make)


def masked_evaluation_batches(stream: Stream, config: PackingConfig, masker: Masker) -> Iterator[EvaluationBatch]:
    """All documents once, with masks that are always the same. The examples of a batch are its rows."""
    rows = pack_between_marks(stream, config.length, np.random.default_rng(VALIDATION))
    for first in range(0, len(rows), config.rows):
        chosen = np.arange(first, min(first + config.rows, len(rows)))
        examples = np.full(config.rows, -1, np.int64)
        examples[: len(chosen)] = chosen
        yield EvaluationBatch(
            fill_masked(stream, rows, chosen, config.rows, config.length, masker, VALIDATION), examples
        )
