"""A study's report: one HTML page that needs no network, and the figures in it as PNG files."""

import html
import math
import os
from collections import Counter
from pathlib import Path

from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from experiments.sweeping.figures import Picture, pictures
from experiments.sweeping.ranking import Point, ranked
from experiments.sweeping.study import REASON, Study
from experiments.sweeping.worker import PRUNED
from transformer_jax.experiment import parse_config
from transformer_jax.run_directory import write_text

FOLDER = "report"
BARE = {"displaylogo": False, "responsive": True}
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; }
.wide { overflow-x: auto; }
code { background: #f4f4f4; padding: 0.1rem 0.3rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0 2rem; overflow-x: auto; }
figcaption { color: #555; }
"""


def write_report(study: Study) -> str:
    """Writes report/index.html and a PNG for each figure; returns the best points and where the page is, as text."""
    folder = study.folder / FOLDER
    folder.mkdir(exist_ok=True)
    shown = list(pictures(study))
    for picture in shown:
        picture.static.savefig(folder / f"{picture.name}.png", dpi=150, bbox_inches="tight")
    points = ranked(study)
    write_text(folder / "index.html", _page(study, points, shown))
    return f"{as_text(study, points[:5])}\nreport: {folder / 'index.html'}"


def as_text(study: Study, points: list[Point]) -> str:
    """The points as a table for a terminal."""
    header = ["trial", *study.settings.objectives, "trials", "settings"]
    rows = [header]
    for point in points:
        settings = "  ".join(f"{key}={_number(value)}" for key, value in point.overrides.items())
        rows.append([str(point.number), *_scores(study, point), _states(point), settings])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _page(study: Study, points: list[Point], shown: list[Picture]) -> str:
    settings, name = study.settings, html.escape(study.folder.name)
    states = Counter(trial.state.name.lower() for trial in study.trials())
    metric = parse_config(settings.config).evaluation.metric
    wanted = ", ".join(
        f"{objective}{f' (validation {metric})' if objective == 'quality' else ''}, {direction}d"
        for objective, direction in zip(settings.objectives, settings.directions, strict=True)
    )
    figures = "".join(
        f'<section><h2 id="{p.name}">{html.escape(p.title)}</h2><figure>'
        f"{p.interactive.to_html(full_html=False, include_plotlyjs=False, default_height=440, config=BARE)}"
        f"<figcaption>{html.escape(p.caption)}</figcaption></figure></section>"
        for p in shown
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Study {name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head><body>
<h1>Study {name}</h1>
<p>Config <code>{html.escape(str(settings.config["name"]))}</code>, {len(points)} points of {settings.seeds} seed(s)
each, sampler {settings.sampler}, pruner {settings.pruner}. Objectives: {html.escape(wanted)}.
Trials: {", ".join(f"{count} {state}" for state, count in sorted(states.items()))}.</p>
<h2>Best points</h2>{_table(study, points)}
<p>A score is the mean over the point's complete trials, ± their standard deviation. The best of many is partly the
luckiest: train it with new seeds before you report it.
<code>python experiments/sweep_retrain.py {html.escape(os.path.relpath(study.folder))} --seeds=5</code></p>
{figures}{_failures(study)}</body></html>
"""


def _table(study: Study, points: list[Point]) -> str:
    keys = list(dict.fromkeys(key for point in points for key in point.overrides))
    head = "".join(
        f'<th scope="col">{html.escape(title)}</th>' for title in ["rank", *study.settings.objectives, "trials", *keys]
    )
    rows = []
    for place, point in enumerate(points, start=1):
        links = ", ".join(f'<a href="{_link(study, t.number)}">{t.number}</a>' for t in point.trials)
        scores = "".join(f'<td class="number">{html.escape(score)}</td>' for score in _scores(study, point))
        cells = "".join(f"<td>{html.escape(_number(point.overrides.get(key, '')))}</td>" for key in keys)
        notes = "" if point.complete else f" ({html.escape(_states(point))})"
        rows.append(f'<tr><th scope="row">{place}</th>{scores}<td>{links}{notes}</td>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _failures(study: Study) -> str:
    failed = [trial for trial in study.trials() if trial.state is TrialState.FAIL]
    items = "".join(f"<li>Trial {t.number}: {html.escape(t.user_attrs.get(REASON, 'unknown'))}</li>" for t in failed)
    return f"<section><h2>Failed trials</h2><ul>{items}</ul></section>" if failed else ""


def _scores(study: Study, point: Point) -> list[str]:
    if not point.means:
        return ["-"] * len(study.settings.objectives)
    return [
        _number(mean) + ("" if math.isnan(deviation) else f" ± {deviation:.2g}")
        for mean, deviation in zip(point.means, point.deviations, strict=True)
    ]


def _states(point: Point) -> str:
    """ "2 complete, 1 pruned at step 300" """
    states = Counter(
        f"pruned at step {trial.user_attrs[PRUNED]}" if trial.state is TrialState.PRUNED else trial.state.name.lower()
        for trial in point.trials
    )
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _number(value: object) -> str:
    if not isinstance(value, float):
        return f"{value}"
    return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.5g}"


def _link(study: Study, number: int) -> str:
    return Path(os.path.relpath(study.workdir(number), study.folder / FOLDER)).as_posix()
