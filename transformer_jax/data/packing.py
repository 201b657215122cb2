"""Documents as rows of one length: cut into pieces where they are longer, packed several to a row where shorter.

Everything here is NumPy on lengths and ids. A piece is a stretch of one document; a row holds whole pieces, each a
segment of its own, so that a model that masks other segments sees what it would see in rows of single pieces.
"""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import sentencepiece

from transformer_jax.data.batches import ArraySpec, Batch, Batches, BatchSpec, EvaluationBatch
from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.text_tokenizers import TextTokenizer, tokenizer_digest
from transformer_jax.data.tokenizers import BOS, EOS, PAD, UNK
from transformer_jax.errors import UserError

if TYPE_CHECKING:
    from transformer_jax.data.text import TextDataset

FORMAT = 1
CHUNK = 10_000  # documents encoded at a time
ARRAYS = ("inputs", "targets", "segments")


@dataclass(frozen=True)
class PackingConfig:
    """The shape of a batch, of which there is only one.

    Attributes:
      rows: sequences in a batch.
      length: tokens in each; longer documents are cut, shorter ones share rows.
    """

    rows: int
    length: int

    def __post_init__(self) -> None:
        for name in ("rows", "length"):
            if getattr(self, name) < 1:
                raise UserError(f"batching.{name} is {getattr(self, name)}: it must be at least 1")


class Stream(NamedTuple):
    """Documents one after another.

    Attributes:
      ids: uint16 or int32[total]: each document, ended by EOS.
      offsets: int64[N + 1]: document i is ids[offsets[i] : offsets[i + 1]].
      num_bytes: of all documents, as UTF-8.
    """

    ids: np.ndarray
    offsets: np.ndarray
    num_bytes: int


class Pieces(NamedTuple):
    """Stretches of a stream, one an element: ids[start : start + length]. The first ``context`` of them are not
    predicted, as another piece predicts them."""

    start: np.ndarray  # int64
    length: np.ndarray  # int64
    context: np.ndarray  # int64


class Rows(NamedTuple):
    """Pieces in rows of one length."""

    pieces: Pieces
    order: np.ndarray  # int64: pieces by row, and by place in it
    bounds: np.ndarray  # int64[rows + 1]: row r holds order[bounds[r] : bounds[r + 1]]

    def __len__(self) -> int:
        return len(self.bounds) - 1


def encode_documents(documents: Iterable[str], tokenizer: TextTokenizer) -> Stream:
    """All documents as ids, each with its EOS."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    parts, lengths, num_bytes, source = [], [np.zeros(1, np.int64)], 0, iter(documents)
    while texts := list(itertools.islice(source, CHUNK)):
        rows = tokenizer.encode(texts)
        lengths.append(np.fromiter((len(row) + 1 for row in rows), np.int64, len(rows)))
        parts.append(np.fromiter(itertools.chain.from_iterable((*row, EOS) for row in rows), dtype))
        num_bytes += sum(len(text.encode()) for text in texts)
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype)
    return Stream(ids, np.concatenate(lengths).cumsum(), num_bytes)


def cached_stream(dataset: "TextDataset", split: str, tokenizer: TextTokenizer) -> Stream:
    """A split encoded once for all runs that share the cache; memory-mapped from there."""
    key = json.dumps([FORMAT, sentencepiece.__version__, dataset.digest, split, tokenizer_digest(tokenizer)])
    directory = cache_directory() / "encoded" / f"text-{hashlib.sha256(key.encode()).hexdigest()}"
    with exclusive(f"encoded-{directory.name}"):
        if not directory.exists():
            stream = encode_documents(dataset.splits[split], tokenizer)
            directory.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
                new = Path(folder) / "new"
                new.mkdir()
                np.save(new / "ids.npy", stream.ids)
                np.save(new / "offsets.npy", stream.offsets)
                os.rename(new, directory)
    load = lambda name: np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r"))
    return Stream(load("ids"), load("offsets"), dataset.report[split]["bytes"])


def cut_documents(starts: np.ndarray, sizes: np.ndarray, length: int, rng: np.random.Generator) -> Pieces:
    """Each document, of sizes[i] tokens from starts[i] on, as pieces of at most ``length`` tokens; those of a longer
    one begin at a random offset, so that every epoch cuts it elsewhere."""
    first = np.where(sizes > length, rng.integers(1, length + 1, len(sizes)), sizes)
    counts = 1 + -(-(sizes - first) // length)
    document = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = np.where(number == 0, 0, first[document] + (number - 1) * length)
    end = np.minimum(first[document] + number * length, sizes[document])
    return Pieces(starts[document] + begin, end - begin, np.zeros(len(document), np.int64))


def sliding_windows(offsets: np.ndarray, length: int, stride: int) -> Pieces:
    """Windows that predict every token of every document exactly once, each but a document's first ``length`` with
    at least ``length - stride`` tokens before it in its window."""
    sizes = np.diff(offsets)
    counts = 1 + -(-np.maximum(sizes - length, 0) // stride)
    document = np.repeat(np.arange(len(sizes)), counts)
    begin = stride * (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts))
    end = np.minimum(begin + length, sizes[document])
    seen = np.where(begin == 0, 0, begin - stride + length)  # tokens of the document that earlier windows predict
    return Pieces(offsets[document] + begin, end - begin, seen - begin)


def pack(pieces: Pieces, length: int, rng: np.random.Generator) -> Rows:
    """Pieces in as few rows as best-fit decreasing finds: see `pack_sizes`."""
    return Rows(pieces, *pack_sizes(pieces.length[:, None], (length,), rng))


def pack_sizes(sizes: np.ndarray, room: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pieces in as few rows as best-fit decreasing finds, so that the sizes in each row sum to at most its room; pieces
    of one size are dealt out at random, and so are the rows.

    Works on counts of pieces and rows by size, not on single pieces (Krell et al. 2021, section 3.2).

    Args:
      sizes: int64[N, D], at least 1 and at most ``room``: such as the source and target tokens of a pair.
    Returns: the ``order`` and ``bounds`` of `Rows`.
    """
    shuffled = rng.permutation(len(sizes))
    # The largest first, by their sum; lexsort's last key is the first that counts.
    by_size = shuffled[np.lexsort((*-sizes[shuffled].T, -sizes[shuffled].sum(axis=1)))]
    kinds, counts = _runs(sizes[by_size])
    row_of = np.empty(len(sizes), np.int64)
    place_of = np.empty(len(sizes), np.int64)
    open_rows: dict[tuple[int, ...], list[np.ndarray]] = {}  # by room left: arrays of row numbers
    num_rows = taken = 0
    for size, count in zip(kinds, counts.tolist(), strict=True):
        while count:
            rooms = np.array([left for left, rows in open_rows.items() if rows]).reshape(-1, len(room))
            rooms = rooms[(rooms >= size).all(axis=1)]
            if len(rooms):
                left = rooms[np.lexsort((*rooms.T, rooms.sum(axis=1)))[0]]
                rows = open_rows[tuple(left.tolist())].pop()
            else:
                left = np.array(room)
                rows = np.arange(num_rows, num_rows - (-count // int((left // size).min())))
                num_rows += len(rows)
            # As many to a row as it has room for; one more row takes what is left, fewer than that.
            each = int((left // size).min())
            used = min(len(rows), -(-count // each))
            number = np.arange(min(count, used * each))
            members = by_size[taken : taken + len(number)]
            row_of[members], place_of[members] = rows[number // each], room[0] - left[0] + number % each * size[0]
            full = len(number) // each
            partly = len(number) - full * each
            for rest, those in (
                (left - each * size, rows[:full]),
                (left - partly * size, rows[full:used]),
                (left, rows[used:]),
            ):
                if rest.all() and len(those):
                    open_rows.setdefault(tuple(rest.tolist()), []).append(those)
            taken, count = taken + len(number), count - len(number)
    row_of = rng.permutation(num_rows)[row_of]
    order = np.lexsort((place_of, row_of))
    return order, np.searchsorted(row_of[order], np.arange(num_rows + 1))


def _runs(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of rows in which equal ones are neighbours: each once, and how many there are."""
    first = np.flatnonzero(np.r_[True, (rows[1:] != rows[:-1]).any(axis=1)][: len(rows)])
    return rows[first], np.diff(np.r_[first, len(rows)])


class Places(NamedTuple):
    """Where the tokens of a batch's pieces come from and go to, one a token; a row has its pieces side by side."""

    source: np.ndarray  # int64: in the stream, if a piece begins there with its first token
    within: np.ndarray  # int64: in its piece
    piece: np.ndarray  # int64: which piece
    cell: np.ndarray  # int64: in the flat batch
    segment: np.ndarray  # int64: of its row, from 1


def places(rows: Rows, chosen: np.ndarray, length: int) -> Places:
    """The places of all tokens of the rows ``chosen``."""
    per_row = rows.bounds[chosen + 1] - rows.bounds[chosen]
    row = np.repeat(np.arange(len(chosen)), per_row)
    segment = np.arange(len(row)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    piece = rows.order[np.repeat(rows.bounds[chosen], per_row) + segment]
    size = rows.pieces.length[piece]
    # Pieces lie side by side, so the places of a row's tokens are those of the row, counted up.
    ends = np.cumsum(size)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - size, size)
    row_start = (ends - size)[np.cumsum(per_row) - per_row]  # tokens before each row
    cell = np.repeat(row * length + (ends - size) - row_start[row], size) + within
    return Places(
        np.repeat(rows.pieces.start[piece], size) + within, within, np.repeat(piece, size), cell,
        np.repeat(segment + 1, size),
    )  # fmt: skip


def fill(stream: Stream, rows: Rows, chosen: np.ndarray, count: int, length: int) -> Batch:
    """A batch int32[count, length] of the rows ``chosen`` and then of padding.

    ``targets`` are the tokens of the pieces, PAD where nothing is predicted; ``inputs`` what comes before each, BOS
    before a document; ``segments`` number the pieces of a row from 1, 0 is padding.
    """
    source, within, piece, cell, segment = places(rows, chosen, length)
    batch = {name: np.zeros((count, length), np.int32) for name in ARRAYS}
    before = np.where(source > 0, stream.ids[source - 1], EOS)
    batch["inputs"].reshape(-1)[cell] = np.where(before == EOS, BOS, before)
    batch["targets"].reshape(-1)[cell] = np.where(within >= rows.pieces.context[piece], stream.ids[source], PAD)
    batch["segments"].reshape(-1)[cell] = segment
    return batch


class PackedEpoch:
    """One pass over the training documents. ``fill(chosen, count)`` makes a batch of the rows of these numbers."""

    def __init__(self, rows: Rows, config: PackingConfig, fill: Callable[[np.ndarray, int], Batch]):
        self.rows, self._config, self._fill = rows, config, fill

    def __len__(self) -> int:
        return -(-len(self.rows) // self._config.rows)

    def batch(self, index: int, blocks: Sequence[int], count: int) -> Batch:
        """As `Epoch.batch`; the last one ends in rows of padding."""
        share = self._config.rows // count

        def part(block: int) -> Batch:
            first = index * self._config.rows + block * share
            return self._fill(np.arange(first, max(first, min(first + share, len(self.rows)))), share)

        parts = [part(block) for block in blocks]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def packed_epoch(stream: Stream, config: PackingConfig, rng: np.random.Generator) -> PackedEpoch:
    """Documents for a language model, cut and packed anew."""
    rows = pack(cut_documents(stream.offsets[:-1], np.diff(stream.offsets), config.length, rng), config.length, rng)
    return PackedEpoch(rows, config, lambda chosen, count: fill(stream, rows, chosen, count, config.length))


class PackedText(Batches):
    """The training split of a text dataset as packed batches of one shape.

    Every epoch holds every token exactly once, cut, packed and ordered anew.
    """

    counted = "targets"

    def __init__(self, dataset: "TextDataset", tokenizer: TextTokenizer, config: PackingConfig, seed: int):
        super().__init__()
        self._report, self._config, self._seed = dataset.report, config, seed
        self._stream = cached_stream(dataset, "train", tokenizer)

    @property
    def specs(self) -> list[BatchSpec]:
        shape = (self._config.rows, self._config.length)
        return [{name: ArraySpec(shape, "int32") for name in ARRAYS}]

    def make_epoch(self, index: int) -> PackedEpoch:
        return packed_epoch(self._stream, self._config, np.random.default_rng((self._seed, index)))

    def describe(self) -> str:
        made = self.epoch(0)
        tokens, num_bytes = len(self._stream.ids), self._stream.num_bytes
        unknown = float((self._stream.ids == UNK).mean())
        cells = len(made) * self._config.rows * self._config.length
        lines = [
            f"{split:<14} {counts['documents']:,} documents, {counts['characters']:,} characters"
            for split, counts in self._report.items()
        ]
        lines += [
            f"tokens         {tokens:,} ({num_bytes / tokens:.2f} bytes each, unknown: {unknown:.3%})",
            f"batches        {len(made):,} an epoch, {self._config.rows} rows of {self._config.length} tokens",
            f"padding        {1 - tokens / cells:.1%} of all positions",
        ]
        return "\n".join(lines)


def evaluation_batches(stream: Stream, config: PackingConfig, stride: int) -> Iterator[EvaluationBatch]:
    """Batches that predict every token of a stream exactly once, in windows of ``config.length`` that advance by
    ``stride``. The examples of a batch are its rows.

    Raises: UserError unless 1 <= stride <= length.
    """
    if not 1 <= stride <= config.length:
        raise UserError(f"stride is {stride}; it must be at least 1 and at most the length of a row, {config.length}.")
    rows = pack(sliding_windows(stream.offsets, config.length, stride), config.length, np.random.default_rng(0))
    for first in range(0, len(rows), config.rows):
        chosen = np.arange(first, min(first + config.rows, len(rows)))
        examples = np.full(config.rows, -1, np.int64)
        examples[: len(chosen)] = chosen
        yield EvaluationBatch(fill(stream, rows, chosen, config.rows, config.length), examples)
