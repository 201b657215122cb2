"""The figures of a study's report, each as PNG and as an interactive plot."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState
from plotly import graph_objects

from experiments.sweeping.objectives import curve
from experiments.sweeping.study import OVERRIDES, Study
from experiments.sweeping.worker import describe
from transformer_jax.experiment import parse_config

NAMED_CURVES = 8
"""So many of the best trials are coloured and named; the others are grey."""


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
    copy, objectives = _with_short_names(study), study.settings.objectives
    complete = [trial for trial in copy.trials if trial.state is TrialState.COMPLETE]
    varied = sorted({key for trial in complete for key in trial.params if len(_values(complete, key)) > 1})
    yield _learning_curves(study)
    if len(complete) < 2:
        return
    if len(objectives) == 1:
        yield _of_optuna(
            "history",
            "Trials in their order",
            f"The {objectives[0]} of each trial, and the best so far.",
            lambda plots: plots.plot_optimization_history(copy, target_name=objectives[0]),
        )
    else:
        yield _pareto_front(copy, list(objectives), study.settings.directions)
    if not varied:
        return
    for i, name in enumerate(objectives):
        target = None if len(objectives) == 1 else lambda trial, i=i: trial.values[i]
        yield _of_optuna(
            f"parallel_coordinates_{name}",
            f"Parallel coordinates: {name}",
            f"Each line is a complete trial; its colour is its {name}. Drag along an axis to select.",
            lambda plots, target=target, name=name: plots.plot_parallel_coordinate(
                copy, params=varied, target=target, target_name=name
            ),
        )
        yield _of_optuna(
            f"importances_{name}",
            f"Importances for {name}",
            f"How much of the difference between good and other trials each setting explains (PED-ANOVA), from "
            f"{len(complete)} complete trials; of few trials it says little.",
            lambda plots, target=target, name=name: plots.plot_param_importances(
                copy, params=varied, target=target, target_name=name
            ),
        )


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


def _of_optuna(name: str, title: str, caption: str, plot: Callable[[Any], Any]) -> Picture:
    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        static = plot(optuna.visualization.matplotlib).figure
    static.set_size_inches(9, 5)
    interactive = plot(optuna.visualization)
    interactive.update_layout(title=None, template="plotly_white")
    return Picture(name, title, caption, static, interactive)


def _learning_curves(study: Study) -> Picture:
    metric = parse_config(study.settings.config).evaluation.metric
    best = min if metric == "loss" else max
    curves = {trial.number: curve(study.workdir(trial.number), metric) for trial in study.trials()}
    found = {number: points for number, points in curves.items() if any(map(math.isfinite, _column(points)))}
    order = sorted(found, key=lambda number: best(filter(math.isfinite, _column(found[number]))), reverse=best is max)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel=f"validation {metric}")
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
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    plot.update_layout(
        template="plotly_white",
        xaxis_title="step",
        yaxis_title=f"validation {metric}",
        legend={"traceorder": "reversed"},
    )
    caption = (
        f"Validation {metric} of every trial; the best {min(NAMED_CURVES, len(order))} are coloured, best first in the "
        "legend, and pruned trials are dashed."
    )
    return Picture("learning_curves", "Learning curves", caption, figure, plot)


def _column(points: list[tuple[int, float]]) -> list[float]:
    return [value for _, value in points]


def _pareto_front(copy: optuna.Study, names: list[str], directions: list[str]) -> Picture:
    """Every complete trial by its first two objectives; those that none surpasses in all are marked."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=names[1], ylabel=names[0])
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
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    wanted = ", ".join(f"{name} ({direction}d)" for name, direction in zip(names, directions, strict=True))
    interactive = optuna.visualization.plot_pareto_front(copy, target_names=names) if len(names) <= 3 else None
    assert interactive is not None  # there are three objectives
    interactive.update_layout(title=None, template="plotly_white")
    return Picture(
        "pareto_front",
        "Pareto front",
        f"{wanted.capitalize()}. Red: no other trial is better in every one.",
        figure,
        interactive,
    )
