"""Whether one system is better than another, when each is several models trained alike but for their seed.

Two things vary: which sentences the test set happens to have, and which seeds were trained. sacreBLEU's paired
bootstrap (Koehn 2004) and approximate randomisation (Riezler and Maxwell 2005) speak of the first alone: they hold
the trained models fixed. Welch's t-test over the seeds' scores speaks of the second alone: it holds the sentences
fixed. `compare_metric` gives both, and what share of the difference's variance each has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from sacrebleu.metrics.base import Metric, Score, Signature
from sacrebleu.significance import PairedTest

from transformer_jax.errors import UserError

BOOTSTRAP_SAMPLES = 1000
RANDOMISATION_TRIALS = 10_000
BOOTSTRAP_SEED = 12345  # sacreBLEU's own
LEVEL = 0.05


@dataclass(frozen=True)
class MetricComparison:
    """One metric of a system and of the baseline it is compared with.

    Attributes:
      scores, baseline_scores: one for each seed.
      difference: the mean of scores less the mean of baseline_scores.
      bootstrap_p, randomisation_p: two-sided, over sentences, of the mean statistics of all seeds.
      test_set_error: standard error of the difference over resampled sentences, with these very models.
      seed_error: standard error of the difference over seeds, on this very test set; None where a side has one seed.
      welch_p: two-sided, over seeds; None where a side has one seed, or where no two seeds of a side differ.
      interval: 95 % interval of the difference over new seeds and new sentences; None without seed_error.
    """

    name: str
    signature: str
    more_is_better: bool
    scores: list[float]
    baseline_scores: list[float]
    difference: float
    bootstrap_p: float
    randomisation_p: float
    test_set_error: float
    seed_error: float | None
    welch_p: float | None
    interval: tuple[float, float] | None

    @property
    def digits(self) -> int:
        """How many decimals to show."""
        return 2 if self.more_is_better else 3

    @property
    def seed_share(self) -> float | None:
        """The share of the difference's variance, 0 to 1, that is due to seeds; the rest is the test set's."""
        if self.seed_error is None:
            return None
        total = self.seed_error**2 + self.test_set_error**2
        return self.seed_error**2 / total if total else 0.0


class Perplexity(Metric):
    """exp(sum of -log p / sum of tokens), in the shape in which sacreBLEU's tests take a metric.

    A sentence's statistics are (-log p of its reference, tokens).
    """

    _SIGNATURE_TYPE = Signature

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def get_signature(self) -> Signature:
        return Signature({"num_refs": 1})

    def _compute_score_from_stats(self, stats: Any) -> Score:
        return Score("perplexity", math.exp(min(float(stats[0]) / max(float(stats[1]), 1.0), 700.0)))

    def _aggregate_and_compute(self, stats: Any) -> Score:
        return self._compute_score_from_stats(np.sum(stats, axis=0))

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict) -> list[float]:
        raise NotImplementedError("statistics come from the model, not from text")

    def _preprocess_segment(self, sent: str) -> str:
        return sent

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        return {}


class _Given:
    """A metric for `PairedTest` whose systems are statistics instead of text.

    Bootstrap and randomisation draw sentences; a sentence's statistics are the mean over the seeds' outputs, so that
    the outputs of one sentence stay together. To take them for independent sentences would make any difference look
    as sure as a test set several times as large.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def _extract_corpus_statistics(self, hypotheses: Any, references: Any) -> Any:
        return hypotheses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._metric, name)


def sentence_statistics(metric: Metric, outputs: Sequence[Sequence[str]]) -> np.ndarray:
    """sacreBLEU's sufficient statistics float64[seeds, sentences, K]: their sum over sentences gives the score.

    Args:
      metric: has been given the references, ``BLEU(references=[lines])``.
      outputs: for each seed a line for each reference.
    """
    return np.asarray([metric._extract_corpus_statistics(lines, None) for lines in outputs], np.float64)


def score_of(metric: Metric, statistics: np.ndarray) -> float:
    """The corpus score of sentences' statistics float64[sentences, K]."""
    return float(metric._compute_score_from_stats(statistics.sum(axis=0)).score)


def compare_metric(name: str, metric: Metric, system: np.ndarray, baseline: np.ndarray) -> MetricComparison:
    """Compares two systems by a metric.

    Args:
      metric: sacreBLEU's that has been given the references, ``BLEU(references=[lines])``, or `Perplexity`.
      system, baseline: sentence statistics float64[seeds, sentences, K] of the same sentences; seeds may differ.
    Raises: UserError when there is no sentence, or not the same ones.
    """
    if system.shape[1:] != baseline.shape[1:] or not system.size or not baseline.size:
        raise UserError(
            f"{name}: {system.shape[1]} and {baseline.shape[1]} sentences cannot be compared; give the same ones."
        )
    tested = {}
    for kind, samples in (("bs", BOOTSTRAP_SAMPLES), ("ar", RANDOMISATION_TRIALS)):
        pair = [("baseline", baseline.mean(axis=0)), ("system", system.mean(axis=0))]
        signatures, found = PairedTest(pair, {name: _Given(metric)}, None, kind, samples)()  # type: ignore[arg-type,dict-item]
        (key,) = signatures
        tested[kind] = float(found[key][1].p_value)  # type: ignore[union-attr,arg-type]
    scores, base = ([score_of(metric, one) for one in side] for side in (system, baseline))
    difference = float(np.mean(scores) - np.mean(base))
    resampled = _resampled(metric, system) - _resampled(metric, baseline)
    test_set_error = float(resampled.std(ddof=1))
    seed_error, welch_p, interval = _over_seeds(scores, base, difference, test_set_error)
    return MetricComparison(
        name=name,
        signature=str(metric.get_signature()) if not isinstance(metric, Perplexity) else f"per {metric.unit}",
        more_is_better=not isinstance(metric, Perplexity),
        scores=scores,
        baseline_scores=base,
        difference=difference,
        bootstrap_p=tested["bs"],
        randomisation_p=tested["ar"],
        test_set_error=test_set_error,
        seed_error=seed_error,
        welch_p=welch_p,
        interval=interval,
    )


def _resampled(metric: Metric, statistics: np.ndarray) -> np.ndarray:
    """Mean over seeds of the score of each bootstrap sample, float64[samples]; the same sentences in every call."""
    count = statistics.shape[1]
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=BOOTSTRAP_SAMPLES).astype(np.float64)
    sums = np.einsum("bn,snk->sbk", drawn, statistics, optimize=True)
    return np.asarray([[metric._compute_score_from_stats(row).score for row in seed] for seed in sums]).mean(axis=0)


def _over_seeds(
    scores: Sequence[float], base: Sequence[float], difference: float, test_set_error: float
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """Standard error over seeds, Welch's p, and the interval over both sources.

    The interval takes the three variances (two sides' seeds, and the test set with as good as infinite degrees of
    freedom) together by Satterthwaite's approximation (1946). What seeds and sentences do jointly is in both, so it
    is rather too wide than too narrow.
    """
    if min(len(scores), len(base)) < 2:
        return None, None, None
    parts = [float(np.var(side, ddof=1)) / len(side) for side in (scores, base)]
    over_seeds = sum(parts)
    total = math.sqrt(over_seeds + test_set_error**2)
    shares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (scores, base), strict=True))
    reach = total * (float(scipy.stats.t.ppf(1 - LEVEL / 2, total**4 / shares)) if shares else 1.96)
    welch = float(scipy.stats.ttest_ind(scores, base, equal_var=False).pvalue) if over_seeds else None
    return math.sqrt(over_seeds), welch, (difference - reach, difference + reach)


def explain(result: MetricComparison, system: str, baseline: str) -> list[str]:
    """What the numbers mean, in sentences: the test set's variance apart from the seeds'."""
    digits = result.digits
    better = (result.difference > 0) == result.more_is_better
    direction = "no different" if not result.difference else "better" if better else "worse"
    lines = [f"{system} is {direction} by {abs(result.difference):.{digits}f} {result.name} than {baseline}."]
    sure = result.bootstrap_p < LEVEL and result.randomisation_p < LEVEL
    unsure = result.bootstrap_p >= LEVEL and result.randomisation_p >= LEVEL
    verdict = "significant" if sure else "not significant" if unsure else "undecided, the two tests disagree"
    lines.append(
        f"Test set, with these very models: {verdict} (paired bootstrap p = {result.bootstrap_p:.4f}, approximate "
        f"randomisation p = {result.randomisation_p:.4f}); standard error {result.test_set_error:.{digits}f}."
    )
    if result.seed_error is None or result.interval is None:
        few = [name for name, s in ((system, result.scores), (baseline, result.baseline_scores)) if len(s) < 2]
        lines.append(
            f"Seeds: unknown, {' and '.join(few)} being one run. Whether other seeds would do the same, these tests "
            "cannot say; train at least three."
        )
        return lines
    if result.welch_p is None:
        lines.append("Seeds: no two runs of a side differ in this metric.")
    else:
        verdict = "significant" if result.welch_p < LEVEL else "not significant"
        spread = " and ".join(
            f"{np.std(side, ddof=1):.{digits}f} over {len(side)}" for side in (result.scores, result.baseline_scores)
        )
        lines.append(
            f"Seeds, on this very test set: {verdict} (Welch's t-test p = {result.welch_p:.4f}); standard error "
            f"{result.seed_error:.{digits}f}, standard deviations {spread} seeds."
        )
    share = result.seed_share or 0.0
    advice = "more seeds would say more than more sentences" if share > 0.5 else "more sentences would say more"
    low, high = result.interval
    lines.append(
        f"Of the difference's variance {100 * share:.0f} % is due to seeds, {100 * (1 - share):.0f} % to the test set: "
        f"{advice}. Over both, its 95 % interval is {low:+.{digits}f} to {high:+.{digits}f}."
    )
    return lines
