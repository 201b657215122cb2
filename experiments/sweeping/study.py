"""A study: its folder, Optuna's record of it, and which trial a worker trains next.

    FOLDER/study.json       the settings
    FOLDER/journal.log      Optuna's record, unless it is in a database
    FOLDER/trials/0007/     the run of trial 7, as any other run
    FOLDER/claims/0007      locked by the worker that trains trial 7
    FOLDER/alive/           a sign of life of each worker
    FOLDER/workers/         what workers print
    FOLDER/report/          the report

Optuna knows a trial as running from its first step to its last, also when its worker died. The lock tells the two
apart: it is free as soon as its holder is dead, and who gets it goes on with the trial. Trials are chosen by one worker
at a time, so that none is chosen twice and none too many.
"""

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from experiments.sweeping.locks import FileLock, JournalLock
from experiments.sweeping.settings import FILE, JOURNAL, Settings, joined
from experiments.sweeping.space import every_point, override
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config

PROXY_SECONDS = 20
LOCK = ".lock"
BEFORE_SETTINGS = {LOCK, JOURNAL, f".{JOURNAL}.lock"}
"""What a start that was killed, or refused for its storage, leaves behind."""
POINT, SEED, GRID, OVERRIDES, REASON = "point", "seed", "grid", "overrides", "reason"
"""Attributes of a trial: the number of its point's first trial, its seed, its place in the grid, its changes, and why
it failed."""


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone may train, until released."""

    trial: optuna.Trial
    overrides: dict[str, Any]
    config: dict[str, Any]
    workdir: Path
    lock: FileLock

    @property
    def number(self) -> int:
        return self.trial.number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class Study:
    """An existing study. Made by `create_or_join` or `open`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.settings = folder, settings
        self._space = settings.search_space
        self._grid = every_point(self._space) if settings.sampler == "grid" else []
        try:
            self.optuna = optuna.create_study(
                storage=_storage(folder, settings.storage),
                study_name=settings.name,
                directions=settings.directions,
                pruner=_pruner(settings),
                load_if_exists=True,
            )
        except (ImportError, OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise UserError(f"The storage {settings.storage} of {folder} cannot be opened: {error}") from error

    @classmethod
    def create_or_join(cls, folder: str | Path, wanted: Settings) -> Self:
        """Starts a study, or joins the one that is there, with more points or seeds if more are wanted.

        Raises: UserError if the folder holds another study or anything else.
        """
        folder = Path(folder).absolute()
        there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if FILE not in there and there - BEFORE_SETTINGS:
            raise UserError(f"{folder} is not empty and holds no study. Choose another --study.")
        with FileLock.take(folder / LOCK):
            settings = joined(Settings.load(folder), wanted) if (folder / FILE).exists() else wanted
            study = cls(folder, settings)  # before the settings are saved: a storage may not be there
            settings.save(folder)
        return study

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Raises: UserError if there is no study in the folder."""
        folder = Path(folder).absolute()
        return cls(folder, Settings.load(folder))

    def workdir(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"

    def trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    def config_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """The config of a trial, data only."""
        return override(self.settings.config, trial.user_attrs[OVERRIDES])

    def claim(self) -> Claim | None:
        """The next trial to train: one that a dead worker left, else a new one; None when there is none.

        A trial that others are training is none to claim; if its worker dies, a later call gives it.
        """
        with FileLock.take(self.folder / LOCK):
            trials = self.trials()
            for trial in trials:
                if trial.state is TrialState.RUNNING and (lock := self._lock_if_free(trial.number)):
                    self.optuna.sampler = _sampler(self.settings, trial.number)
                    return self._claimed(optuna.Trial(self.optuna, trial._trial_id), lock)
            if not any(trial.state is TrialState.WAITING for trial in trials) and not self._plan(trials):
                return None
            self.optuna.sampler = _sampler(self.settings, len(trials))
            new = self.optuna.ask()
            taken = self._lock_if_free(new.number)
            assert taken is not None, f"trial {new.number} is new, and yet locked"
            return self._claimed(new, taken)

    def _plan(self, trials: list[FrozenTrial]) -> bool:
        """Whether there is a trial to add; puts what is known of it into Optuna's queue."""
        members = Counter(trial.user_attrs.get(POINT, trial.number) for trial in trials)
        for point, count in members.items():
            first = trials[point]
            # A point that failed or was pruned with its first seed is given no others.
            if count < self.settings.seeds and first.state in (TrialState.RUNNING, TrialState.COMPLETE):
                seed = self.settings.config["seed"] + count
                self.optuna.enqueue_trial(first.params, user_attrs={POINT: point, SEED: seed})
                return True
        if self.settings.sampler == "grid":
            tried = {trial.user_attrs.get(GRID) for trial in trials}
            for place, params in enumerate(self._grid):
                if place not in tried:
                    self.optuna.enqueue_trial(params, user_attrs={GRID: place})
                    return True
            return False
        return len(members) < self.settings.points

    def _claimed(self, trial: optuna.Trial, lock: FileLock) -> Claim:
        """Completes what the trial's record says of it; a worker may have died in the middle of that."""
        try:
            if OVERRIDES not in trial.user_attrs:
                overrides = {**self._space(trial)}
                overrides.setdefault("seed", trial.user_attrs.get(SEED, self.settings.config["seed"]))
                if POINT not in trial.user_attrs:
                    trial.set_user_attr(POINT, trial.number)
                trial.set_user_attr(OVERRIDES, overrides)
            overrides = trial.user_attrs[OVERRIDES]
            config = override(self.settings.config, overrides)
        except BaseException as error:
            if isinstance(error, UserError):  # a point that cannot be made is not left for every later worker
                trial.set_user_attr(REASON, str(error))
                self.optuna.tell(trial.number, state=TrialState.FAIL)
            lock.release()
            raise
        return Claim(trial, overrides, config, self.workdir(trial.number), lock)

    def _lock_if_free(self, number: int) -> FileLock | None:
        return FileLock.take_if_free(self.folder / "claims" / f"{number:04d}")


def _storage(folder: Path, storage: str) -> BaseStorage:
    if storage == JOURNAL:
        journal = folder / JOURNAL
        return JournalStorage(JournalFileBackend(str(journal), JournalLock(journal)))
    if storage.startswith("grpc://"):
        host, _, port = storage.removeprefix("grpc://").rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"--storage={storage}: write grpc://HOST:PORT.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            proxy = GrpcStorageProxy(host=host, port=int(port))
        proxy.wait_server_ready(timeout=PROXY_SECONDS)
        return proxy
    if "://" not in storage:
        raise UserError(
            f"--storage={storage}: write a database URL such as postgresql://USER@HOST/NAME, or grpc://HOST:PORT; "
            "without it the study has a journal file in its folder."
        )
    return get_storage(storage)


def _sampler(settings: Settings, number: int) -> BaseSampler:
    """A sampler for one trial. Its seed is of that trial: workers that share a seed would all draw the same.

    But a quasi-random sequence is one for all, and its sampler counts in the storage where it is.
    """
    seed = settings.config["seed"]
    if settings.sampler == "quasi_random":
        return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    own = (seed * 1_000_003 + number) % 2**32
    return TPESampler(seed=own, constant_liar=True) if settings.sampler == "tpe" else RandomSampler(seed=own)


def _pruner(settings: Settings) -> optuna.pruners.BasePruner:
    config = parse_config(settings.config)
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4)
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=config.evaluation.every_steps, max_resource=config.training.total_steps
        )
    return optuna.pruners.NopPruner()
