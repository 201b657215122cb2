"""Classification of sentences and of words: config sections, the model for a vocabulary and labels, the evaluator."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from transformer_jax.config import build
from transformer_jax.data.label_batches import (
    EncodedText,
    LabelledBatches,
    LabelledBatchingConfig,
    TextEncoder,
    labelled_batches,
)
from transformer_jax.data.labelled import LabelledDatasetConfig, Text, label_ids, load_labelled
from transformer_jax.data.text import in_memory
from transformer_jax.data.text_tokenizers import (
    TextTokenizer,
    TextTokenizerConfig,
    ids_with_mask,
    load_text_tokenizer,
    save_text_tokenizer,
    train_text_tokenizer,
)
from transformer_jax.data.tokenizers import Tokenizer, TokenizerConfig, load_tokenizers
from transformer_jax.errors import UserError
from transformer_jax.evaluation.classification import accuracy, entity_f1, macro_f1
from transformer_jax.experiment import EvaluationConfig, RunConfig
from transformer_jax.families.family import Experiment, Family
from transformer_jax.models.encoder import Classifier, ClassifierConfig
from transformer_jax.run_directory import RunDirectory, write_json
from transformer_jax.sharding import BATCH, fetch_each, place
from transformer_jax.training.classification import ClassificationTask, ClassificationTaskConfig

LABELS = "labels.json"
OWN_KEYS = {"level", "pooling", "pooler", "initializer", "dtype", "remat", "num_labels"}
"""Of the model, what may be unlike the run that it starts from; dropout rates and lengths too."""
OF_TRANSLATION = {"scale_embeddings": True, "embedding_norm": False, "num_types": 0}


@dataclass(frozen=True)
class ClassificationEvaluationConfig(EvaluationConfig):
    """Labels predicted in the validation split."""

    metric: Literal["loss", "accuracy", "macro_f1", "entity_f1"]


@dataclass(frozen=True)
class ClassificationConfig(RunConfig):
    """``model`` holds ClassifierConfig without vocab_size and num_labels, which tokenizer and data give; ``tokenizer``
    a TextTokenizerConfig, or the TokenizerConfig of the translation run whose encoder and tokenizer are taken."""

    dataset: LabelledDatasetConfig
    tokenizer: dict[str, Any]
    batching: LabelledBatchingConfig
    model: dict[str, Any]
    task: ClassificationTaskConfig
    evaluation: ClassificationEvaluationConfig

    @property
    def rows(self) -> tuple[str, int]:
        return "batching.rows_multiple", self.batching.rows_multiple

    @property
    def of_translation(self) -> bool:
        """Whether the tokenizer is one of sentence pairs."""
        return "joint" in self.tokenizer

    def check(self) -> None:
        for name, given in (("vocab_size", "the tokenizer"), ("num_labels", "the data")):
            if name in self.model:
                raise UserError(f"model.{name} is set by {given}; remove it.")
        if self.of_translation:
            build(TokenizerConfig, self.tokenizer, "tokenizer")
            if not (self.initialize.run and self.initialize.tokenizer):
                raise UserError(
                    "tokenizer.joint: a tokenizer of sentence pairs is not trained here, but taken from a translation "
                    "run: name it in initialize.run, with initialize.tokenizer=True."
                )
        else:
            build(TextTokenizerConfig, self.tokenizer, "tokenizer")
        model = model_config(self, self.tokenizer["vocab_size"] + 1, 2)
        if self.batching.max_length > model.max_length:
            raise UserError(
                f"batching.max_length={self.batching.max_length} exceeds model.max_length={model.max_length}; "
                "lower the one or raise the other."
            )
        if self.evaluation.metric == "entity_f1" and model.level != "token":
            raise UserError("evaluation.metric='entity_f1' is of words; with model.level='sentence' take 'accuracy'.")


def model_config(config: ClassificationConfig, vocab_size: int, num_labels: int) -> ClassifierConfig:
    """The model's hyperparameters, complete."""
    sizes = {"vocab_size": vocab_size, "num_labels": num_labels}
    return build(ClassifierConfig, {**config.model, **sizes}, "model")


def check_same_encoder(config: ClassificationConfig, other: dict[str, Any]) -> None:
    """Raises: UserError where the config's encoder would compute something else than that of the run it starts from."""
    there = dict(other.get("model", {}))
    if other.get("family") == "translation" and there["architecture"] == "transformer":
        there = {**there, **OF_TRANSLATION, "num_layers": there["num_encoder_layers"]}
    elif other.get("family") not in ("masked_lm", "classification"):
        raise UserError(
            f"initialize.run={config.initialize.run} is of the family {other.get('family')} and has no encoder of a "
            "Transformer; give a run of masked_lm, classification or translation that has one."
        )
    free = {key for key in there if key in OWN_KEYS or key.endswith(("dropout_rate", "max_length"))}
    unlike = [
        f"model.{key}={there[key]!r} there, {config.model[key]!r} here"
        for key in sorted(set(there) & set(config.model) - free)
        if there[key] != config.model[key]
    ]
    if unlike:
        raise UserError(
            f"initialize.run={config.initialize.run} has another encoder: {'; '.join(unlike)}. Set the same, or take "
            f"all that it needs with --config=configs/classification.py:NAME,{config.initialize.run}"
        )


def read_tokenizer(config: ClassificationConfig, run: RunDirectory) -> TextTokenizer | Tokenizer:
    """The run's own tokenizer; of those of a translation run that of the source, which its encoder reads."""
    return load_tokenizers(run.tokenizer).source if config.of_translation else load_text_tokenizer(run.tokenizer)


def vocabulary(config: ClassificationConfig, tokenizer: TextTokenizer | Tokenizer) -> int:
    """Rows of the table of embeddings: [MASK] has one, but not in the encoder of a translation run."""
    return tokenizer.vocab_size if config.of_translation else ids_with_mask(tokenizer)


class Predictor:
    """Log-probabilities of labels, in batches over all devices; compiled once a shape."""

    def __init__(self, task: ClassificationTask, mesh: Mesh) -> None:
        self._rows = NamedSharding(mesh, BATCH)
        self._logits = jax.jit(lambda params, batch: jax.nn.log_softmax(task.logits(params, batch)))
        self._words = task.model.config.level == "token"

    def __call__(self, params: Any, encoded: Sequence[EncodedText], config: LabelledBatchingConfig) -> list[np.ndarray]:
        """For each text float32[C], or float32[words, C] of the words that there was room for."""
        found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(encoded)
        batches = list(labelled_batches(encoded, None, config, self._words))
        computed = (self._logits(params, place(batch.batch, self._rows)) for batch in batches)
        for batch, values in zip(batches, fetch_each(computed), strict=True):
            for row, example in enumerate(batch.examples):
                if example >= 0:
                    found[example] = values[row, encoded[example].words] if self._words else values[row]
        return found


def scores_of(log_probs: Sequence[np.ndarray], labels: Sequence[list[int]], names: Sequence[str]) -> dict[str, float]:
    """Loss (nats), accuracy and F1 of labels, and F1 of entities where words have them. A word that was cut off counts
    as wrong: it is predicted to be "O" where there is such a label, else nothing."""
    words = log_probs[0].ndim == 2
    if not words:
        rows, wanted = np.stack(log_probs), np.asarray([label for (label,) in labels])
        predicted = rows.argmax(axis=-1)
        nll = -rows[np.arange(len(rows)), wanted]
        scores = {}
    else:
        outside = names.index("O") if "O" in names else -1
        tags = [
            [*row.argmax(axis=-1), *[outside] * (len(l) - len(row))] for row, l in zip(log_probs, labels, strict=True)
        ]
        predicted, wanted = np.concatenate(tags).astype(np.int64), np.concatenate(labels)
        nll = -np.concatenate(
            [row[np.arange(len(row)), l[: len(row)]] for row, l in zip(log_probs, labels, strict=True)]
        )
        named = lambda rows: [[names[i] if i >= 0 else "" for i in row] for row in rows]
        scores = {"entity_f1": entity_f1(named(tags), named(labels))}
    return {
        "loss": float(nll.mean()),
        "accuracy": accuracy(predicted, wanted),
        "macro_f1": macro_f1(predicted, wanted, len(names)),
        **scores,
    }


class ClassificationEvaluator:
    """Loss, accuracy and F1 of the validation split."""

    def __init__(
        self, predictor: Predictor, encoded: Sequence[EncodedText], labels: list[list[int]], names: Sequence[str],
        config: LabelledBatchingConfig,
    ) -> None:  # fmt: skip
        self._predictor, self._encoded, self._labels, self._names = predictor, encoded, labels, names
        self._config = config

    def __call__(self, params: Any) -> Iterator[tuple[str, float]]:
        begin = time.monotonic()
        found = self._predictor(params, self._encoded, self._config)
        yield from scores_of(found, self._labels, self._names).items()
        yield "evaluation_seconds", time.monotonic() - begin


def _tokenizer(
    config: ClassificationConfig, texts: Sequence[Text], run: RunDirectory | None
) -> TextTokenizer | Tokenizer:
    """The run's, which is that of the run it starts from, or one trained on all training texts."""
    if run is not None and run.tokenizer.is_dir():
        return read_tokenizer(config, run)
    if config.initialize.run and config.initialize.tokenizer:
        return read_tokenizer(config, RunDirectory.open(config.initialize.run))
    documents = in_memory([" ".join(text) for text in texts])
    trained = train_text_tokenizer(documents, build(TextTokenizerConfig, config.tokenizer, "tokenizer"))
    if run is not None:
        with run.new_tokenizer() as folder:
            save_text_tokenizer(trained, folder)
    return trained


def prepare(config: ClassificationConfig, run: RunDirectory | None) -> Experiment:
    """Reads the examples, takes or trains the tokenizer, and plans the batches."""
    level = config.model["level"]
    if config.initialize.run:
        check_same_encoder(config, RunDirectory.open(config.initialize.run).config)
    dataset = load_labelled(config.dataset, level, config.seed)
    if "validation" not in dataset.splits:
        raise UserError(
            f"{config.dataset.name} has no validation split, by which training is judged; set dataset.validation."
        )
    tokenizer = _tokenizer(config, dataset.training_texts, run)
    if run is not None:
        run.pin("data", dataset.digest)
        run.pin("tokenizers", hashlib.sha256(tokenizer.serialize()).hexdigest())
        if not (run.path / LABELS).exists():
            write_json(run.path / LABELS, list(dataset.labels))
    model = model_config(config, vocabulary(config, tokenizer), len(dataset.labels))
    task = ClassificationTask(Classifier(model), config.task)
    words = level == "token"
    encoder = TextEncoder(tokenizer, config.batching.max_length, words)
    validation = dataset.splits["validation"]
    labels = label_ids(validation, dataset.labels, "dataset.validation")

    def make_evaluator(mesh: Mesh) -> ClassificationEvaluator:
        encoded = encoder(validation.texts)
        return ClassificationEvaluator(Predictor(task, mesh), encoded, labels, dataset.labels, config.batching)

    batches = LabelledBatches(dataset, encoder, config.batching, words, config.seed)
    return Experiment(task, batches, make_evaluator)


CLASSIFICATION = Family(
    config=ClassificationConfig,
    prepare=prepare,
    commands=("experiments/evaluate.py", "experiments/predict.py"),
)
