"""A worker: trains one trial after another until none is left to take."""

import math
from collections.abc import Mapping
from typing import Literal

import jax
from optuna.trial import TrialState

from experiments.sweeping.locks import Presence
from experiments.sweeping.objectives import measure
from experiments.sweeping.study import REASON, Claim, Study
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config
from transformer_jax.training.loop import train
from transformer_jax.training.saved_steps import SavedSteps

STARTS, PRUNED = "starts", "pruned_at"
"""Attributes of a trial: the steps it was started from, the step at which it was judged, why it failed."""
MOST_STARTS = 4
MOST_FAILURES = 3

Ending = Literal["finished", "pruned", "failed", "interrupted"]


def work(study: Study) -> bool:
    """Trains trials of the study until there is none to claim.

    Returns: whether that is so; False when a signal ended it, and the trial waits to be continued.
    Raises: UserError when one trial after another fails.
    """
    failures = 0
    with Presence(study.folder / "alive"):
        while claim := study.claim():
            with claim:
                print(f"trial {claim.number}: {describe(claim.overrides)}  ({claim.workdir})", flush=True)
                ending = _run(study, claim)
            print(f"trial {claim.number}: {ending}{_values(study, claim.number)}", flush=True)
            if ending == "interrupted":
                return False
            failures = failures + 1 if ending == "failed" else 0
            if failures == MOST_FAILURES:
                reason = study.trials()[claim.number].user_attrs[REASON]
                raise UserError(f"{failures} trials in a row failed. The last one: {reason}")
            jax.clear_caches()  # the next trial's programs are others
    return True


def describe(overrides: Mapping[str, object]) -> str:
    return "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in overrides.items()
    )


def _run(study: Study, claim: Claim) -> Ending:
    """Trains a trial, or continues it, and tells Optuna how it ended."""
    trial, objectives = claim.trial, study.settings.objectives
    started = trial.user_attrs.get(STARTS, [])
    step = SavedSteps(claim.workdir / "checkpoints").latest_step() or 0
    if started[-MOST_STARTS:] == [step] * MOST_STARTS:
        return _fail(study, claim, f"{MOST_STARTS} workers died of it at step {step}, one after the other.")
    trial.set_user_attr(STARTS, [*started, step])
    try:
        evaluation = parse_config(claim.config).evaluation
        reported = set(study.trials()[claim.number].intermediate_values)

        def judge(step: int, metrics: Mapping[str, float]) -> bool:
            """Whether the trial is not worth going on with."""
            if objectives == ("quality",) and step not in reported:
                trial.report(metrics[evaluation.metric], step)
            if study.settings.pruner == "none" or not trial.should_prune():
                return False
            trial.set_user_attr(PRUNED, step)
            return True

        finished = PRUNED not in trial.user_attrs and train(claim.config, claim.workdir, judge).finished
        if PRUNED in trial.user_attrs and not finished:
            study.optuna.tell(claim.number, state=TrialState.PRUNED)
            return "pruned"
        if not finished:
            return "interrupted"
        values = measure(claim.workdir, objectives, evaluation)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        # Settings that cannot be, or too large for the device: that is this trial's result, and others may do.
        return _fail(study, claim, str(error))
    if any(map(math.isnan, values)):
        return _fail(study, claim, f"{', '.join(objectives)} came out as {values}: training diverged.")
    study.optuna.tell(claim.number, values)
    return "finished"


def _fail(study: Study, claim: Claim, reason: str) -> Ending:
    claim.trial.set_user_attr(REASON, reason)
    study.optuna.tell(claim.number, state=TrialState.FAIL)
    return "failed"


def _values(study: Study, number: int) -> str:
    trial = study.trials()[number]
    if trial.state is TrialState.FAIL:
        return f": {trial.user_attrs[REASON]}"
    values = zip(study.settings.objectives, trial.values or (), strict=False)
    return "".join(f"  {name} {value:.6g}" for name, value in values)
