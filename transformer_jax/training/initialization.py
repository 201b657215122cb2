"""Starting from the parameters of another run, whole or in part, with a report of what was taken and what was not."""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax.config import differences
from transformer_jax.distributed import is_main
from transformer_jax.errors import UserError
from transformer_jax.run_directory import RunDirectory, write_json
from transformer_jax.training.checkpoints import EVALUATED, Checkpoints
from transformer_jax.training.digests import digests
from transformer_jax.training.metric_writer import best_mode
from transformer_jax.training.step import TrainState, parameter_boxes
from transformer_jax.training.tasks import Task


@dataclass(frozen=True)
class InitializeConfig:
    """Which parameters a new run takes from another one. A run that continues takes its own checkpoint instead."""

    run: str  # the other run's directory; "": none
    checkpoint: str  # best, latest, or a step
    parameters: tuple[str, ...]  # patterns of paths: "encoder/*"; "a/*=b/*": called b there
    tokenizer: bool  # take its tokenizers too, which the embeddings mean something with only

    def __post_init__(self) -> None:
        if self.run and not self.parameters:
            raise UserError("initialize.parameters is empty: give patterns of parameter paths, ('*',) for all.")
        for pattern in self.parameters:
            parts = pattern.split("=")
            if len(parts) > 2 or (len(parts) == 2 and not all(p.count("*") == 1 and p.endswith("*") for p in parts)):
                raise UserError(
                    f"initialize.parameters has {pattern!r}; with a name of its own there, a pattern is HERE/*=THERE/*."
                )

    def path_there(self, path: str) -> str | None:
        """What a parameter of the new run is called in the other one, by the first pattern that matches, if any."""
        for pattern in self.parameters:
            here, _, there = pattern.partition("=")
            if fnmatchcase(path, here):
                return there[:-1] + path[len(here) - 1 :] if there else path
        return None


@dataclass(frozen=True)
class Report:
    """Paths of parameters: those taken, those that match no pattern, and those that could not be taken, and why."""

    run: str
    taken: tuple[str, ...]
    left_out: tuple[str, ...]
    not_taken: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        total = len(self.taken) + len(self.left_out) + len(self.not_taken)
        lines = [
            f"initialised    {len(self.taken)} of {total} parameters from {self.run}; {len(self.left_out)} match no "
            f"pattern, {len(self.not_taken)} could not be taken"
        ]
        return "\n".join(lines + [f"               {path}: {why}" for path, why in self.not_taken.items()])


def take(config: InitializeConfig, wanted: Any, there: Any, foreign: set[str]) -> tuple[dict[str, np.ndarray], Report]:
    """Chooses parameters by path.

    Args:
      wanted: the new run's parameters, as arrays or shapes.
      there: the other run's parameters.
      foreign: paths of parameters that depend on a vocabulary, where the two runs have different ones.
    Returns: the arrays to take, by path, and the report.
    Raises: UserError when nothing can be taken.
    """
    source = _by_path(there)
    taken: dict[str, np.ndarray] = {}
    left_out, not_taken = [], {}
    for path, leaf in _by_path(wanted).items():
        there_called = config.path_there(path)
        if there_called is None:
            left_out.append(path)
        elif there_called not in source:
            not_taken[path] = "not in that run"
        elif source[there_called].shape != leaf.shape:
            not_taken[path] = f"shape {source[there_called].shape} there, {leaf.shape} here"
        elif path in foreign:
            not_taken[path] = "another vocabulary"
        else:
            taken[path] = np.asarray(source[there_called])
    report = Report(config.run, tuple(taken), tuple(left_out), not_taken)
    if not taken:
        paths = ", ".join(list(_by_path(wanted))[:5])
        raise UserError(
            f"initialize: nothing of {config.run} can be taken with the patterns {list(config.parameters)}. Paths here "
            f"are like {paths}.\n{report}"
        )
    return taken, report


def initialize(
    config: InitializeConfig, run: RunDirectory, task: Task, state: TrainState, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Report]:
    """The new state with what the config wants of the other run in it; writes the report to initialization.json.

    Raises: UserError when that run or its checkpoint is not there, or nothing of it can be taken.
    """
    other = RunDirectory.open(config.run)
    there = read_parameters(other, config.checkpoint, "initialize.checkpoint")
    foreign = set()
    if digests(run.tokenizer) != digests(other.tokenizer):
        boxes = _by_path(parameter_boxes(task), is_leaf=lambda x: hasattr(x, "names"))
        foreign = {path for path, box in boxes.items() if "vocab" in box.names}
    taken, report = take(config, state.params, there, foreign)
    if is_main():
        write_json(run.path / "initialization.json", report.as_json())
    return put(state, taken, optimizer), report


def adopt_tokenizer(config: InitializeConfig, run: RunDirectory) -> None:
    """Copies the other run's tokenizers into a new run, if the config wants them.

    Raises: UserError when they are not of the kind that the new run's config describes.
    """
    if not (config.run and config.tokenizer) or run.tokenizer.exists():
        return
    other = RunDirectory.open(config.run)
    changed = differences(other.config.get("tokenizer", {}), run.config.get("tokenizer", {}))
    if changed:
        raise UserError(
            f"initialize.tokenizer=True takes the tokenizers of {other.path}, but the configs differ (there -> here): "
            f"{'; '.join(changed)}. Set the same, or initialize.tokenizer=False to train new ones."
        )
    if other.tokenizer.is_dir():
        with run.new_tokenizer() as folder:
            shutil.copytree(other.tokenizer, folder, dirs_exist_ok=True)


def read_parameters(other: RunDirectory, choice: str, key: str) -> Any:
    """The parameters of a run's checkpoint "best", "latest" or a step; of the best one those that were evaluated.

    Args: key: where the choice is from.
    Raises: UserError when there is none such; names the key, and the steps that there are.
    """
    metric = other.config["evaluation"]["metric"]
    with Checkpoints(other.checkpoints, best_metric=metric, best_mode=best_mode(metric)) as checkpoints:
        best, latest = checkpoints.best_step(), checkpoints.latest_step()
        if choice == "best" and best is not None:
            weights = other.config["evaluation"]["weights"]
            parts = [EVALUATED, *(["ema_params"] if weights == "ema" else []), "params"]
            there = checkpoints.parts(best)
            return checkpoints.restore_parameters(best, next(part for part in parts if part in there))
        if choice in ("best", "latest") and latest is not None:
            return checkpoints.restore_parameters(latest)
        if choice.isdecimal() and int(choice) in checkpoints.steps():
            return checkpoints.restore_parameters(int(choice))
        raise UserError(
            f"{key}={choice!r}: {other.path} has the steps {checkpoints.steps()}; give best, latest or one of them."
        )


def put(state: TrainState, taken: dict[str, np.ndarray], optimizer: optax.GradientTransformation) -> TrainState:
    """A new state with these parameters; its average and its optimizer start from them. Shardings stay."""

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if name not in taken:
            return leaf
        value = taken[name].astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    params = jax.tree_util.tree_map_with_path(one, state.params)
    places = jax.tree.map(lambda leaf: leaf.sharding, state.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=places)(params)
    average = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return TrainState(state.step, params, opt_state, average, state.guard)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)}
