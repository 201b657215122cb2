"""Trains a point of a study again, with more seeds: a study of its own, of one point and no search."""

import uuid
from dataclasses import dataclass

from optuna.trial import TrialState

from experiments.sweeping.ranking import Point, best_front, ranked
from experiments.sweeping.settings import JOURNAL, Settings
from experiments.sweeping.space import override
from experiments.sweeping.study import OVERRIDES, Study
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class Retrained:
    """One seed: what it came to in the sweep, None if that had no such trial, and what it came to again."""

    seed: int
    before: tuple[float, ...] | None
    after: tuple[float, ...]


def choose(study: Study, number: int | None) -> Point:
    """The best point, or that of a trial.

    Raises: UserError for a number without a complete trial, and where several points are the best in their way.
    """
    if number is not None:
        for point in ranked(study):
            if number in [trial.number for trial in point.trials] and point.means:
                return point
        raise UserError(f"--trial={number}: {study.folder} has no such trial that is complete.")
    front = best_front(study)
    if len(front) > 1:
        numbers = ", ".join(str(point.number) for point in front)
        raise UserError(
            f"No trial of {study.folder} is the best in all of {', '.join(study.settings.objectives)}: choose one of "
            f"the trials {numbers}, as --trial={front[0].number}."
        )
    return front[0]


def retraining(study: Study, point: Point, seeds: int) -> Study:
    """The study that trains a point anew with ``seeds`` seeds; the first ones are those it had before.

    It is in retrained/trial-NUMBER of the study's folder; the runs are in its trials/.
    """
    settings = Settings(
        name=f"{study.settings.name}-{point.number}-{uuid.uuid4().hex[:8]}",
        storage=JOURNAL,
        config=override(
            study.settings.config, {**point.overrides, "seed": point.trials[0].user_attrs[OVERRIDES]["seed"]}
        ),
        config_file="",
        dimensions={},
        sampler="grid",
        pruner="none",
        objectives=study.settings.objectives,
        points=1,
        seeds=seeds,
        cores=study.settings.cores,
    )
    return Study.create_or_join(study.folder / "retrained" / f"trial-{point.number:04d}", settings)


def compared(point: Point, again: Study) -> list[Retrained]:
    """What is complete of a retraining, beside what the same seeds came to before."""
    before = {
        trial.user_attrs[OVERRIDES]["seed"]: tuple(trial.values)
        for trial in point.trials
        if trial.state is TrialState.COMPLETE
    }
    done = [trial for trial in again.trials() if trial.state is TrialState.COMPLETE]
    rows = [(trial.user_attrs[OVERRIDES]["seed"], tuple(trial.values)) for trial in done]
    return [Retrained(seed, before.get(seed), after) for seed, after in sorted(rows)]
