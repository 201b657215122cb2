"""Where two systems differ: by the length of a sentence, by the frequency of a word, sentence by sentence."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

FREQUENCIES = ((0, 0), (1, 9), (10, 99), (100, 999), (1000, None))
"""Bins of a word's occurrences in training, both ends included."""
MOST_LENGTHS = 5
_tokenize = Tokenizer13a()


def words(line: str) -> list[str]:
    """Cased words and punctuation, as BLEU counts them (sacreBLEU's 13a)."""
    return _tokenize(line).split()


def length_bins(lengths: np.ndarray) -> list[tuple[int, int]]:
    """At most five ranges of lengths, both ends included, with about as many sentences in each.

    Args: lengths: int[N], at least one.
    """
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, MOST_LENGTHS + 1), method="lower"))
    if len(edges) == 1:
        return [(int(edges[0]), int(edges[0]))]
    starts = [int(edges[0]), *(int(edge) + 1 for edge in edges[1:-1])]
    return list(zip(starts, map(int, edges[1:]), strict=True))


def word_f1(
    outputs: Sequence[str], references: Sequence[str], frequency: Counter[str]
) -> list[tuple[float | None, int]]:
    """For each bin of `FREQUENCIES`: F1 of its words, 0 to 100, and how many the references have.

    A word is right as often as it stands in the reference of its sentence, as in BLEU's unigrams (the word accuracy
    of compare-mt, Neubig et al. 2019). None where neither side has such a word.
    """
    counts = np.zeros((len(FREQUENCIES), 3), np.int64)  # in outputs, in references, in both
    for output, reference in zip(outputs, references, strict=True):
        found, wanted = Counter(words(output)), Counter(words(reference))
        for k, bag in enumerate((found, wanted, found & wanted)):
            for word, times in bag.items():
                counts[_bin(frequency[word]), k] += times
    return [(200.0 * both / (f + w) if f + w else None, int(w)) for f, w, both in counts.tolist()]


def _bin(times: int) -> int:
    return next(k for k, (_, most) in enumerate(FREQUENCIES) if most is None or times <= most)


def sentence_changes(system: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Mean sentence chrF of a system less that of a baseline, float64[sentences].

    Args: system, baseline: chrF's statistics float64[seeds, sentences, K].
    """
    metric = CHRF()

    def mean(statistics: np.ndarray) -> np.ndarray:
        scores = [[metric._compute_score_from_stats(row).score for row in seed] for seed in statistics]
        return np.asarray(scores).mean(axis=0)

    return mean(system) - mean(baseline)
