"""The figures of a study's report, each as PNG and as an interactive plot."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import optuna
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from plotly import graph_objects

from experiments.sweeping.objectives import curve
from experiments.sweeping.study import OVERRIDES, Study
from experiments.sweeping.worker import describe
from transformer_jax.experiment import parse_config

NAMED_CURVES = 7
"""So many of the best trials are coloured and named; the others are grey."""


Target = Callable[[FrozenTrial], float] | None


@dataclass(frozen=True)
class Picture:
    """One figure: what it shows in a sentence, as PNG and as a plot to hover over."""

    name: str
    title: str
    caption: str
    static: Figure
    interactive: graph_objects.Figure


def pictures(study: Study) -> Iterator[Picture]:
    """Those that the study has enough trials for: learning curves, history or Pareto front, and of what varied."""
    copy = _with_short_names(study)
    measures = {"quality": f"validation {_metric(study)}", "time": "training seconds", "parameters": "parameters"}
    objectives = [measures[objective] for objective in study.settings.objectives]
    complete = [trial for trial in copy.trials if trial.state is TrialState.COMPLETE]
    varied = sorted({key for trial in complete for key in trial.params if len(_values(complete, key)) > 1})
    yield _learning_curves(study)
    if len(complete) < 2:
        return
    if len(objectives) == 1:
        yield _history(copy, objectives[0])
    else:
        yield _pareto_front(copy, objectives, study.settings.directions)
    if not varied:
        return
    everywhere = [key for key in varied if all(key in trial.params for trial in complete)]
    for i, name in enumerate(objectives):
        yield _parallel_coordinates(complete, everywhere, name, [trial.values[i] for trial in complete])
        target = None if len(objectives) == 1 else lambda trial, i=i: trial.values[i]
        yield _importances(copy, varied, name, target, len(complete))


def _metric(study: Study) -> str:
    return parse_config(study.settings.config).evaluation.metric


def _values(trials: list[Any], key: str) -> set[Any]:
    return {trial.params.get(key) for trial in trials}


def _with_short_names(study: Study) -> optuna.Study:
    """A copy of Optuna's study in memory, with keys without their sections where that is clear."""
    keys = {key for trial in study.trials() for key in trial.params}
    ends = [key.rpartition(".")[2] for key in keys]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)}
    copy = optuna.create_study(directions=study.settings.directions)
    for trial in study.trials():
        copy.add_trial(
            optuna.trial.create_trial(
                state=trial.state if trial.state.is_finished() else TrialState.FAIL,
                values=trial.values,
                params={short[key]: value for key, value in trial.params.items()},
                distributions={short[key]: value for key, value in trial.distributions.items()},
            )
        )
    return copy


def _history(copy: optuna.Study, objective: str) -> Picture:
    plot = optuna.visualization.plot_optimization_history(copy, target_name=objective)
    figure, axes = _axes("trial", objective)
    for trace in (trace for trace in plot.data if len(trace.x)):
        line = trace.mode is not None and "lines" in trace.mode
        axes.plot(trace.x, trace.y, "-" if line else "o", label=trace.name.lower(), drawstyle="steps-post")
    axes.legend(fontsize="small")
    return Picture(
        "history",
        "Trials in their order",
        f"The {objective} of each trial, and the best so far.",
        figure,
        _styled(plot),
    )


@dataclass(frozen=True)
class _Axis:
    """One of the parallel axes: numbers to draw, and what is written at which of them."""

    label: str
    values: list[float]
    ticks: dict[float, str]

    @property
    def range(self) -> tuple[float, float]:
        return min(self.values), max(self.values)


def _numeric_axis(label: str, values: list[float], log: bool) -> _Axis:
    drawn = [math.log10(value) for value in values] if log else values
    low, high = min(drawn), max(drawn)
    places = [low + (high - low) * i / 4 for i in range(5)] if high > low else [low]
    return _Axis(label, drawn, {place: f"{10**place if log else place:.3g}" for place in places})


def _parameter_axis(key: str, trials: list[FrozenTrial]) -> _Axis:
    values = [trial.params[key] for trial in trials]
    distribution = trials[0].distributions[key]
    if isinstance(distribution, CategoricalDistribution):
        choices = sorted(set(values), key=distribution.choices.index)
        return _Axis(key, list(map(choices.index, values)), {i: str(choice) for i, choice in enumerate(choices)})
    return _numeric_axis(key, values, log=getattr(distribution, "log", False))


def _parallel_coordinates(trials: list[FrozenTrial], keys: list[str], name: str, values: list[float]) -> Picture:
    axes = [_numeric_axis(name, values, log=False), *(_parameter_axis(key, trials) for key in keys)]
    plot = graph_objects.Figure(
        graph_objects.Parcoords(
            line={"color": values, "colorscale": "Viridis", "showscale": True},
            dimensions=[
                {
                    "label": axis.label,
                    "values": axis.values,
                    "tickvals": list(axis.ticks),
                    "ticktext": list(axis.ticks.values()),
                }
                for axis in axes
            ],
        )
    )
    figure = Figure(figsize=(9, 5), layout="constrained")
    canvas = figure.add_subplot()
    scale, palette = matplotlib.colors.Normalize(min(values), max(values)), matplotlib.colormaps["viridis"]
    for i, value in enumerate(values):
        heights = [_share(axis.values[i], *axis.range) for axis in axes]
        canvas.plot(heights, color=palette(scale(value)), alpha=0.8)
    for place, axis in enumerate(axes):
        canvas.axvline(place, color="#444444", linewidth=0.8)
        for tick, text in axis.ticks.items():
            height = _share(tick, *axis.range)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
            canvas.text(place + 0.03, height, text, fontsize="small", va="center", bbox=box)
    canvas.set_xticks(range(len(axes)), [axis.label for axis in axes])
    canvas.set_yticks([])
    canvas.set_ylim(-0.04, 1.04)
    canvas.spines[["top", "right", "bottom", "left"]].set_visible(False)
    figure.colorbar(matplotlib.cm.ScalarMappable(scale, palette), ax=canvas, label=name)
    return Picture(
        f"parallel_coordinates_{name.replace(' ', '_')}",
        f"Parallel coordinates: {name}",
        f"Each line is a complete trial; its colour is its {name}. On the page, drag along an axis to select.",
        figure,
        _styled(plot).update_layout(margin={"t": 80, "r": 100}),
    )


def _share(value: float, low: float, high: float) -> float:
    """Where a value is between the ends of its axis, 0 to 1."""
    return (value - low) / (high - low) if high > low else 0.5


def _importances(copy: optuna.Study, keys: list[str], name: str, target: Target, count: int) -> Picture:
    plot = optuna.visualization.plot_param_importances(copy, params=keys, target=target, target_name=name)
    figure, axes = _axes(f"importance for {name}", "")
    (trace,) = plot.data
    bars = axes.barh(trace.y, trace.x, color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    return Picture(
        f"importances_{name.replace(' ', '_')}",
        f"Importances for {name}",
        f"How much of what tells good trials from others each setting explains (PED-ANOVA), from {count} complete "
        "trials; of few it says little.",
        figure,
        _styled(plot),
    )


def _axes(x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styled(plot: graph_objects.Figure) -> graph_objects.Figure:
    plot.update_layout(title=None, template="plotly_white", margin={"t": 40, "r": 40, "b": 60, "l": 80})
    return plot


def _learning_curves(study: Study) -> Picture:
    metric = _metric(study)
    best = min if parse_config(study.settings.config).evaluation.best_mode == "min" else max
    curves = {trial.number: curve(study.workdir(trial.number), metric) for trial in study.trials()}
    found = {number: points for number, points in curves.items() if any(map(math.isfinite, _column(points)))}
    order = sorted(found, key=lambda number: best(filter(math.isfinite, _column(found[number]))), reverse=best is max)
    figure, axes = _axes("step", f"validation {metric}")
    plot = graph_objects.Figure()
    palette = matplotlib.colormaps["tab10"]
    for place, number in reversed(list(enumerate(order))):
        trial, points = study.trials()[number], found[number]
        steps, values = [step for step, _ in points], _column(points)
        named = place < NAMED_CURVES
        colour = matplotlib.colors.to_hex(palette(place)) if named else "#bbbbbb"
        pruned = trial.state is TrialState.PRUNED
        label = f"trial {number}{' (pruned)' if pruned else ''}"
        settings = describe(trial.user_attrs[OVERRIDES])
        axes.plot(
            steps,
            values,
            color=colour,
            marker="o" if len(steps) < 20 else None,
            markersize=4,
            linestyle="--" if pruned else "-",
            linewidth=1.8 if named else 0.8,
            label=label if named else None,
        )
        plot.add_scatter(
            x=steps,
            y=values,
            name=label,
            showlegend=named,
            mode="lines+markers",
            line={"color": colour, "width": 2 if named else 1, "dash": "dash" if pruned else "solid"},
            hovertemplate=f"{label}<br>step %{{x}}: %{{y:.4g}}<br>{settings}<extra></extra>",
        )
    if order:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], title="best first", fontsize="small")
    plot.update_layout(
        xaxis_title="step", yaxis_title=f"validation {metric}", legend={"traceorder": "reversed", "title": "best first"}
    )
    caption = (
        f"Validation {metric} of every trial; the best {min(NAMED_CURVES, len(order))} are coloured, best first in the "
        "legend, and pruned trials are dashed."
    )
    return Picture("learning_curves", "Learning curves", caption, figure, _styled(plot))


def _column(points: list[tuple[int, float]]) -> list[float]:
    return [value for _, value in points]


def _pareto_front(copy: optuna.Study, names: list[str], directions: Sequence[str]) -> Picture:
    """Every complete trial by its first two objectives; those that none surpasses in all are marked."""
    figure, axes = _axes(names[1], names[0])
    front = {trial.number for trial in copy.best_trials}
    for trial in copy.trials:
        if trial.state is TrialState.COMPLETE:
            best = trial.number in front
            axes.scatter(
                trial.values[1], trial.values[0], color="tab:red" if best else "tab:gray", zorder=3 if best else 2
            )
            axes.annotate(
                f" {trial.number}", (trial.values[1], trial.values[0]), fontsize="small", va="bottom", zorder=4
            )
    wanted = ", ".join(f"{name} ({direction}d)" for name, direction in zip(names, directions, strict=True))
    plot = optuna.visualization.plot_pareto_front(copy, target_names=names)
    return Picture(
        "pareto_front",
        "Pareto front",
        f"{wanted.capitalize()}. Red: no other trial is better in every one.",
        figure,
        _styled(plot),
    )
