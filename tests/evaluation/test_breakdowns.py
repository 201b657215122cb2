"""Breakdowns by length, by frequency, by sentence."""

from collections import Counter

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from transformer_jax.evaluation.breakdowns import FREQUENCIES, length_bins, sentence_changes, word_f1
from transformer_jax.evaluation.significance import sentence_statistics


@pytest.mark.parametrize("lengths", [[3] * 9, [1, 2], range(1, 40), [5] * 50 + [6, 30]])
def test_every_length_is_in_exactly_one_bin(lengths):
    bins = length_bins(np.asarray(lengths))
    assert 1 <= len(bins) <= 5
    for length in lengths:
        assert sum(low <= length <= high for low, high in bins) == 1


def test_f1_of_words_by_frequency():
    frequency = Counter({"the": 2000, "dog": 50})
    rows = word_f1(["the dog", "the the dog"], ["the cat", "the dog ."], frequency)
    found = {FREQUENCIES[k][0]: row for k, row in enumerate(rows)}
    assert found[1000] == (pytest.approx(200 * 2 / (3 + 2)), 2)  # "the": a second one is no match
    assert found[10] == (pytest.approx(200 * 1 / (2 + 1)), 1)
    assert found[0] == (pytest.approx(0.0), 2)  # "cat" and "." were never seen
    assert found[100] == (None, 0)


def test_sentence_changes_are_mean_sentence_chrf():
    references = ["a dog runs", "two men cook"]
    new, old = [["a dog runs", "two"], ["a dog", "two"]], [["a cat", "two men cook"]]
    statistics = [sentence_statistics(CHRF(references=[references]), side) for side in (new, old)]
    score = lambda line, reference: CHRF().corpus_score([line], [[reference]]).score
    first = (score("a dog runs", references[0]) + score("a dog", references[0])) / 2 - score("a cat", references[0])
    found = sentence_changes(*statistics)
    assert found[0] == pytest.approx(first)
    assert found[0] > 0 > found[1]
