"""Translation with the encoder-decoder: its config sections, its model for a pair of vocabularies, its evaluator."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax.sharding import Mesh

from transformer_jax.config import build, suggest
from transformer_jax.data.bucketing import BatchingConfig, Shape
from transformer_jax.data.datasets import Dataset, DatasetConfig, load_dataset
from transformer_jax.data.pipeline import Pipeline, validation_batches
from transformer_jax.data.tokenizers import TokenizerConfig, TokenizerPair, load_tokenizers, train_tokenizers
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.translator import Translator
from transformer_jax.errors import UserError
from transformer_jax.evaluation.bleu import translation_scores
from transformer_jax.experiment import EvaluationConfig, RunConfig
from transformer_jax.families.family import Experiment, Family
from transformer_jax.models.recurrent import RecurrentConfig, RecurrentEncoderDecoder
from transformer_jax.models.seq2seq import Seq2Seq
from transformer_jax.models.transformer import EncoderDecoder, TransformerConfig
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.evaluators import split_sums
from transformer_jax.training.step import make_evaluation_step
from transformer_jax.training.tasks import TaskConfig, TranslationTask

VOCABULARIES = ("source_vocab_size", "target_vocab_size")
ARCHITECTURES: dict[str, tuple[type, type[Seq2Seq]]] = {
    "transformer": (TransformerConfig, EncoderDecoder),
    "lstm": (RecurrentConfig, RecurrentEncoderDecoder),
}
"""The networks that translate: what ``model.architecture`` may be, its hyperparameters, and the model."""


@dataclass(frozen=True)
class TranslationEvaluationConfig(EvaluationConfig):
    """Besides the loss, BLEU of translations."""

    metric: Literal["bleu", "loss"]
    decode: Literal["none", "greedy", "beam"]
    max_sentences: int  # translated for BLEU; 0: all

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sentences < 0:
            raise UserError(f"evaluation.max_sentences is {self.max_sentences}; it must be at least 0.")
        if self.metric == "bleu" and self.decode == "none":
            raise UserError("evaluation.metric='bleu' needs translations: set evaluation.decode to 'greedy' or 'beam'.")


@dataclass(frozen=True)
class TranslationConfig(RunConfig):
    """``model`` holds the hyperparameters of an architecture without the vocabularies, which tokenizers give."""

    dataset: DatasetConfig
    tokenizer: TokenizerConfig
    batching: BatchingConfig
    model: dict[str, Any]
    task: TaskConfig
    evaluation: TranslationEvaluationConfig
    decoding: DecodingConfig

    @property
    def rows(self) -> tuple[str, int]:
        return "batching.rows_multiple", self.batching.rows_multiple

    def check(self) -> None:
        for name in VOCABULARIES:
            if name in self.model:
                raise UserError(f"model.{name} is set by the tokenizer; remove it and set tokenizer.vocab_size.")
        tokenizer, tie = self.tokenizer, self.model.get("tie_embeddings", TransformerConfig.tie_embeddings)
        if tie in ("source_target", "all") and not tokenizer.joint:
            raise UserError(
                f"model.tie_embeddings={tie!r} shares one table between source and target, but tokenizer.joint=False "
                "makes two vocabularies; set tokenizer.joint=True, or model.tie_embeddings to 'target_output' or "
                "'none'."
            )
        if self.dataset.bidirectional and not tokenizer.joint:
            raise UserError(
                "dataset.bidirectional=True reads and writes both languages, but tokenizer.joint=False makes two "
                "vocabularies; set tokenizer.joint=True."
            )
        model = model_config(self, tokenizer.vocab_size, tokenizer.vocab_size)
        if self.batching.packed_length and model.architecture == "lstm":
            raise UserError(
                f"batching.packed_length={self.batching.packed_length} lets pairs share rows, which model.architecture="
                "'lstm' would read as one; set it to 0."
            )
        for section, name in (
            ("batching", "max_length"),
            ("decoding", "max_source_length"),
            ("decoding", "max_target_length"),
        ):
            length = getattr(getattr(self, section), name)
            if length > model.max_length:
                raise UserError(
                    f"{section}.{name}={length} exceeds model.max_length={model.max_length}; "
                    "lower the one or raise the other."
                )


def model_config(config: TranslationConfig, source_vocab_size: int, target_vocab_size: int) -> Any:
    """The model's hyperparameters, complete: those of its architecture."""
    architecture = config.model.get("architecture", TransformerConfig.architecture)
    if architecture not in ARCHITECTURES:
        raise UserError(f"model.architecture is {architecture!r}. {suggest(str(architecture), ARCHITECTURES)}")
    sizes = dict(zip(VOCABULARIES, (source_vocab_size, target_vocab_size), strict=True))
    return build(ARCHITECTURES[architecture][0], {**config.model, **sizes}, "model")


def make_model(config: TranslationConfig, tokenizers: TokenizerPair) -> Seq2Seq:
    """The model for the vocabularies that the tokenizers turned out to have."""
    hyperparameters = model_config(config, tokenizers.source.vocab_size, tokenizers.target.vocab_size)
    return ARCHITECTURES[hyperparameters.architecture][1](config=hyperparameters)


class TranslationEvaluator:
    """Validation loss, and BLEU of greedy or beam translations; compiled once, whatever the step."""

    def __init__(
        self,
        config: TranslationConfig,
        task: TranslationTask,
        mesh: Mesh,
        dataset: Dataset,
        tokenizers: TokenizerPair,
        shapes: Sequence[Shape],
    ) -> None:
        pairs = dataset.splits["validation"]
        sources, targets = pairs.texts()
        # Two of the training shapes are enough here: padding costs less than compiling.
        chosen = [shapes[(len(shapes) - 1) // 2], shapes[-1]] if len(shapes) > 1 else list(shapes)
        limit = task.model.config.max_length
        self._batches, self._left_out = validation_batches(pairs, tokenizers, chosen, config.batching, limit)
        if not self._batches:
            raise UserError(f"No validation pair has at most model.max_length={limit} tokens on both sides.")
        self._mesh, self._task, self._evaluate = mesh, task, make_evaluation_step(task, mesh)
        count = config.evaluation.max_sentences or len(sources)
        self._sources, self._targets = sources[:count], targets[:count]
        self._translator: Translator | None = None
        if config.evaluation.decode != "none":
            method = config.evaluation.decode
            # A long line is no reason to end a training, whatever is wanted of the finished model.
            changes: dict[str, Any] = {"n_best": 1, "long_lines": "split", "rerank": "none", "candidates": 1}
            decoding = dataclasses.replace(config.decoding, method=method, **changes)
            self._translator = Translator(task.model.incremental(), None, tokenizers, decoding, mesh)

    def __call__(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields loss, nll, perplexity, and with translations bleu, chrf and exact_match of validation; and how many
        pairs are too long for the first three, if there are any."""
        begin = time.monotonic()
        yield from self._task.summarise(split_sums(self._evaluate, params, self._batches, self._mesh)).items()
        if self._left_out:
            yield "perplexity_pairs_left_out", float(self._left_out)
        if self._translator is not None:
            self._translator.params = params
            scores = translation_scores(self._translator.translate(self._sources), self._targets)
            for name in ("bleu", "chrf", "exact_match"):
                yield name, float(scores[name])
        yield "evaluation_seconds", time.monotonic() - begin


def prepare(config: TranslationConfig, run: RunDirectory | None) -> Experiment:
    """Reads the pairs, takes the run's tokenizers or trains them, and plans the batches."""
    dataset = load_dataset(config.dataset)
    if "validation" not in dataset.splits:
        raise UserError(
            f"{config.dataset.name} has no validation split, by which training is judged; it has "
            f"{', '.join(dataset.splits)}. With parallel_text, name its files in dataset.validation."
        )
    if run is not None and run.tokenizer.is_dir():
        tokenizers = load_tokenizers(run.tokenizer)
    else:
        tokenizers = train_tokenizers(dataset, config.tokenizer)
        if run is not None:
            with run.new_tokenizer() as folder:
                tokenizers.save(folder)
    if run is not None:
        run.pin("data", dataset.digest)
        run.pin("tokenizers", tokenizers.digest)
    batches = Pipeline(dataset, tokenizers, config.batching, config.seed)
    task = TranslationTask(make_model(config, tokenizers), config.task)
    return Experiment(
        task,
        batches,
        lambda mesh: TranslationEvaluator(config, task, mesh, dataset, tokenizers, batches.shapes),
    )


TRANSLATION = Family(
    config=TranslationConfig,
    prepare=prepare,
    commands=("experiments/evaluate.py", "experiments/translate.py"),
)
