"""Weights & Biases and MLflow, beside the metrics that a run always keeps in its own directory.

Each is an extra of the package, off unless the config names a project. Where they log to is theirs to say, by their own
environment variables: WANDB_MODE=offline and WANDB_ENTITY, MLFLOW_TRACKING_URI (default sqlite:///mlflow.db).
"""

import importlib.util
import json
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformer_jax.config import flatten
from transformer_jax.errors import UserError
from transformer_jax.run_directory import write_json

RECORD = "tracking.json"  # by which a resumed run continues the same entry there
FOLDERS = ("wandb",)  # what services make in a run directory
PARAMETERS_AT_ONCE = 100  # MLflow takes no more


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides the run directory. "" is nowhere."""

    wandb: str  # project
    mlflow: str  # experiment


class Tracker(Protocol):
    """What the metric writer needs of such a service. None of it may stop the training that it reports."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics by their full names, such as "train/loss"; floats that may be NaN or infinite."""
        ...

    def figure(self, step: int, name: str, path: Path) -> None:
        """A picture that has been saved at ``path``."""
        ...

    def close(self, failed: bool) -> None:
        """Sends what is left; ``failed``: training ended with an error."""
        ...


def check_installed(config: TrackingConfig) -> None:
    """Raises: UserError when a service is asked for whose package is not installed."""
    for name in ("wandb", "mlflow"):
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise UserError(
                f"tracking.{name}={getattr(config, name)!r} needs a package that is not installed: "
                f"pip install 'transformer_jax[{name}]', or set tracking.{name} to ''."
            )


def open_trackers(config: TrackingConfig, directory: Path, experiment: Mapping[str, Any]) -> list[Tracker]:
    """Starts, or continues, the run's entry in each service that the config names.

    Args: experiment: the resolved config, which is shown there.
    Raises: UserError when a service refuses or cannot be reached.
    """
    trackers: list[Tracker] = []
    try:
        if config.wandb:
            trackers.append(WandbTracker(config.wandb, directory, experiment))
        if config.mlflow:
            trackers.append(MlflowTracker(config.mlflow, directory, experiment))
    except UserError:
        for tracker in trackers:
            tracker.close(failed=True)
        raise
    return trackers


class WandbTracker:
    """A run in a project of Weights & Biases; offline it is a folder in the run directory, for `wandb sync`."""

    def __init__(self, project: str, directory: Path, experiment: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        identifier = _recorded(directory).get("wandb", secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=project,
                id=identifier,
                resume="allow",
                name=directory.name,
                dir=directory,
                config=flatten(experiment),
            )
        except wandb.Error as error:
            raise UserError(
                f"tracking.wandb={project!r}: Weights & Biases refuses: {error}. Log in with `wandb login`, or set "
                "WANDB_MODE=offline."
            ) from error
        _record(directory, "wandb", identifier)
        # A step of our own: W&B's may not go back, which after an interruption ours does.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def figure(self, step: int, name: str, path: Path) -> None:
        self._run.log({"step": step, name: self._wandb.Image(str(path))})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MlflowTracker:
    """A run in an experiment of MLflow. Metrics are sent in the background."""

    def __init__(self, experiment_name: str, directory: Path, experiment: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException

        self._metric, self._error = Metric, MlflowException
        self._sent: list[Any] = []
        try:
            self._client = MlflowClient()
            recorded = _recorded(directory).get("mlflow")
            if recorded is not None:
                self._run = recorded
                self._client.update_run(recorded, status="RUNNING")
                return
            found = self._client.get_experiment_by_name(experiment_name)
            home = found.experiment_id if found else self._client.create_experiment(experiment_name)
            self._run = self._client.create_run(home, run_name=directory.name).info.run_id
            parameters = [Param(key, str(value)) for key, value in flatten(experiment).items()]
            for i in range(0, len(parameters), PARAMETERS_AT_ONCE):
                self._client.log_batch(self._run, params=parameters[i : i + PARAMETERS_AT_ONCE])
        except MlflowException as error:
            raise UserError(
                f"tracking.mlflow={experiment_name!r}: MLflow refuses: {error}. Check MLFLOW_TRACKING_URI; "
                f"for a new entry there, remove {directory / RECORD}."
            ) from error
        _record(directory, "mlflow", self._run)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        entries = [self._metric(name, value, now, step) for name, value in metrics.items()]
        self._sent.append(self._client.log_batch(self._run, metrics=entries, synchronous=False))

    def figure(self, step: int, name: str, path: Path) -> None:
        try:
            self._client.log_artifact(self._run, str(path), "figures")
        except self._error as error:
            self._lost(error)

    def close(self, failed: bool) -> None:
        try:
            for operation in self._sent:
                operation.wait()
            self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")
        except self._error as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        print(f"MLflow did not take all of it ({error}); metrics.jsonl has everything.", file=sys.stderr)


def _recorded(directory: Path) -> dict[str, str]:
    file = directory / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _record(directory: Path, name: str, identifier: str) -> None:
    write_json(directory / RECORD, {**_recorded(directory), name: identifier})
