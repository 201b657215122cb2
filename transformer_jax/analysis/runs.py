"""Many runs at a glance: what state each is in, how good it is, and what makes it different from the others.

Reads text files only, so that a hundred runs are listed in a second: neither jax nor a checkpoint is loaded.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from transformer_jax.config import flatten
from transformer_jax.errors import UserError
from transformer_jax.run_directory import AVERAGED, RunDirectory
from transformer_jax.training.metric_writer import LOWER_IS_BETTER, read_metrics
from transformer_jax.training.saved_steps import SavedSteps

ABSENT = "(absent)"
KIND = ("dataset.name", "family")


@dataclass(frozen=True)
class Summary:
    """One run, in short.

    Attributes:
      state: "running" (a process holds it), "finished", "stopped" (the same command continues it), "averaged" (made
        by experiments/average.py) or "unreadable: …".
      step, total_steps: the newest step in its metrics, and the last there will be.
      best: (metric, value, step) of the best validation value; None before the first.
      scores: the numbers of the newest evaluation of the test split: bleu, chrf, … ; empty without one.
      seconds: spent on training steps and evaluations, over all starts.
      started: time of the first start, ISO 8601.
      config: flat, dotted keys.
    """

    path: Path
    state: str
    step: int
    total_steps: int
    best: tuple[str, float, int] | None
    scores: dict[str, float]
    seconds: float
    started: str
    config: dict[str, Any]


def find_runs(folder: str | Path) -> list[Path]:
    """The run directories at or under a folder, sorted; a run within a run is not looked for.

    Raises: UserError when there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that has runs in it.")
    found = sorted(_find(folder))
    if not found:
        raise UserError(f"There are no runs in {folder}: none of its folders has a config.json.")
    return found


def _find(folder: Path) -> Iterator[Path]:
    if (folder / "config.json").is_file():
        yield folder
        return
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            yield from _find(entry)


def summarise_run(path: Path) -> Summary:
    """Reads one run; what is wrong with a run's files is told as its state, not raised."""
    try:
        run = RunDirectory.open(path)
        config, history = run.config, _history(run)
        step = max((row["step"] for row in history), default=0)
        best = _best(history, config)
        return Summary(
            path=path,
            state=_state(run, config, history, step),
            step=step,
            total_steps=int(config["training"]["total_steps"]),
            best=best,
            scores=next((numbers(record["scores"]) for record in score_records(run, "test")), {}),
            seconds=_seconds(history),
            started=run.environments[0]["time"] if run.environments else "",
            config=flatten(config),
        )
    except (UserError, KeyError, TypeError, AttributeError) as error:
        what = error if isinstance(error, UserError) else f"its files are not of this version: {error!r}"
        return Summary(path, f"unreadable: {what}", 0, 0, None, {}, 0.0, "", {})


def _history(run: RunDirectory) -> list[dict[str, Any]]:
    return read_metrics(run.metrics) if run.metrics.exists() else []


def _state(run: RunDirectory, config: Mapping[str, Any], history: list[dict[str, Any]], step: int) -> str:
    if run.holder():
        return "running"
    if (run.path / AVERAGED).is_file():
        return "averaged"
    saved = SavedSteps(run.checkpoints).latest_step() or 0
    done = saved >= config["training"]["total_steps"] or (saved and _ended_early(config, history, saved))
    return "finished" if done else "stopped"


def _ended_early(config: Mapping[str, Any], history: list[dict[str, Any]], saved: int) -> bool:
    """Whether patience ran out: as many evaluations as that, up to the last checkpoint, brought no new best."""
    metric, patience = config["evaluation"]["metric"], config["evaluation"]["patience"]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    values = [sign * row["value"] for row in _validation(history, metric) if row["step"] <= saved]
    return bool(patience) and len(values) > patience and max(values[-patience:]) <= max(values[:-patience])


def _validation(history: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    return [row for row in history if row["split"] == "validation" and row["name"] == metric]


def _best(history: list[dict[str, Any]], config: Mapping[str, Any]) -> tuple[str, float, int] | None:
    metric = config["evaluation"]["metric"]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    values = [(sign * row["value"], row["step"]) for row in _validation(history, metric)]
    ranked = [value for value in values if value[0] == value[0]]  # NaN is never best
    return (metric, sign * max(ranked)[0], max(ranked)[1]) if ranked else None


def _seconds(history: list[dict[str, Any]]) -> float:
    total, before = 0.0, 0
    for row in history:
        if row["split"] == "train" and row["name"] == "step_seconds":
            total, before = total + row["value"] * (row["step"] - before), row["step"]
        elif row["name"] == "evaluation_seconds":
            total += row["value"]
    return total


def score_records(run: RunDirectory, split: str | None = None) -> list[dict[str, Any]]:
    """The records of evaluations, the newest first, each with its "file"; of one split if it is named."""
    records = []
    for file in sorted(run.scores.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {error}. Remove it and evaluate again.") from error
        if split is None or record["data"]["split"] == split:
            records.append({**record, "file": str(file)})
    return sorted(records, key=lambda record: datetime.fromisoformat(record["time"]), reverse=True)


def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores of a record without their signatures and counts."""
    return {name: v for name, v in scores.items() if isinstance(v, float) and not name.endswith("_left_out")}


def varying_keys(summaries: Sequence[Summary]) -> list[str]:
    """The config keys in which not all of the runs agree, `name` apart."""
    readable = [summary.config for summary in summaries if summary.config]
    keys = sorted({key for config in readable for key in config} - {"name"})
    return [key for key in keys if len({repr(config.get(key, ABSENT)) for config in readable}) > 1]


def differing_keys(summaries: Sequence[Summary]) -> list[list[str]]:
    """For each run the config keys that tell it from the others, of those that it has.

    They are what it is (`KIND`) where not all are that, and `varying_keys` of the runs that are. A run of another
    family or dataset differs in nearly every key, which would say nothing.
    """
    groups: dict[tuple, list[Summary]] = {}
    kind = lambda summary: tuple(summary.config.get(key) for key in KIND)
    for summary in summaries:
        groups.setdefault(kind(summary), []).append(summary)
    between = [key for key in varying_keys(summaries) if key in KIND]
    within = {name: between + varying_keys(group) for name, group in groups.items()}
    return [[key for key in within[kind(summary)] if key in summary.config] for summary in summaries]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or as many parts as tell it from the other keys."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[-k:]) for k in range(1, len(parts) + 1)]
        alone = (e for e in endings if sum(f".{other}".endswith(f".{e}") for other in keys) == 1)
        names[key] = next(alone, key)
    return names


def as_row(summary: Summary, keys: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    """A run as flat data, for JSON and CSV, with these config keys and scores."""
    metric, value, step = summary.best or (None, None, None)
    return {
        "path": str(summary.path),
        "state": summary.state,
        "step": summary.step,
        "total_steps": summary.total_steps,
        "metric": metric,
        "best": value,
        "best_step": step,
        **{f"test_{name}": summary.scores.get(name) for name in scores},
        "seconds": round(summary.seconds, 1),
        "started": summary.started,
        **{f"config.{key}": summary.config.get(key) for key in keys},
    }
