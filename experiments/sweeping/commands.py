"""What the commands about studies share: working on one, here or in worker processes, and what is said at the end."""

import sys
from collections.abc import Callable
from pathlib import Path

from optuna.trial import TrialState

from experiments.sweeping.devices import take_devices
from experiments.sweeping.study import Study
from transformer_jax.host import prepare_cpu

WORKER = Path(__file__).resolve().parents[1] / "sweep_worker.py"


def run_study(study: Study, workers: int) -> bool:
    """Trains until there is nothing more to take: in this process, or in several.

    With one worker this may restart the program, once, before anything is trained.

    Returns: False when a signal ended it.
    """
    if workers > 1:
        from experiments.sweeping.supervisor import supervise

        return supervise(study, workers, [sys.executable, str(WORKER), str(study.folder)])
    if taken := take_devices(study.settings.cores):
        print(f"worker on {taken}", flush=True)
    prepare_cpu(study.settings.cores)
    from experiments.sweeping.worker import work

    return work(study)


def say_how_it_stands(study: Study, then: Callable[[], None]) -> None:
    """Says what is still to come from others, or does what comes at the end of a study."""
    running = [trial.number for trial in study.trials() if trial.state is TrialState.RUNNING]
    if running:
        print(
            f"Nothing is left to start. Other workers are at trial {', '.join(map(str, running))}; if one of them "
            f"dies, python experiments/sweep_worker.py {study.folder} goes on with its trial."
        )
    else:
        then()
