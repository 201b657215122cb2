"""Which points of a study are the best, as the mean over their seeds."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from experiments.sweeping.study import OVERRIDES, POINT, Study
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class Point:
    """The trials that differ in their seed alone."""

    number: int  # of its first trial
    overrides: dict[str, Any]  # without the seed
    trials: list[FrozenTrial]  # in order of their seeds
    means: tuple[float, ...]  # of each objective over the trials that are complete; empty if none is
    deviations: tuple[float, ...]  # sample standard deviations over them; NaN for a single one

    @property
    def complete(self) -> bool:
        return all(trial.state is TrialState.COMPLETE for trial in self.trials)


def ranked(study: Study) -> list[Point]:
    """The points, best first: those of which every trial is complete, then the others.

    With several objectives, those that no other point surpasses in all of them (the Pareto front) come first.
    """
    members: dict[int, list[FrozenTrial]] = {}
    for trial in study.trials():
        if OVERRIDES in trial.user_attrs:
            members.setdefault(trial.user_attrs[POINT], []).append(trial)
    points = [_point(number, trials) for number, trials in members.items()]
    signs = [1 if direction == "minimize" else -1 for direction in study.settings.directions]

    def costs(point: Point) -> tuple[float, ...]:
        return tuple(sign * mean for sign, mean in zip(signs, point.means, strict=True))

    def key(point: Point) -> tuple[bool, bool, int, tuple[float, ...]]:
        if not point.means:
            return True, True, 0, ()
        surpassing = sum(_surpasses(costs(other), costs(point)) for other in points if other.means)
        return False, not point.complete, surpassing, costs(point)

    return sorted(points, key=key)


def best_front(study: Study) -> list[Point]:
    """The best point; with several objectives, all that no other surpasses.

    Raises: UserError while no point is complete.
    """
    points = [point for point in ranked(study) if point.means and point.complete]
    if not points:
        raise UserError(f"{study.folder} has no complete trial yet; run its workers first.")
    if len(points[0].means) == 1:
        return points[:1]
    signs = [1 if direction == "minimize" else -1 for direction in study.settings.directions]
    costs = [tuple(sign * mean for sign, mean in zip(signs, point.means, strict=True)) for point in points]
    return [point for point, own in zip(points, costs, strict=True) if not any(_surpasses(c, own) for c in costs)]


def _surpasses(costs: tuple[float, ...], others: tuple[float, ...]) -> bool:
    return costs != others and all(cost <= other for cost, other in zip(costs, others, strict=True))


def _point(number: int, trials: list[FrozenTrial]) -> Point:
    trials = sorted(trials, key=lambda trial: trial.user_attrs[OVERRIDES]["seed"])
    overrides = {key: value for key, value in trials[0].user_attrs[OVERRIDES].items() if key != "seed"}
    columns = list(zip(*[trial.values for trial in trials if trial.state is TrialState.COMPLETE], strict=True))
    deviations = tuple(statistics.stdev(column) if len(column) > 1 else math.nan for column in columns)
    return Point(number, overrides, trials, tuple(map(statistics.fmean, columns)), deviations)
