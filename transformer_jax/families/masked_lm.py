"""Masked language models: config sections, the model for a vocabulary, and the evaluator."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jax.sharding import Mesh

from transformer_jax.config import build
from transformer_jax.data.batches import EvaluationBatch
from transformer_jax.data.masking import ENDS, MaskedText, Masker, MaskingConfig, masked_evaluation_batches
from transformer_jax.data.packing import PackingConfig, cached_stream
from transformer_jax.data.text import TextDatasetConfig
from transformer_jax.data.text_tokenizers import TextTokenizerConfig, ids_with_mask
from transformer_jax.errors import UserError
from transformer_jax.experiment import EvaluationConfig, RunConfig
from transformer_jax.families.family import Experiment, Family
from transformer_jax.families.language_model import text_and_tokenizer
from transformer_jax.models.encoder import EncoderConfig, MaskedLanguageModel
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.evaluators import split_sums
from transformer_jax.training.language_modeling import LanguageModelTaskConfig
from transformer_jax.training.masked_language_modeling import MaskedLanguageModelTask
from transformer_jax.training.step import make_evaluation_step


@dataclass(frozen=True)
class MaskedEvaluationConfig(EvaluationConfig):
    """Tokens hidden in the validation split, always the same ones."""

    metric: Literal["loss", "perplexity", "accuracy"]


@dataclass(frozen=True)
class MaskedRunConfig(RunConfig):
    """``model`` holds EncoderConfig without vocab_size, which the tokenizer gives."""

    dataset: TextDatasetConfig
    tokenizer: TextTokenizerConfig
    batching: PackingConfig
    masking: MaskingConfig
    model: dict[str, Any]
    task: LanguageModelTaskConfig
    evaluation: MaskedEvaluationConfig

    @property
    def rows(self) -> tuple[str, int]:
        return "batching.rows", self.batching.rows

    def check(self) -> None:
        if "vocab_size" in self.model:
            raise UserError("model.vocab_size is set by the tokenizer; remove it and set tokenizer.vocab_size.")
        model = model_config(self, self.tokenizer.vocab_size + 1)
        if self.batching.length > model.max_length:
            raise UserError(
                f"batching.length={self.batching.length} exceeds model.max_length={model.max_length}; "
                "lower the one or raise the other."
            )
        if self.batching.length <= ENDS:
            raise UserError(
                f"batching.length is {self.batching.length}: beside [CLS] and [SEP] a row needs room for text; set it "
                f"to at least {ENDS + 1}."
            )


def model_config(config: MaskedRunConfig, vocab_size: int) -> EncoderConfig:
    """The model's hyperparameters, complete. Args: vocab_size: [MASK] included."""
    return build(EncoderConfig, {**config.model, "vocab_size": vocab_size}, "model")


def make_task(config: MaskedRunConfig, vocab_size: int) -> MaskedLanguageModelTask:
    """The model for a vocabulary, and its loss."""
    return MaskedLanguageModelTask(MaskedLanguageModel(model_config(config, vocab_size)), config.task)


class MaskedEvaluator:
    """Loss, perplexity and accuracy of hidden tokens of the validation split."""

    def __init__(self, task: MaskedLanguageModelTask, mesh: Mesh, batches: list[EvaluationBatch]) -> None:
        self._task, self._mesh, self._batches = task, mesh, batches
        self._evaluate = make_evaluation_step(task, mesh)

    def __call__(self, params: Any) -> Iterator[tuple[str, float]]:
        begin = time.monotonic()
        yield from self._task.summarise(split_sums(self._evaluate, params, self._batches, self._mesh)).items()
        yield "evaluation_seconds", time.monotonic() - begin


def prepare(config: MaskedRunConfig, run: RunDirectory | None) -> Experiment:
    """Reads the text, takes the run's tokenizer or trains it, and packs the documents."""
    dataset, tokenizer = text_and_tokenizer(config.dataset, config.tokenizer, run)
    task = make_task(config, ids_with_mask(tokenizer))

    def make_evaluator(mesh: Mesh) -> MaskedEvaluator:
        stream = cached_stream(dataset, "validation", tokenizer)
        masker = Masker(tokenizer, config.masking)
        return MaskedEvaluator(task, mesh, list(masked_evaluation_batches(stream, config.batching, masker)))

    return Experiment(
        task, MaskedText(dataset, tokenizer, config.batching, config.masking, config.seed), make_evaluator
    )


MASKED_LM = Family(
    config=MaskedRunConfig,
    prepare=prepare,
    commands=("experiments/evaluate.py", "experiments/predict.py"),
)
