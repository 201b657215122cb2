"""Sentence pairs as token ids in flat arrays: memory-mapped from the cache, or drawn anew each epoch."""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece

from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.datasets import Dataset
from transformer_jax.data.tokenizers import EOS, PAD, Tokenizer, TokenizerPair

FORMAT = 1
CHUNK = 50_000  # texts encoded at a time: bounds the memory that Python's lists of ids take


class Encoded(NamedTuple):
    """The ids of N texts, without EOS.

    Attributes:
      ids: uint16 or int32[total + 1]: all texts one after another, then one PAD.
      offsets: int64[N + 1]: text i is ids[offsets[i] : offsets[i + 1]].
    """

    ids: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64[N]: tokens of each text, EOS included."""
        return np.diff(self.offsets) + 1

    def fill(self, examples: np.ndarray, bounds: np.ndarray, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Texts side by side in rows, each cut to a row's length and ended by EOS; the rest is PAD.

        Args: row r has the texts ``examples[bounds[r] : bounds[r + 1]]``, at least one; they fit.
        Returns: tokens int32[rows, length], and the number of each one's text in its row from 1, 0 for padding.
        """
        sizes = np.minimum(self.offsets[examples + 1] - self.offsets[examples] + 1, length)
        begins, per_row = np.cumsum(sizes) - sizes, np.diff(bounds)
        row = np.repeat(np.arange(len(per_row)), per_row)
        cells = row * length + begins - begins[bounds[row]]  # of first tokens, in the flat batch
        within = np.arange(sizes.sum()) - np.repeat(begins, sizes)
        spread = lambda values: np.repeat(values, sizes)
        ids = np.where(within == spread(sizes - 1), EOS, self.ids[spread(self.offsets[examples]) + within])
        filled = [np.full((rows, length), PAD, np.int32), np.zeros((rows, length), np.int32)]
        for array, values in zip(filled, (ids, spread(np.arange(len(row)) - bounds[row] + 1)), strict=True):
            array.reshape(-1)[spread(cells) + within] = values
        return filled[0], filled[1]


class EncodedPairs(NamedTuple):
    """Both sides of N sentence pairs."""

    source: Encoded
    target: Encoded

    @property
    def lengths(self) -> np.ndarray:
        """int64[N, 2]: source and target tokens, EOS included."""
        return np.stack([self.source.lengths, self.target.lengths], axis=1)


def _flatten(
    texts: Sequence[str], tokenizer: Tokenizer, encode: Callable[[Sequence[str], int], list[list[int]]]
) -> Encoded:
    """Calls encode(chunk, index of the chunk) for all of `texts`."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32
    ids, lengths = [], [np.zeros(1, np.int64)]
    for index, start in enumerate(range(0, len(texts), CHUNK)):
        rows = encode(texts[start : start + CHUNK], index)
        sizes = np.fromiter(map(len, rows), np.int64, len(rows))
        lengths.append(sizes)
        ids.append(np.fromiter(itertools.chain.from_iterable(rows), dtype, int(sizes.sum())))
    return Encoded(np.concatenate([*ids, np.array([PAD], dtype)]), np.concatenate(lengths).cumsum())


def encode_pairs(texts: tuple[Sequence[str], Sequence[str]], tokenizers: TokenizerPair) -> EncodedPairs:
    """Encodes (sources, targets)."""

    def side(index: int, tokenizer: Tokenizer) -> Encoded:
        return _flatten(texts[index], tokenizer, lambda chunk, _: tokenizer.encode(chunk))

    return EncodedPairs(side(0, tokenizers.source), side(1, tokenizers.target))


def sample_pairs(
    texts: tuple[Sequence[str], Sequence[str]], tokenizers: TokenizerPair, seed: Sequence[int]
) -> EncodedPairs:
    """Encodes (sources, targets) with segmentations drawn at random: a pure function of the arguments."""

    def side(index: int, tokenizer: Tokenizer) -> Encoded:
        draw = lambda chunk, number: tokenizer.sample(
            chunk, int(np.random.SeedSequence([*seed, index, number]).generate_state(1)[0])
        )
        return _flatten(texts[index], tokenizer, draw)

    return EncodedPairs(side(0, tokenizers.source), side(1, tokenizers.target))


def cached_pairs(dataset: Dataset, split: str, tokenizers: TokenizerPair) -> EncodedPairs:
    """Encodes a split without sampling, once for all runs that share the cache; memory-mapped from there."""
    key = json.dumps([FORMAT, sentencepiece.__version__, dataset.digest, split, tokenizers.digest])
    directory = cache_directory() / "encoded" / hashlib.sha256(key.encode()).hexdigest()
    with exclusive(f"encoded-{directory.name}"):
        if not directory.exists():
            pairs = encode_pairs(dataset.splits[split].texts(), tokenizers)
            directory.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
                new = Path(folder) / "new"
                new.mkdir()
                for side, encoded in zip(pairs._fields, pairs, strict=True):
                    for name, array in zip(encoded._fields, encoded, strict=True):
                        np.save(new / f"{side}_{name}.npy", array)
                os.rename(new, directory)
    # A plain view of the mapped file: indexing the memmap class itself is several times slower.
    load = lambda name: np.asarray(np.load(directory / f"{name}.npy", mmap_mode="r"))
    return EncodedPairs(*(Encoded(load(f"{side}_ids"), load(f"{side}_offsets")) for side in EncodedPairs._fields))
