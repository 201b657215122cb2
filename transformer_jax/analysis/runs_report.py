"""Runs as text: the list, one of them, two of them side by side, and the end of one that is being written."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from time import sleep
from typing import Any, Literal

from transformer_jax.analysis.runs import (
    Summary,
    as_row,
    differing_keys,
    numbers,
    score_records,
    short_names,
    summarise_run,
    varying_keys,
)
from transformer_jax.analysis.tables import Table
from transformer_jax.config import differences
from transformer_jax.errors import UserError
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.metric_writer import LOWER_IS_BETTER, read_metrics
from transformer_jax.training.saved_steps import SavedSteps

POLL_SECONDS = 1.0
SHOWN = {"bleu": 2, "chrf": 2, "perplexity": 3, "bits_per_byte": 3}  # of the test scores, in the list; decimals


def format_list(summaries: Sequence[Summary], form: Literal["table", "json", "csv"], folder: Path) -> str | Table:
    """All runs: as data with the config keys in which not all agree, as a table with `differing_keys`."""
    keys = varying_keys(summaries)
    scores = list(dict.fromkeys(name for summary in summaries for name in summary.scores))
    rows = [as_row(summary, keys, scores) for summary in summaries]
    if form == "json":
        return json.dumps(rows, indent=2, ensure_ascii=False, default=str)
    if form == "csv":
        cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
        return Table("", list(rows[0]), cells).csv().rstrip("\n")
    differing = differing_keys(summaries)
    names = short_names({key for row in differing for key in row})
    heads = ["run", "state", "step", "best on validation", "test", "time", "differs in"]
    lines = [_cells(one, row, names, folder) for one, row in zip(summaries, differing, strict=True)]
    return Table("", heads, lines, left=("state", "differs in"))


def _cells(one: Summary, differing: Sequence[str], names: Mapping[str, str], folder: Path) -> list[str]:
    inside = str(one.path.relative_to(folder)) if one.path != folder else one.path.name
    return [
        inside,
        one.state,
        f"{one.step:,}/{one.total_steps:,}" if one.total_steps else "",
        "{} {:.4g} at {:,}".format(*one.best) if one.best else "",
        "  ".join(f"{name} {one.scores[name]:.{digits}f}" for name, digits in SHOWN.items() if name in one.scores),
        str(timedelta(seconds=round(one.seconds))),
        " ".join(f"{names[key]}={_short(one.config[key])}" for key in differing),
    ]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def sort_summaries(
    summaries: Iterable[Summary], by: Literal["path", "best", "test", "started", "time"]
) -> list[Summary]:
    """Sorted by path, or the best, newest or longest first; runs without the value come last."""

    def key(one: Summary) -> tuple:
        if by == "path":
            return (0, str(one.path))
        if by == "best" and one.best:
            metric, value, _ = one.best
            return (0, value if metric in LOWER_IS_BETTER else -value)
        if by == "test" and (name := next((name for name in SHOWN if name in one.scores), None)):
            return (0, one.scores[name] if name in LOWER_IS_BETTER else -one.scores[name])
        if by == "started" and one.started:
            return (0, -datetime.fromisoformat(one.started).timestamp())
        return (0, -one.seconds) if by == "time" else (1, 0)

    return sorted(summaries, key=key)


def format_run(path: str | Path) -> str:
    """One run: its state, starts, checkpoints, newest metrics, scores, and config."""
    run = RunDirectory.open(path)
    one = summarise_run(run.path)
    lines = [
        f"{one.path}",
        f"state         {one.state}, step {one.step:,} of {one.total_steps:,}, "
        f"{timedelta(seconds=round(one.seconds))} of training and evaluating",
    ]
    if holder := run.holder():
        lines.append(f"written by    {holder}")
    if one.best:
        lines.append("best          {} {:.4g} on validation at step {:,}".format(*one.best))
    if run.checkpoints.is_dir():
        steps = SavedSteps(run.checkpoints).steps()
        lines.append(f"checkpoints   {', '.join(map(str, steps)) or 'none'}")
    for start in run.environments:
        git = start["git"] or {}
        commit = f"git {git['commit'][:10]}{' with changes' if git['dirty'] else ''}" if git else "no git"
        devices = (
            f"{len(start['devices'])} x {start['devices'][0].rpartition(': ')[2]}" if start["devices"] else "nothing"
        )
        changes = f", changed {'; '.join(start['config_changes'])}" if start["config_changes"] else ""
        lines += [f"started       {start['time']} on {devices}, {commit}{changes}", f"              {start['command']}"]
    history = read_metrics(run.metrics) if run.metrics.exists() else []
    for split in sorted({row["split"] for row in history}):
        last = max(row["step"] for row in history if row["split"] == split)
        values = {r["name"]: r["value"] for r in history if r["split"] == split and r["step"] == last}
        lines.append(f"{split:13} step {last:,}: {_metrics(values)}")
    for record in score_records(run):
        how = record.get("decoding", {})
        with_ = f", {how['method']} {how['beam_size']}" if how else ""
        what = f"{record['data']['split']}, checkpoint {record['checkpoint']['choice']}{with_}"
        lines.append(f"score         {what}: {_metrics(numbers(record['scores']))}   {Path(record['file']).name}")
    lines += ["config", *(f"  {key} = {value!r}" for key, value in one.config.items())]
    return "\n".join(lines)


def format_diff(first: str | Path, second: str | Path) -> str:
    """What differs between two runs, and what came of it."""
    a, b = RunDirectory.open(first), RunDirectory.open(second)
    lines = ["config", *(f"  {line}" for line in differences(a.config, b.config) or ["the same"])]
    if a.environments and b.environments:
        before, after = a.environments[-1], b.environments[-1]
        facts = ("python", "platform", "devices", "git", "packages")
        changed = differences({k: before[k] for k in facts}, {k: after[k] for k in facts})
        lines += ["last start", *(f"  {line}" for line in changed or ["the same"])]
    pair = [summarise_run(run.path) for run in (a, b)]
    rows = [as_row(one, (), list({**pair[0].scores, **pair[1].scores})) for one in pair]
    shown = [name for name in rows[0] if name != "path" and (rows[0][name], rows[1][name]) != (None, None)]
    table = [[name, *(_cell(row[name]) for row in rows)] for name in shown]
    width = max(len(row[1]) for row in table)
    return "\n".join([*lines, "outcome", *(f"  {name:28} {x:{width}}   {y}" for name, x, y in table)])


def _cell(value: Any) -> str:
    return "-" if value is None else _number(value) if isinstance(value, float) else str(value)


def _metrics(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"


def tail(path: str | Path, count: int, follow: bool) -> Iterator[str]:
    """The last lines of a run's metrics, one a step and split; with ``follow``, new ones until the run ends."""
    run = RunDirectory.open(path)
    shown: set[tuple[int, str]] = set()
    while True:
        held = run.holder()  # before reading: what is written until it lets go is read
        groups: dict[tuple[int, str], dict[str, float]] = {}
        for row in read_metrics(run.metrics) if run.metrics.exists() else []:
            groups.setdefault((row["step"], row["split"]), {})[row["name"]] = row["value"]
        new = [key for key in groups if key not in shown]
        yield from (f"step {key[0]:,}  {key[1]}  {_metrics(groups[key])}" for key in (new if shown else new[-count:]))
        shown |= set(new)
        if not follow or not held:
            break
        sleep(POLL_SECONDS)
    if not shown:
        raise UserError(f"{run.path} has no metrics yet.")
