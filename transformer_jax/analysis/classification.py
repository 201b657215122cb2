"""A classification run, opened for use: its model, tokenizer, labels, and what it says of texts."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.analysis.capture import Inputs, unpadded
from transformer_jax.analysis.run import Run, listed
from transformer_jax.analysis.scores import begin_record, finish_record
from transformer_jax.data.bucketing import Shape, one_a_row
from transformer_jax.data.label_batches import TextEncoder, fill_labelled
from transformer_jax.data.labelled import Labelled, label_ids, load_labelled, read_labelled_files
from transformer_jax.data.text_tokenizers import TextTokenizer
from transformer_jax.data.tokenizers import Tokenizer
from transformer_jax.errors import UserError
from transformer_jax.families.classification import (
    LABELS,
    ClassificationConfig,
    Predictor,
    model_config,
    read_tokenizer,
    scores_of,
    vocabulary,
)
from transformer_jax.models.encoder import Classifier
from transformer_jax.models.tokens import PAD_ID
from transformer_jax.models.transformer import plain
from transformer_jax.sharding import MeshConfig, make_mesh, place
from transformer_jax.training.classification import ClassificationTask

GivenText = str | Sequence[str]
"""A text, or a pair of them; or, where words have labels, a text whose words are between spaces, or its words."""


class ClassificationRun(Run):
    """What `load_run` gives for the family "classification"."""

    config: ClassificationConfig

    @cached_property
    def tokenizer(self) -> TextTokenizer | Tokenizer:
        return read_tokenizer(self.config, self.directory)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What there is to choose from; the model's outputs are in this order."""
        return tuple(json.loads((self.directory.path / LABELS).read_text(encoding="utf-8")))

    @cached_property
    def model(self) -> Classifier:
        """The unrolled model, whichever way it was trained; `params` fits it."""
        config = model_config(self.config, vocabulary(self.config, self.tokenizer), len(self.labels))
        return Classifier(plain(config))

    @property
    def _words(self) -> bool:
        return self.model.config.level == "token"

    @property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.config.batching.max_length, self._words)

    @cached_property
    def _placed(self) -> tuple[Predictor, Any]:
        mesh = make_mesh(MeshConfig(-1, 1, 1))
        task = ClassificationTask(self.model, self.config.task)
        return Predictor(task, mesh), place(self.params, NamedSharding(mesh, P()))

    def _texts(self, texts: Sequence[GivenText]) -> list[tuple[str, ...]]:
        split = lambda text: tuple(text.split()) if self._words else (text,)
        found = [split(text) if isinstance(text, str) else tuple(text) for text in listed(texts)]
        if not self._words and (wrong := [text for text in found if not 1 <= len(text) <= 2]):
            raise UserError(f"{wrong[0]!r} is neither a text nor a pair of texts.")
        return found

    def inputs(self, *texts: Sequence[GivenText]) -> Inputs:
        """What the model is called with: tokens, segments and types int32[B, T]."""
        (given,) = texts
        encoded = self._encoder(self._texts(given))
        planned = one_a_row(Shape(len(encoded), max(len(one.ids) for one in encoded), 1), np.arange(len(encoded)))
        batch = fill_labelled(encoded, None, planned, self._words)
        return batch["inputs"], (batch["inputs"] != PAD_ID).astype(np.int32), batch["types"]

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        return [self.token_names(unpadded(inputs[0][row]))] * len(inputs)

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        return self.tokenizer.pieces(tokens)

    def sides(self, name: str) -> tuple[int | None, int | None]:
        if name == "logits" and not self._words:
            return None, None
        return 0, 0 if name.endswith("/weights") else None

    def log_probs(self, texts: Sequence[GivenText]) -> list[np.ndarray]:
        """Natural log-probabilities of `labels`: for each text float32[C], or float32[words, C] of words.

        Texts longer than batching.max_length tokens are cut; words that were cut off have no row.
        """
        predictor, params = self._placed
        return predictor(params, self._encoder(self._texts(texts)), self.config.batching)

    def classify(self, texts: Sequence[GivenText]) -> list[dict[str, float]]:
        """The probability of each label, the likeliest first, for each text.

        Raises: UserError where words have labels: see `predict` and `log_probs`.
        """
        if self._words:
            raise UserError(f"{self.directory.path} labels words: use run.predict(texts).")
        order = lambda row: sorted(zip(self.labels, np.exp(row).tolist(), strict=True), key=lambda pair: -pair[1])
        return [dict(order(row)) for row in self.log_probs(texts)]

    def predict(self, texts: Sequence[GivenText]) -> list[Any]:
        """The likeliest label of each text; or the labels of the words of each, those that were cut off left out."""
        found = self.log_probs(texts)
        if self._words:
            return [[self.labels[i] for i in rows.argmax(axis=-1)] for rows in found]
        return [self.labels[row.argmax()] for row in found]

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """As `Run.evaluate`: accuracy and F1. Files, as the family's datasets have them: "A.tsv,B.tsv.gz"."""
        if settings:
            raise UserError(f"--{min(settings)} does not concern the evaluation of a classifier.")
        level = self.model.config.level
        if files is not None:
            labelled: Labelled = read_labelled_files([Path(file) for file in files.split(",")], level)
            data: dict[str, Any] = {"split": "files", "files": files}
        else:
            splits = load_labelled(self.config.dataset, level, self.config.seed).splits
            if split not in splits:
                raise UserError(f"--split={split}: {self.config.dataset.name} has only {', '.join(splits)}.")
            labelled, data = splits[split], {"split": split, "dataset": self.config.dataset.name}
        data |= {"examples": len(labelled), "sha256": labelled.digest}
        labels = label_ids(labelled, self.labels, files or f"dataset.{split}")
        name, record = begin_record(self, data, {"level": level})
        scores = scores_of(self.log_probs(labelled.texts), labels, self.labels)
        record = finish_record(self, name, {**record, "scores": scores})
        return record, _format(record)


def _format(record: dict[str, Any]) -> str:
    data, scores, chosen = record["data"], record["scores"], record["checkpoint"]
    lines = [f"{data['examples']:,} texts of {data['split']}, checkpoint {chosen['choice']} (steps {chosen['steps']})"]
    rows = [f"{name.replace('_', ' '):<14} {value:8.4f}" for name, value in scores.items()]
    return "\n".join(lines + rows)
