"""The task of a language model: the next token, in text that is packed into rows."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from transformer_jax.errors import UserError
from transformer_jax.models.language_model import LanguageModel, initial_parameters
from transformer_jax.models.layers import Seeds, widened
from transformer_jax.models.tokens import PAD_ID
from transformer_jax.training.losses import Sums, summed_cross_entropy
from transformer_jax.training.tasks import Batch, summarise


@dataclass(frozen=True)
class LanguageModelTaskConfig:
    """The loss of a language model."""

    label_smoothing: float
    loss_chunk: int  # rows whose logits exist at a time on a device

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"task.label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1.")
        if self.loss_chunk < 1:
            raise UserError(f"task.loss_chunk is {self.loss_chunk}; it must be at least 1.")


@dataclass(frozen=True)
class LanguageModelTask:
    """Cross entropy of the next token; batches are those of data/packing.py."""

    model: LanguageModel
    config: LanguageModelTaskConfig

    def init(self, rng: Array) -> Any:
        return initial_parameters(self.model, rng)

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        arguments = (batch["inputs"], batch["segments"], seeds)
        hidden: Any = self.model.apply({"params": params}, *arguments, method="hidden")
        table: Any = self.model.apply({"params": params}, method="output_table")
        targets = batch["targets"].reshape(-1)
        weights = (targets != PAD_ID).astype(jnp.float32)
        rows = widened(hidden.reshape(-1, hidden.shape[-1]), table).astype(self.model.config.product_dtype)
        return summed_cross_entropy(rows, table, targets, weights, self.config.label_smoothing, self.config.loss_chunk)

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        return summarise(sums)


def bits_per_byte(nll: float, num_bytes: int) -> float:
    """Bits that a model spends on a byte of text: the measure that tokenizers do not change.

    Args:
      nll: the sum over all tokens, ends of documents among them, in nats.
    """
    return nll / math.log(2) / num_bytes
