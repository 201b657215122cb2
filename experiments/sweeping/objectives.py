"""What a trial is judged by, read from its run directory."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax

from transformer_jax.analysis.run import load_run
from transformer_jax.experiment import EvaluationConfig
from transformer_jax.training.metric_writer import read_metrics


def curve(workdir: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value) of each evaluation of a run so far; none if it has not begun."""
    file = workdir / "metrics.jsonl"
    rows = read_metrics(file) if file.exists() else []
    return [(row["step"], row["value"]) for row in rows if (row["split"], row["name"]) == ("validation", metric)]


def quality(workdir: Path, evaluation: EvaluationConfig) -> float:
    """The best value of the validation metric, which is that of the checkpoint `load_run` takes; NaN without any."""
    values = [value for _, value in curve(workdir, evaluation.metric) if not math.isnan(value)]
    return (min if evaluation.best_mode == "min" else max)(values, default=math.nan)


def training_seconds(workdir: Path) -> float:
    """Seconds of training steps alone: no compiling, evaluating or saving, and no time lost by interruptions."""
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"]
    seconds = [row["value"] for row in rows if row["name"] == "step_seconds"]
    return float(sum(seconds) / len(seconds) * max(row["step"] for row in rows)) if seconds else math.nan


def measure(workdir: Path, objectives: Sequence[str], evaluation: EvaluationConfig) -> list[float]:
    """The value of each of "quality", "time" (seconds) and "parameters" that is asked for."""
    values = []
    for name in objectives:
        if name == "quality":
            values.append(quality(workdir, evaluation))
        elif name == "time":
            values.append(training_seconds(workdir))
        else:
            values.append(float(sum(leaf.size for leaf in jax.tree.leaves(load_run(workdir, "latest").params))))
    return values
