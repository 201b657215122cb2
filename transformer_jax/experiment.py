"""A whole experiment's configuration, checked, and the model it describes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from transformer_jax.config import build
from transformer_jax.data.bucketing import BatchingConfig
from transformer_jax.data.datasets import DatasetConfig
from transformer_jax.data.tokenizers import TokenizerConfig, TokenizerPair
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.errors import UserError
from transformer_jax.models.transformer import EncoderDecoder, TransformerConfig
from transformer_jax.sharding import MeshConfig
from transformer_jax.training.checkpoints import EVALUATED
from transformer_jax.training.guard import GuardConfig
from transformer_jax.training.initialization import InitializeConfig
from transformer_jax.training.optimizers import OptimizerConfig
from transformer_jax.training.tasks import TaskConfig

VOCABULARIES = ("source_vocab_size", "target_vocab_size")


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
    """When checkpoints are saved and which stay. The best are those of the evaluation's metric."""

    every_steps: int
    keep_latest: int
    keep_best: int

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 1), ("keep_latest", 1), ("keep_best", 0)):
            if getattr(self, name) < least:
                raise UserError(f"checkpoints.{name} is {getattr(self, name)}; it must be at least {least}.")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on the validation split during training, and with which parameters."""

    every_steps: int
    weights: Literal["latest", "ema", "average"]
    average: int  # weights "average": the mean of the current parameters and those of the latest average-1 checkpoints
    decode: Literal["none", "greedy", "beam"]
    max_sentences: int  # translated for BLEU; 0: all
    metric: Literal["bleu", "loss"]  # which says what is best
    patience: int  # evaluations without a new best after which training stops; 0: never

    def __post_init__(self) -> None:
        for name, least in (("every_steps", 1), ("average", 1), ("max_sentences", 0), ("patience", 0)):
            if getattr(self, name) < least:
                raise UserError(f"evaluation.{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.metric == "bleu" and self.decode == "none":
            raise UserError("evaluation.metric='bleu' needs translations: set evaluation.decode to 'greedy' or 'beam'.")


@dataclass(frozen=True)
class RunConfig:
    """One section for each part; ``model`` holds TransformerConfig without the vocabularies, which tokenizers give."""

    name: str
    seed: int
    dataset: DatasetConfig
    tokenizer: TokenizerConfig
    batching: BatchingConfig
    model: dict[str, Any]
    task: TaskConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    guard: GuardConfig
    initialize: InitializeConfig
    checkpoints: CheckpointConfig
    evaluation: EvaluationConfig
    decoding: DecodingConfig
    mesh: MeshConfig

    @property
    def evaluated_tree(self) -> str:
        """The part of a saved state that evaluation used: "params", "ema_params", or a copy beside the state."""
        if self.evaluation.weights == "ema":
            return "ema_params"
        own = self.evaluation.weights == "latest" and self.optimizer.name != "schedule_free_adamw"
        return "params" if own else EVALUATED


def parse_config(mapping: Any) -> RunConfig:
    """Checks a whole config before any work.

    Raises: UserError for an unknown, missing or wrongly typed key, and for values that cannot go together.
    """
    config = build(RunConfig, mapping)
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}; it must be at least 0.")
    for name in VOCABULARIES:
        if name in config.model:
            raise UserError(f"model.{name} is set by the tokenizer; remove it and set tokenizer.vocab_size.")
    tokenizer, tie = config.tokenizer, config.model.get("tie_embeddings", TransformerConfig.tie_embeddings)
    if tie in ("source_target", "all") and not tokenizer.joint:
        raise UserError(
            f"model.tie_embeddings={tie!r} shares one table between source and target, but tokenizer.joint=False makes "
            "two vocabularies; set tokenizer.joint=True, or model.tie_embeddings to 'target_output' or 'none'."
        )
    model = model_config(config, tokenizer.vocab_size, tokenizer.vocab_size)
    for section, name in (
        ("batching", "max_length"),
        ("decoding", "max_source_length"),
        ("decoding", "max_target_length"),
    ):
        length = getattr(getattr(config, section), name)
        if length > model.max_length:
            raise UserError(
                f"{section}.{name}={length} exceeds model.max_length={model.max_length}; "
                "lower the one or raise the other."
            )
    evaluation = config.evaluation
    if evaluation.weights == "ema" and not config.training.ema_decay:
        raise UserError("evaluation.weights='ema' needs an average: set training.ema_decay, for example to 0.999.")
    if evaluation.weights == "average" and config.checkpoints.keep_latest < evaluation.average - 1:
        raise UserError(
            f"evaluation.average={evaluation.average} needs {evaluation.average - 1} earlier checkpoints, but "
            f"checkpoints.keep_latest is {config.checkpoints.keep_latest}; raise it."
        )
    return config


def model_config(config: RunConfig, source_vocab_size: int, target_vocab_size: int) -> TransformerConfig:
    """The model's hyperparameters, complete."""
    sizes = dict(zip(VOCABULARIES, (source_vocab_size, target_vocab_size), strict=True))
    return build(TransformerConfig, {**config.model, **sizes}, "model")


def make_model(config: RunConfig, tokenizers: TokenizerPair) -> EncoderDecoder:
    """The model for the vocabularies that the tokenizers turned out to have."""
    return EncoderDecoder(model_config(config, tokenizers.source.vocab_size, tokenizers.target.vocab_size))


def plain(value: Any) -> Any:
    """A config as JSON can hold it: dicts, lists, numbers, strings, None."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
