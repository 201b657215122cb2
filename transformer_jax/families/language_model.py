"""Language models: config sections, the model for a vocabulary, and the evaluator."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jax.sharding import Mesh

from transformer_jax.config import build
from transformer_jax.data.batches import EvaluationBatch
from transformer_jax.data.packing import PackedText, PackingConfig, cached_stream, evaluation_batches
from transformer_jax.data.text import TextDataset, TextDatasetConfig, load_text
from transformer_jax.data.text_tokenizers import (
    TextTokenizer,
    TextTokenizerConfig,
    load_text_tokenizer,
    save_text_tokenizer,
    tokenizer_digest,
    train_text_tokenizer,
)
from transformer_jax.decoding.generation import GenerationConfig
from transformer_jax.errors import UserError
from transformer_jax.experiment import EvaluationConfig, RunConfig
from transformer_jax.families.family import Experiment, Family
from transformer_jax.models.language_model import LanguageModel, LanguageModelConfig
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.evaluators import split_sums
from transformer_jax.training.language_modeling import LanguageModelTask, LanguageModelTaskConfig, bits_per_byte
from transformer_jax.training.step import make_evaluation_step


@dataclass(frozen=True)
class LanguageModelEvaluationConfig(EvaluationConfig):
    """Windows over the validation split."""

    metric: Literal["loss", "perplexity", "bits_per_byte"]
    stride: int  # tokens by which windows advance; batching.length: each token once, the fastest


@dataclass(frozen=True)
class LanguageModelRunConfig(RunConfig):
    """``model`` holds LanguageModelConfig without vocab_size, which the tokenizer gives."""

    dataset: TextDatasetConfig
    tokenizer: TextTokenizerConfig
    batching: PackingConfig
    model: dict[str, Any]
    task: LanguageModelTaskConfig
    evaluation: LanguageModelEvaluationConfig
    decoding: GenerationConfig

    @property
    def rows(self) -> tuple[str, int]:
        return "batching.rows", self.batching.rows

    def check(self) -> None:
        if "vocab_size" in self.model:
            raise UserError("model.vocab_size is set by the tokenizer; remove it and set tokenizer.vocab_size.")
        if self.tokenizer.kind.startswith("wordpiece"):
            raise UserError("tokenizer.kind='wordpiece' loses white space, which a language model writes; take 'bpe'.")
        model = model_config(self, self.tokenizer.vocab_size)
        if self.batching.length > model.max_length:
            raise UserError(
                f"batching.length={self.batching.length} exceeds model.max_length={model.max_length}; "
                "lower the one or raise the other."
            )
        if not 1 <= self.evaluation.stride <= self.batching.length:
            raise UserError(
                f"evaluation.stride is {self.evaluation.stride}; it must be at least 1 and at most "
                f"batching.length={self.batching.length}."
            )
        if self.decoding.max_tokens >= model.max_length:
            raise UserError(
                f"decoding.max_tokens={self.decoding.max_tokens} leaves no room for a prompt in "
                f"model.max_length={model.max_length}; lower the one or raise the other."
            )


def model_config(config: LanguageModelRunConfig, vocab_size: int) -> LanguageModelConfig:
    """The model's hyperparameters, complete."""
    return build(LanguageModelConfig, {**config.model, "vocab_size": vocab_size}, "model")


def make_task(config: LanguageModelRunConfig, vocab_size: int) -> LanguageModelTask:
    """The model for a vocabulary, and its loss."""
    return LanguageModelTask(LanguageModel(model_config(config, vocab_size)), config.task)


class LanguageModelEvaluator:
    """Loss, perplexity and bits per byte of the validation split; compiled once, whatever the step."""

    def __init__(self, task: LanguageModelTask, mesh: Mesh, batches: list[EvaluationBatch], num_bytes: int) -> None:
        self._task, self._mesh, self._batches, self._num_bytes = task, mesh, batches, num_bytes
        self._evaluate = make_evaluation_step(task, mesh)

    def __call__(self, params: Any) -> Iterator[tuple[str, float]]:
        begin = time.monotonic()
        sums = split_sums(self._evaluate, params, self._batches, self._mesh)
        yield from self._task.summarise(sums).items()
        yield "bits_per_byte", bits_per_byte(sums["nll"], self._num_bytes)
        yield "evaluation_seconds", time.monotonic() - begin


def text_and_tokenizer(
    config: TextDatasetConfig, tokenizer_config: TextTokenizerConfig, run: RunDirectory | None
) -> tuple[TextDataset, TextTokenizer]:
    """Reads the text, and takes the run's tokenizer or trains it; both are pinned in the run.

    Raises: UserError for text without a validation split.
    """
    dataset = load_text(config)
    if "validation" not in dataset.splits:
        raise UserError(
            f"{config.name} has no validation split, by which training is judged; it has "
            f"{', '.join(dataset.splits)}. Set dataset.validation."
        )
    if run is not None and run.tokenizer.is_dir():
        tokenizer = load_text_tokenizer(run.tokenizer)
    else:
        tokenizer = train_text_tokenizer(dataset, tokenizer_config)
        if run is not None:
            with run.new_tokenizer() as folder:
                save_text_tokenizer(tokenizer, folder)
    if run is not None:
        run.pin("data", dataset.digest)
        run.pin("tokenizers", tokenizer_digest(tokenizer))
    return dataset, tokenizer


def prepare(config: LanguageModelRunConfig, run: RunDirectory | None) -> Experiment:
    """Reads the text, takes the run's tokenizer or trains it, and packs the documents."""
    dataset, tokenizer = text_and_tokenizer(config.dataset, config.tokenizer, run)
    task = make_task(config, tokenizer.vocab_size)

    def make_evaluator(mesh: Mesh) -> LanguageModelEvaluator:
        stream = cached_stream(dataset, "validation", tokenizer)
        batches = list(evaluation_batches(stream, config.batching, config.evaluation.stride))
        return LanguageModelEvaluator(task, mesh, batches, stream.num_bytes)

    return Experiment(task, PackedText(dataset, tokenizer, config.batching, config.seed), make_evaluator)


LANGUAGE_MODEL = Family(
    config=LanguageModelRunConfig,
    prepare=prepare,
    commands=("experiments/evaluate.py", "experiments/generate.py"),
)
