"""A whole experiment's configuration: the sections that every family has, and how all of it is checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformer_jax.config import build
from transformer_jax.errors import UserError
from transformer_jax.families.registry import FAMILIES, find_family
from transformer_jax.sharding import MeshConfig
from transformer_jax.training.checkpoints import EVALUATED
from transformer_jax.training.guard import GuardConfig
from transformer_jax.training.initialization import InitializeConfig
from transformer_jax.training.metric_writer import best_mode
from transformer_jax.training.optimizers import OptimizerConfig
from transformer_jax.training.tracking import TrackingConfig


@dataclass(frozen=True)
class TrainingConfig:
    """How long, and in what portions."""

    total_steps: int
    accumulation: int  # microbatches that a batch is split into on each device
    ema_decay: float  # of the moving average of parameters; 0: none is kept
    log_every_steps: int

    def __post_init__(self) -> None:
        for name in ("total_steps", "accumulation", "log_every_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay is {self.ema_decay}; it must be at least 0 (no average) and below 1.")


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are saved, besides at evaluations, and which stay, the best by the evaluation's metric."""

    every_steps: int
    keep_latest: int
    keep_best: int

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 1), ("keep_latest", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise UserError(f"checkpoints.{name} is {getattr(self, name)}; it must be at least {least}.")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the validation split during training, and with which parameters. Families add to it."""

    every_steps: int
    weights: Literal["latest", "ema", "average"]
    average: int  # weights "average": the mean of the current parameters and those of the latest average-1 checkpoints
    metric: str  # of the family's evaluator, which says what is best
    patience: int  # evaluations without a new best after which training stops; 0: never

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 1), ("average", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise UserError(f"evaluation.{name} is {getattr(self, name)}; it must be at least {least}.")

    @property
    def best_mode(self) -> Literal["max", "min"]:
        """Which value of the metric is best."""
        return best_mode(self.metric)


@dataclass(frozen=True)
class RunConfig:
    """What the training loop must know of every run. A family's config adds the sections that are its own."""

    name: str
    family: str
    seed: int
    optimizer: OptimizerConfig
    training: TrainingConfig
    guard: GuardConfig
    initialize: InitializeConfig
    checkpoints: CheckpointConfig
    evaluation: EvaluationConfig
    mesh: MeshConfig
    tracking: TrackingConfig

    @property
    def rows(self) -> tuple[str, int]:
        """The key whose value divides the rows of every batch, and that value."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises: UserError for values of the family's sections that cannot go together."""
        raise NotImplementedError

    @property
    def evaluated_tree(self) -> str:
        """The part of a saved state that evaluation used: "params", "ema_params", or a copy beside the state."""
        if self.evaluation.weights == "ema":
            return "ema_params"
        own = self.evaluation.weights == "latest" and self.optimizer.name != "schedule_free_adamw"
        return "params" if own else EVALUATED


def parse_config(mapping: Any) -> Any:
    """Checks a whole config before any work.

    Returns: the `RunConfig` of the family that ``mapping["family"]`` names.
    Raises: UserError for an unknown, missing or wrongly typed key, and for values that cannot go together.
    """
    name = dict(mapping.items()).get("family") if hasattr(mapping, "items") else None
    if name is None:
        raise UserError(f"The config lacks the key family. Add it; it is one of {', '.join(FAMILIES)}.")
    config: RunConfig = build(find_family(name).config, mapping)
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}; it must be at least 0.")
    config.check()
    evaluation = config.evaluation
    if evaluation.weights == "ema" and not config.training.ema_decay:
        raise UserError("evaluation.weights='ema' needs an average: set training.ema_decay, for example to 0.999.")
    if evaluation.weights == "average" and config.checkpoints.keep_latest < evaluation.average - 1:
        raise UserError(
            f"evaluation.average={evaluation.average} needs {evaluation.average - 1} earlier checkpoints, but "
            f"checkpoints.keep_latest is {config.checkpoints.keep_latest}; raise it."
        )
    return config


def plain(value: Any) -> Any:
    """A config as JSON can hold it: dicts, lists, numbers, strings, None."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
