"""The task of a classifier: the label of each sentence, or of each word."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from transformer_jax.data.label_batches import UNLABELLED
from transformer_jax.errors import UserError
from transformer_jax.models.encoder import Classifier, initial_parameters
from transformer_jax.models.layers import Seeds
from transformer_jax.models.tokens import PAD_ID
from transformer_jax.training.losses import Sums, cross_entropy
from transformer_jax.training.tasks import Batch


@dataclass(frozen=True)
class ClassificationTaskConfig:
    """The loss of a classifier."""

    label_smoothing: float

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"task.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1.")


@dataclass(frozen=True)
class ClassificationTask:
    """Cross entropy of the labels; batches are those of data/label_batches.py."""

    model: Classifier
    config: ClassificationTaskConfig

    def init(self, rng: Array) -> Any:
        return initial_parameters(self.model, rng)

    def logits(self, params: Any, batch: Batch, seeds: Seeds = None) -> Array:
        """float32[B, C], or [B, T, C] where tokens have labels."""
        segments = (batch["inputs"] != PAD_ID).astype(jnp.int32)
        found: Any = self.model.apply({"params": params}, batch["inputs"], segments, batch["types"], seeds)
        return found

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        logits, labels = self.logits(params, batch, seeds), batch["labels"].reshape(-1)
        logits = logits.reshape(len(labels), -1)
        here = labels != UNLABELLED
        losses, nll = cross_entropy(logits, jnp.maximum(labels, 0), self.config.label_smoothing)
        total = lambda values: jnp.sum(jnp.where(here, values, 0.0))
        loss = total(losses)
        correct = total(jnp.argmax(logits, axis=-1) == labels)
        return loss, {"loss": loss, "nll": total(nll), "tokens": total(1.0), "correct": correct}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Loss and accuracy, of labelled examples or words."""
        count = max(sums["tokens"], 1.0)
        return {"loss": sums["loss"] / count, "nll": sums["nll"] / count, "accuracy": sums["correct"] / count}
