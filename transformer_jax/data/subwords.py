"""Random segmentation of words into subwords: BPE-dropout, and sampling from a unigram model.

SentencePiece has both, but draws them from a generator that no seed makes repeatable from one process to the
next. Its pieces never cross white space, so what is done here for words is the same as for whole sentences.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import sentencepiece

SPACE = "▁"  # how SentencePiece writes the white space that begins a word
NBEST = 64  # segmentations of a word that unigram sampling chooses from (Kudo 2018 does so for a whole sentence)
BLOCK = 20_000  # words whose merges are simulated at a time
MOST_KNOWN = 200_000  # words whose segmentations are remembered: about 2 KB each


class Drawn(NamedTuple):
    """Segmentations of W words: ids int64[total] one after another, and lengths int64[W]."""

    ids: np.ndarray
    lengths: np.ndarray


class WordSampler(Protocol):
    """Segments words at random."""

    def draw(self, types: Sequence[str], words: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Segments each of `types[words[0]], types[words[1]], ...` independently; `words` is int64[W]."""


def _ragged(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(all rows one after another, the length of each)"""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter((i for row in rows for i in row), np.int64, int(lengths.sum())), lengths


def _pick(flat: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> Drawn:
    """Rows `rows` of the ragged array (flat, lengths)."""
    picked = lengths[rows]
    starts = (lengths.cumsum() - lengths)[rows]
    shift = starts - (picked.cumsum() - picked)
    return Drawn(flat[np.arange(picked.sum()) + np.repeat(shift, picked)], picked)


class BpeDropout:
    """BPE in which each possible merge is left out with some probability, drawn again at each step.

    Provilkov et al. 2020, algorithm 1.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, dropout: float):
        size = processor.get_piece_size()
        normal = [i for i in range(size) if not (processor.is_control(i) or processor.is_unknown(i))]
        self._ids = {processor.id_to_piece(i): i for i in normal}
        self._unknown, self._dropout = processor.unk_id(), dropout
        merges = []  # (left, right, merged): one symbol, its neighbour, and the piece they make
        for piece, merged in self._ids.items():
            splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
            merges += [(self._ids[a], self._ids[b], merged) for a, b in splits if a in self._ids and b in self._ids]
        table = np.array(sorted(merges), np.int64).reshape(-1, 3)
        # A pair that cannot merge finds another pair's key, or the sentinel behind the last one.
        self._keys, self._merged = table[:, 0] << 32 | table[:, 1], np.append(table[:, 2], -1)
        self._found_keys = np.append(self._keys, -2)
        # The best merge has the highest score; `size` stands for no merge.
        order = np.argsort([-processor.get_score(i) for i in range(size)], kind="stable")
        self._rank, self._by_rank, self._none = np.argsort(order), order, size

    def draw(self, types: Sequence[str], words: np.ndarray, rng: np.random.Generator) -> Drawn:
        symbols, sizes = _ragged([[self._ids.get(c, self._unknown) for c in SPACE + word] for word in types])
        lengths = np.zeros(len(words), np.int64)
        order = np.argsort(sizes[words], kind="stable")  # blocks of words of like length
        pieces = []
        for start in range(0, len(words), BLOCK):
            block = order[start : start + BLOCK]
            ids, lengths[block] = self._merge(*_pick(symbols, sizes, words[block]), rng)
            pieces.append(ids)
        place = np.argsort(order)
        return _pick(np.concatenate([np.zeros(0, np.int64), *pieces]), lengths[order], place)

    def _ranks(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        keys = left << 32 | right
        found = np.searchsorted(self._keys, keys)
        return np.where(self._found_keys[found] == keys, self._rank[self._merged[found]], self._none)

    def _merge(self, ids: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Merges words of single symbols until no merge is possible, or all possible ones are dropped."""
        columns = np.arange(lengths.max() + 1)  # at least one column behind each word, holding -1
        symbols = np.full((len(lengths), len(columns)), -1, np.int64)
        symbols[columns < lengths[:, None]] = ids
        ranks = self._ranks(symbols[:, :-1], symbols[:, 1:])  # of merging each symbol with the next
        active = np.arange(len(lengths))
        while len(active):
            drawn = ranks[active]
            drawn[rng.random(drawn.shape, np.float32) < self._dropout] = self._none
            at = drawn.argmin(axis=1)
            best = drawn[np.arange(len(at)), at]
            going = best < self._none
            active, at, best = active[going], at[going], best[going]
            rows = symbols[active]
            rows[:, :-1] = np.where(columns[:-1] > at[:, None], rows[:, 1:], rows[:, :-1])
            rows[np.arange(len(at)), at] = self._by_rank[best]
            symbols[active] = rows
            ranks[active] = self._ranks(rows[:, :-1], rows[:, 1:])
        kept = symbols >= 0
        unknown = symbols == self._unknown
        kept[:, 1:] &= ~(unknown[:, 1:] & unknown[:, :-1])  # SentencePiece makes one of several, too
        return Drawn(symbols[kept], kept.sum(axis=1))


class UnigramSampling:
    """Segmentations drawn from the unigram model, with probabilities to the power of alpha.

    Kudo 2018, section 3.2, among the `NBEST` most probable segmentations of each word.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, alpha: float):
        self._processor, self._alpha = processor, alpha
        self._scores = np.array([processor.get_score(i) for i in range(processor.get_piece_size())])
        self._known: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _segmentations(self, word: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids of all, one after another; lengths; weights, the best's being 1)"""
        if word not in self._known:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            ids, lengths = _ragged(self._processor.nbest_encode_as_ids(word, NBEST))
            scores = np.add.reduceat(self._scores[ids], lengths.cumsum() - lengths)
            self._known[word] = ids.astype(np.int32), lengths, np.exp(self._alpha * (scores - scores.max()))
        return self._known[word]

    def draw(self, types: Sequence[str], words: np.ndarray, rng: np.random.Generator) -> Drawn:
        segmentations = [self._segmentations(word) for word in types]
        ids, lengths, weights = (np.concatenate(part) for part in zip(*segmentations, strict=True))
        counts = np.fromiter((len(own) for _, own, _ in segmentations), np.int64, len(types))
        last = counts.cumsum() - 1
        ends = weights.cumsum()
        begins = (ends - weights)[last - counts + 1]
        drawn = rng.uniform(begins[words], ends[last][words])
        rows = np.searchsorted(ends, drawn, side="right")
        return _pick(ids, lengths, np.minimum(rows, last[words]))  # rounding must not lead to the next word
