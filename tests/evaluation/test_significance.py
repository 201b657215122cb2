"""Significance over sentences is sacreBLEU's own; over seeds it is Welch's; and the two are kept apart."""

import math
import random

import numpy as np
import pytest
import scipy.stats
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from transformer_jax.errors import UserError
from transformer_jax.evaluation.significance import (
    Perplexity,
    compare_metric,
    explain,
    score_of,
    sentence_statistics,
)

WORDS = ["a", "dog", "cat", "man", "woman", "runs", "sits", "in", "on", "the", "snow", "red", "blue", "house", "tree"]


def noisy(lines: list[str], rate: float, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) if rng.random() < rate else word for word in line.split()) for line in lines]


@pytest.fixture(scope="module")
def references() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in range(120)]


def test_of_single_runs_the_p_values_are_sacrebleus(references):
    outputs = noisy(references, 0.30, 1), noisy(references, 0.36, 2)
    found = compare_metric(
        "BLEU",
        BLEU(references=[references]),
        *(sentence_statistics(BLEU(references=[references]), [one]) for one in outputs),
    )
    for kind, samples, p in (("bs", 1000, found.bootstrap_p), ("ar", 10_000, found.randomisation_p)):
        systems = [("baseline", outputs[1]), ("system", outputs[0])]
        _, theirs = PairedTest(systems, {"BLEU": BLEU()}, [references], kind, samples)()
        assert p == pytest.approx(theirs["BLEU"][1].p_value, abs=1e-12)
    assert found.scores == [pytest.approx(BLEU().corpus_score(outputs[0], [references]).score)]
    assert found.seed_error is None
    assert found.welch_p is None
    assert found.interval is None
    assert "Seeds: unknown, a and b being one run" in " ".join(explain(found, "a", "b"))


@pytest.mark.parametrize("kind", [BLEU, CHRF], ids=["bleu", "chrf"])
def test_statistics_sum_to_the_score(references, kind):
    output, metric = noisy(references, 0.4, 3), kind(references=[references])
    statistics = sentence_statistics(metric, [output])[0]
    assert score_of(metric, statistics) == pytest.approx(kind().corpus_score(output, [references]).score)


def test_the_same_runs_several_times_are_no_more_evidence(references):
    """What concatenating the seeds' outputs gets wrong: copies of one run must not make it surer."""
    a, b = noisy(references, 0.30, 1), noisy(references, 0.35, 2)
    once, often = (
        compare_metric(
            "BLEU",
            BLEU(references=[references]),
            *(sentence_statistics(BLEU(references=[references]), [side] * copies) for side in (a, b)),
        )
        for copies in (1, 5)
    )
    assert often.bootstrap_p == pytest.approx(once.bootstrap_p, abs=0.002)
    assert often.randomisation_p == pytest.approx(once.randomisation_p, abs=0.002)
    assert often.test_set_error == pytest.approx(once.test_set_error)
    assert often.seed_error == 0.0
    assert often.welch_p is None


def test_variance_of_seeds_is_told_from_that_of_the_test_set(references):
    same_quality = [[noisy(references, 0.3, 10 * side + seed) for seed in range(4)] for side in (1, 2)]
    quiet = compare_metric(
        "BLEU",
        BLEU(references=[references]),
        *(sentence_statistics(BLEU(references=[references]), s) for s in same_quality),
    )
    rates = ((0.1, 0.3, 0.5, 0.2), (0.4, 0.2, 0.6, 0.3))
    wild_outputs = [[noisy(references, rate, 7) for rate in side] for side in rates]
    wild = compare_metric(
        "BLEU",
        BLEU(references=[references]),
        *(sentence_statistics(BLEU(references=[references]), s) for s in wild_outputs),
    )
    assert wild.seed_share > 0.9 > quiet.seed_share
    assert wild.bootstrap_p < 0.01 < 0.1 < wild.welch_p  # sure of the sentences, not of the seeds
    assert wild.welch_p == pytest.approx(
        scipy.stats.ttest_ind(wild.scores, wild.baseline_scores, equal_var=False).pvalue
    )
    low, high = wild.interval
    assert low < 0 < wild.difference < high
    text = " ".join(explain(wild, "new", "old"))
    assert "Test set, with these very models: significant" in text
    assert "Seeds, on this very test set: not significant" in text
    assert "more seeds would say more" in text


def test_the_interval_covers_a_known_difference():
    """Scores with a known seed variance and no test-set variance: the interval is Welch's own."""
    tokens = 10.0
    levels = [0.50, 0.52, 0.55], [0.60, 0.61, 0.65, 0.68]
    sides = [np.asarray([[[level * tokens, tokens]] * 50 for level in side]) for side in levels]
    found = compare_metric("perplexity", Perplexity("token"), *sides)
    assert found.test_set_error == pytest.approx(0.0, abs=1e-9)
    wanted = scipy.stats.ttest_ind(*(np.exp(side) for side in levels), equal_var=False).confidence_interval()
    assert found.interval == pytest.approx((wanted.low, wanted.high))
    assert not found.more_is_better
    assert explain(found, "new", "old")[0].startswith("new is better by 0.2")


def test_perplexity_is_of_all_tokens_together():
    statistics = np.asarray([[1.0, 2.0], [9.0, 3.0]])
    assert score_of(Perplexity("token"), statistics) == pytest.approx(math.exp(10 / 5))


def test_other_sentences_are_refused():
    with pytest.raises(UserError, match="3 and 2 sentences"):
        compare_metric("BLEU", BLEU(), np.ones((1, 3, 10)), np.ones((1, 2, 10)))
