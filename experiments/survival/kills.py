"""Runs that are killed at random moments, started again, and compared with one that was not."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from experiments.survival.tiny_run import TOTAL_STEPS, contents, finish, start, write_data
from transformer_jax.errors import RESUME, UserError
from transformer_jax.training.metric_writer import read_metrics

KILLS_A_RUN = 10
MOMENTS = ("starting", "training", "saving")
LEAVE_SECONDS = 60.0
"""What the others of a killed process have to notice, and a run to save after SIGTERM."""
GIVE_UP_SECONDS = 360.0
"""A process that starts waits five minutes for the others to join."""
ATTEMPTS = 5


@dataclass(frozen=True)
class Kill:
    """One kill: what was sent when, to which processes, how all of them ended, and after how long."""

    number: signal.Signals
    moment: str
    targets: tuple[int, ...]
    statuses: tuple[int, ...]
    seconds: float


@dataclass
class Tortured:
    """A run that was killed, and whether it ended as the untouched one did."""

    path: Path
    processes: int
    kills: list[Kill] = field(default_factory=list)
    same: bool = False
    problem: str = ""


def references(folder: Path, counts: Sequence[int], pool: Executor) -> dict[int, Path]:
    """A run without any kill for each number of processes."""
    write_data(folder / "data")

    def one(processes: int) -> Path:
        run = folder / f"untouched-{processes}"
        with (folder / f"{run.name}.log").open("w") as log:
            statuses = finish(run, processes, log)
            for _ in range(ATTEMPTS):
                if _by_chance(statuses):
                    shutil.rmtree(run)
                    statuses = finish(run, processes, log)
        if any(statuses):
            raise UserError(f"The untouched run of {processes} process(es) ended with {statuses}: see {run}.log.")
        return run

    return dict(zip(counts, pool.map(one, counts), strict=True))


def torture(folder: Path, untouched: dict[int, Path], kills: int, seed: int, pool: Executor) -> list[Tortured]:
    """Kills runs until there have been that many kills, split evenly over the process counts."""
    wanted = {count: contents(run) for count, run in untouched.items()}
    missing = {count: kills // len(wanted) + (i < kills % len(wanted)) for i, count in enumerate(wanted)}
    tortured: list[Tortured] = []
    while any(missing.values()):  # a run may be complete before all of its kills
        jobs: list[tuple[Path, int, int]] = []
        for count, left in missing.items():
            for size in [KILLS_A_RUN] * (left // KILLS_A_RUN) + [left % KILLS_A_RUN] * bool(left % KILLS_A_RUN):
                jobs.append((folder / f"killed-{count}-{len(tortured) + len(jobs)}", count, size))

        def one(job: tuple[Path, int, int]) -> Tortured:
            run, count, size = job
            return _kill_and_finish(Tortured(run, count), size, random.Random(f"{seed} {run.name}"), wanted[count])

        for run in pool.map(one, jobs):
            tortured.append(run)
            missing[run.processes] -= len(run.kills)
    return tortured


def _kill_and_finish(run: Tortured, kills: int, rng: random.Random, wanted: dict[str, str]) -> Tortured:
    with run.path.with_suffix(".log").open("w") as log:
        while len(run.kills) < kills:
            started = start(run.path, run.processes, log)
            try:
                # Most steps are left for the kills to come.
                until = TOTAL_STEPS * (len(run.kills) + 1) / (kills + 1)
                kill = _kill(run, started, rng, until)
            finally:
                for process in started:
                    process.kill()
                    process.wait()
            if kill is None:
                break
            run.kills.append(kill)
            print(f"{run.path.name}: {kill.number.name} while {kill.moment}, ended with {kill.statuses}", flush=True)
        statuses = finish(run.path, run.processes, log)
        for _ in range(ATTEMPTS):
            if _by_chance(statuses):
                statuses = finish(run.path, run.processes, log)
    if any(statuses):
        run.problem = f"ended with {statuses}"
        return run
    found = contents(run.path)
    different = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    run.same, run.problem = not different, ", ".join(different[:3])
    return run


def _by_chance(statuses: Sequence[int]) -> bool:
    """Whether a run was ended from outside: a machine too busy for heartbeats kills on its own."""
    return any(statuses) and all(status in (0, RESUME) or status < 0 for status in statuses)


def _kill(run: Tortured, started: list[subprocess.Popen[str]], rng: random.Random, until: float) -> Kill | None:
    moment = rng.choices(MOMENTS, (1, 2, 2))[0]
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    # A scheduler tells all; a machine dies alone.
    everyone = tuple(range(len(started)))
    targets = everyone if rng.random() < 0.5 else (rng.choice(everyone),)
    if not _wait_for(moment, run.path, started, rng, until):
        return None
    for index in targets:
        started[index].send_signal(number)
    begin = time.monotonic()
    while any(process.poll() is None for process in started) and time.monotonic() < begin + GIVE_UP_SECONDS:
        time.sleep(0.01)
    seconds = time.monotonic() - begin
    for process in started:
        process.kill()  # what has not ended by now is in the table by its seconds
    return Kill(number, moment, targets, tuple(process.wait() for process in started), seconds)


def _wait_for(moment: str, run: Path, started: list[subprocess.Popen[str]], rng: random.Random, until: float) -> bool:
    """Returns at a random time within the moment; False if the run ended before it."""
    if moment == "starting":
        time.sleep(rng.uniform(0.0, 5.0))
        return all(process.poll() is None for process in started)
    begin, first, saves = time.monotonic(), _step(run), rng.randint(1, 3)
    seen: set[str] = set()
    while all(process.poll() is None for process in started) and time.monotonic() < begin + GIVE_UP_SECONDS:
        step = _step(run)
        if moment == "training" and step > first and (step >= until or rng.random() < 0.02):
            time.sleep(rng.uniform(0.0, 0.05))
            return True
        if moment == "saving":
            seen |= {entry.name for entry in (run / "checkpoints").glob(".unfinished-*")}
            if len(seen) >= saves:
                time.sleep(rng.uniform(0.0, 0.02))
                return True
        time.sleep(0.001)
    return False


def _step(run: Path) -> int:
    try:
        return max((row["step"] for row in read_metrics(run / "metrics.jsonl")), default=0)
    except UserError:
        return 0
