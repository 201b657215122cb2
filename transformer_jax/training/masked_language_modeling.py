"""The task of a masked language model: the tokens that were hidden in its input."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from transformer_jax.models.encoder import MaskedLanguageModel, initial_parameters
from transformer_jax.models.layers import Seeds, widened
from transformer_jax.models.tokens import PAD_ID
from transformer_jax.training.language_modeling import LanguageModelTaskConfig
from transformer_jax.training.losses import Sums, count_correct, summed_cross_entropy
from transformer_jax.training.tasks import Batch, summarise


@dataclass(frozen=True)
class MaskedLanguageModelTask:
    """Cross entropy of the hidden tokens alone; batches are those of data/masking.py."""

    model: MaskedLanguageModel
    config: LanguageModelTaskConfig

    def init(self, rng: Array) -> Any:
        return initial_parameters(self.model, rng)

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        arguments = (batch["inputs"], batch["segments"], None, seeds)
        hidden: Any = self.model.apply({"params": params}, *arguments, method="hidden")
        table: Any = self.model.apply({"params": params}, method="output_table")
        targets, chunk = batch["targets"].reshape(-1), self.config.loss_chunk
        weights = (targets != PAD_ID).astype(jnp.float32)
        rows = widened(hidden.reshape(-1, hidden.shape[-1]).astype(self.model.config.product_dtype), table)
        loss, sums = summed_cross_entropy(rows, table, targets, weights, self.config.label_smoothing, chunk)
        if seeds is None:
            sums = sums | {"correct": count_correct(rows, table, targets, weights, chunk)}
        return loss, sums

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Loss and perplexity of a hidden token; of an evaluation the share of them that is found, too."""
        found = {"accuracy": sums["correct"] / max(sums["tokens"], 1.0)} if "correct" in sums else {}
        return summarise(sums) | found
