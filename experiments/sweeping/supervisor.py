"""Several workers on this machine: starts them, says how the study goes, and replaces those that are killed."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState

from experiments.sweeping.study import Study
from experiments.sweeping.worker import describe
from transformer_jax.errors import RESUME, UserError

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 5.0


@dataclass
class Worker:
    """A child process, and the file that it prints to."""

    process: "subprocess.Popen[str]"
    log: Path


def supervise(study: Study, count: int, command: Sequence[str]) -> bool:
    """Keeps ``count`` workers, each started by ``command``, until they find nothing more to do.

    Returns: whether they did; False when a signal ended them, and their trials wait to be continued.
    Raises: UserError with the end of its output when a worker fails.
    """
    started = 0

    def start() -> Worker:
        nonlocal started
        started += 1
        log = study.folder / "workers" / f"output-{time.strftime('%Y%m%d-%H%M%S')}-{started}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        return Worker(process, log)

    told: dict[int, TrialState] = {}
    with _stop_requests() as stop:
        workers = [start() for _ in range(count)]
        print(f"{count} workers; what they print is in {study.folder / 'workers'}", flush=True)
        try:
            while workers and not stop.is_set():
                stop.wait(POLL_SECONDS)
                _tell(study, told)
                for worker in [worker for worker in workers if worker.process.poll() is not None]:
                    status = worker.process.returncode
                    workers.remove(worker)
                    if status < 0:
                        print(f"a worker was killed by signal {-status}; another takes over", flush=True)
                        workers.append(start())
                    elif status == RESUME:
                        stop.set()
                    elif status:
                        raise UserError(f"A worker failed; the end of {worker.log}:\n{_end_of(worker.log)}")
        finally:
            _stop(workers)
        _tell(study, told)
        return not stop.is_set()


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stop(workers: Sequence[Worker]) -> None:
    """Lets the workers save. The signal is repeated, for a worker that was just between two trials."""
    while living := [worker for worker in workers if worker.process.poll() is None]:
        for worker in living:
            worker.process.terminate()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and any(worker.process.poll() is None for worker in living):
            time.sleep(0.1)


def _tell(study: Study, told: dict[int, TrialState]) -> None:
    """Prints what has changed since it was told."""
    trials = study.trials()
    ended, total = sum(trial.state.is_finished() for trial in trials), study.settings.points * study.settings.seeds
    for trial in trials:
        if trial.state is told.get(trial.number) or "overrides" not in trial.user_attrs:
            continue
        told[trial.number] = trial.state
        names = zip(study.settings.objectives, trial.values or (), strict=False)
        values = "".join(f"  {name} {value:.5g}" for name, value in names)
        text = describe(trial.user_attrs["overrides"])
        print(f"[{ended}/{total}] trial {trial.number}: {trial.state.name.lower()}{values}  {text}", flush=True)


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
