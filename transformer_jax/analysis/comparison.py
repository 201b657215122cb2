"""Systems compared on a test set, each system being the runs of one config with several seeds."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.analysis.run import load_run, require_family
from transformer_jax.analysis.scores import SentenceScores, sentence_scores
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.config import differences
from transformer_jax.data.datasets import load_dataset
from transformer_jax.errors import UserError
from transformer_jax.evaluation.breakdowns import FREQUENCIES, length_bins, sentence_changes, word_f1, words
from transformer_jax.evaluation.significance import (
    MetricComparison,
    Perplexity,
    compare_metric,
    score_of,
    sentence_statistics,
)

# What may differ between the seeds of one config: nothing that alters what is computed.
NOT_THE_CONFIG = re.compile(r"(seed|name|training\.log_every_steps|tracking\..*|mesh\..*)$")


@dataclass(frozen=True)
class System:
    """The runs of one config."""

    label: str
    runs: list[TranslationRun]

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]


@dataclass(frozen=True)
class TestSet:
    """What is translated: `data` says where it is from, as in a record of scores."""

    __test__ = False  # no test of pytest's

    data: dict[str, Any]
    sources: list[str]
    references: list[str]


@dataclass(frozen=True)
class Comparison:
    """A system beside a baseline.

    Attributes:
      config_changes: baseline -> system, a line a key.
      metrics: BLEU, chrF and perplexity.
      lengths: rows of (bin of source words, sentences, baseline's mean BLEU, the system's).
      frequencies: rows of (bin of training occurrences, words in the references, baseline's mean F1, the system's).
      changes: the sentences whose mean chrF rose most, then those whose fell most.
    """

    system: System
    baseline: System
    config_changes: list[str]
    metrics: list[MetricComparison]
    lengths: list[tuple[str, int, float, float]]
    frequencies: list[tuple[str, int, float | None, float | None]]
    changes: list[dict[str, Any]]


def open_systems(paths: Sequence[str], checkpoint: str) -> list[System]:
    """Opens runs and groups them: runs whose configs differ in nothing but the seed are one system.

    Raises: UserError for a path that holds no run, and for two runs of one config and seed: they are not two samples.
    """
    groups: list[list[TranslationRun]] = []
    for path in paths:
        run = load_run(path, checkpoint)
        require_family("translation", run.config)
        home = next((group for group in groups if not _config_changes(group[0], run)), None)
        if home is None:
            groups.append([run])
            continue
        twin = next((other for other in home if other.config.seed == run.config.seed), None)
        if twin is not None:
            raise UserError(
                f"{twin.directory.path} and {run.directory.path} have the same config and seed {run.config.seed}, so "
                "they are one sample and not two; give one of them."
            )
        home.append(run)
    return [System(_label(group), group) for group in groups]


def _config_changes(first: TranslationRun, second: TranslationRun) -> list[str]:
    lines = differences(first.directory.config, second.directory.config)
    return [line for line in lines if not NOT_THE_CONFIG.fullmatch(line.split(":")[0])]


def _label(runs: Sequence[TranslationRun]) -> str:
    """What the names of the runs' folders begin with; the folder's name if there is but one run."""
    names = [run.directory.path.name for run in runs]
    common = "".join(c[0] for c in itertools.takewhile(lambda c: len(set(c)) == 1, zip(*names, strict=False)))
    if len(names) > 1:
        common = re.sub(r"[-_. ]+(seed|s)?[-_. ]*\d*$", "", common)
    return common or names[0]


def open_test_set(run: TranslationRun, split: str, files: str | None) -> TestSet:
    """The test set that all are compared on: a split of the run's dataset, or files as in `evaluate`."""
    if files is not None:
        from transformer_jax.data.parallel_text import read_pairs

        pairs = list(read_pairs([Path(file) for file in files.split(",")]))
        texts = [pair["source"] for pair in pairs], [pair["target"] for pair in pairs]
        return TestSet({"split": "files", "files": files}, *texts)
    splits = load_dataset(run.config.dataset.each_once()).splits
    if split not in splits:
        raise UserError(f"--split={split}: {run.config.dataset.name} has only {', '.join(splits)}.")
    sources, references = splits[split].texts()
    return TestSet({"split": split, "dataset": run.config.dataset.name}, list(sources), list(references))


def check_same_task(systems: Sequence[System]) -> None:
    """Raises: UserError unless all translate between the same languages, and no run is on both sides."""
    runs = [run for system in systems for run in system.runs]
    directions = {(run.config.dataset.source_language, run.config.dataset.target_language) for run in runs}
    if len(directions) > 1:
        raise UserError(f"The runs translate in different directions, {sorted(directions)}; compare runs of one.")
    paths = Counter(run.directory.path.resolve() for run in runs)
    if repeated := [path for path, times in paths.items() if times > 1]:
        raise UserError(f"{repeated[0]} is given twice; a run cannot be compared with itself.")


class Evaluated:
    """The outputs of one system on a test set, and the statistics of all metrics."""

    def __init__(self, system: System, test: TestSet, decoding: dict[str, Any]) -> None:
        self.system = system
        # Opened anew, so that parameters and programs of one run go before those of the next come.
        self.sentences: list[SentenceScores] = [
            sentence_scores(
                load_run(run.directory.path, run.checkpoint), test.sources, test.references, test.data, **decoding
            )
            for run in system.runs
        ]
        outputs = [one.translations for one in self.sentences]
        self.bleu, self.chrf = (sentence_statistics(metric, outputs) for metric in _metrics(test))

    def perplexity(self, scored: np.ndarray, tokens: np.ndarray | None) -> np.ndarray:
        """(-log p, tokens) float64[seeds, sentences, 2] of the sentences that all could score whole."""
        rows = [np.stack([-one.log_probs, one.tokens if tokens is None else tokens], axis=-1) for one in self.sentences]
        return np.asarray(rows)[:, scored]


def _metrics(test: TestSet) -> tuple[BLEU, CHRF]:
    return BLEU(references=[test.references]), CHRF(references=[test.references])


def compare(
    systems: Sequence[System], baseline: System, test: TestSet, changed: int, **decoding: Any
) -> list[Comparison]:
    """Compares each system with the baseline; what has not been translated and scored yet is, and kept in its run.

    Args:
      changed: how many sentences to give that rose, and as many that fell.
      decoding: settings that differ from each run's own, as for `Run.translator`.
    Raises: UserError as `check_same_task`, and where the test set is empty.
    """
    check_same_task([*systems, baseline])
    reference_point = Evaluated(baseline, test, decoding)
    frequency: Counter[str] = Counter()
    for line in load_dataset(baseline.runs[0].config.dataset.each_once()).splits["train"].texts()[1]:
        frequency.update(words(line))
    return [
        _compare(Evaluated(system, test, decoding), reference_point, test, frequency, changed) for system in systems
    ]


def _compare(
    system: Evaluated, baseline: Evaluated, test: TestSet, frequency: Counter[str], changed: int
) -> Comparison:
    everyone = [*system.sentences, *baseline.sentences]
    scored = np.asarray(~np.isnan([one.log_probs for one in everyone]).any(axis=0))
    runs = [*system.system.runs, *baseline.system.runs]
    one_tokenizer = len({run.tokenizers.digest for run in runs}) == 1
    # Perplexities per token of different tokenizers are of different things.
    unit = "token" if one_tokenizer else "word"
    counts = None if one_tokenizer else np.asarray([len(words(line)) + 1.0 for line in test.references])
    bleu, chrf = _metrics(test)
    metrics = [
        compare_metric("BLEU", bleu, system.bleu, baseline.bleu),
        compare_metric("chrF2", chrf, system.chrf, baseline.chrf),
    ]
    if scored.any():
        sides = (side.perplexity(scored, counts) for side in (system, baseline))
        metrics.append(compare_metric("perplexity", Perplexity(unit), *sides))
    return Comparison(
        system=system.system,
        baseline=baseline.system,
        config_changes=_config_changes(baseline.system.runs[0], system.system.runs[0]),
        metrics=metrics,
        lengths=_by_length(system, baseline, test),
        frequencies=_by_frequency(system, baseline, test, frequency),
        changes=_changes(system, baseline, test, changed),
    )


def _by_length(system: Evaluated, baseline: Evaluated, test: TestSet) -> list[tuple[str, int, float, float]]:
    lengths = np.asarray([len(words(line)) for line in test.sources])
    rows = []
    for low, high in length_bins(lengths):
        inside = (lengths >= low) & (lengths <= high)
        means = [float(np.mean([score_of(BLEU(), one[inside]) for one in side.bleu])) for side in (baseline, system)]
        rows.append((str(low) if low == high else f"{low}-{high}", int(inside.sum()), means[0], means[1]))
    return rows


def _by_frequency(
    system: Evaluated, baseline: Evaluated, test: TestSet, frequency: Counter[str]
) -> list[tuple[str, int, float | None, float | None]]:
    found = []
    for side in (baseline, system):
        seeds = [word_f1(one.translations, test.references, frequency) for one in side.sentences]
        values = [[seed[k][0] for seed in seeds] for k in range(len(FREQUENCIES))]
        known = [[value for value in row if value is not None] for row in values]
        found.append([float(np.mean(row)) if row else None for row in known])
    counts = [count for _, count in seeds[0]]
    names = [str(low) if low == high else f"{low}+" if high is None else f"{low}-{high}" for low, high in FREQUENCIES]
    return list(zip(names, counts, *found, strict=True))


def _changes(system: Evaluated, baseline: Evaluated, test: TestSet, count: int) -> list[dict[str, Any]]:
    """Outputs are those of every run of a side, in the order of its seeds."""
    change = sentence_changes(system.chrf, baseline.chrf)
    order = np.argsort(-change, kind="stable")
    rose = [int(i) for i in order[:count] if change[i] > 0]
    fell = [int(i) for i in order[::-1][:count] if change[i] < 0]
    return [
        {
            "sentence": i + 1,
            "chrf_change": float(change[i]),
            "source": test.sources[i],
            "reference": test.references[i],
            "baseline": [one.translations[i] for one in baseline.sentences],
            "system": [one.translations[i] for one in system.sentences],
        }
        for i in [*rose, *fell]
    ]


def as_json(comparisons: Sequence[Comparison], test: TestSet) -> dict[str, Any]:
    """All of it as data."""

    def system(one: System) -> dict[str, Any]:
        runs = [str(run.directory.path) for run in one.runs]
        return {"label": one.label, "runs": runs, "seeds": one.seeds, "checkpoint_steps": [r.steps for r in one.runs]}

    return {
        "test_set": {**test.data, "sentences": len(test.sources)},
        "comparisons": [
            {
                "system": system(one.system),
                "baseline": system(one.baseline),
                "config_changes": one.config_changes,
                "metrics": [{**dataclasses.asdict(m), "seed_share": m.seed_share} for m in one.metrics],
                "bleu_by_source_words": [_row("source_words", "sentences", row) for row in one.lengths],
                "word_f1_by_training_count": [_row("training_count", "words", row) for row in one.frequencies],
                "changed_sentences": one.changes,
            }
            for one in comparisons
        ],
    }


def _row(what: str, count: str, row: Sequence[Any]) -> dict[str, Any]:
    return dict(zip((what, count, "baseline", "system"), row, strict=True))
