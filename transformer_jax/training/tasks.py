"""Tasks: how a batch becomes a loss. Families differ here and share everything else of training."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax.numpy as jnp
from jax import Array

from transformer_jax.errors import UserError
from transformer_jax.models.layers import Seeds, fold_in, widened
from transformer_jax.models.seq2seq import Segments, Seq2Seq
from transformer_jax.models.tokens import PAD_ID
from transformer_jax.training.losses import Sums, consistent_rows, in_chunks, summed_cross_entropy

Batch = dict[str, Any]


@dataclass(frozen=True)
class TaskConfig:
    """The loss of translation."""

    label_smoothing: float
    regularizer: Literal["none", "r_drop", "simcut"]
    regularizer_weight: float
    cutoff_rate: float  # simcut: share of token embeddings set to zero in the second pass
    loss_chunk: int  # rows whose logits exist at a time on a device

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "cutoff_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"task.{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.loss_chunk < 1:
            raise UserError(f"task.loss_chunk is {self.loss_chunk}; it must be at least 1.")
        if self.regularizer_weight < 0:
            raise UserError(f"task.regularizer_weight is {self.regularizer_weight}; it must be at least 0.")
        if (self.regularizer == "none") != (self.regularizer_weight == 0):
            raise UserError(
                f"task.regularizer={self.regularizer!r} cannot go with task.regularizer_weight="
                f"{self.regularizer_weight}: 'none' has weight 0, 'r_drop' and 'simcut' a weight above 0 (5 and 3 in "
                "their papers)."
            )


class Task(Protocol):
    """What the training step needs to know of a family."""

    def __hash__(self) -> int: ...

    def init(self, rng: Array) -> Any:
        """Parameters, boxed with their logical axis names."""
        ...

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        """The summed loss of a batch, and sums, among them ``loss`` and ``tokens``, its count.

        In training the batch has the optimizer's "step" besides its own arrays, int32[B]. Seeds None: evaluation.
        """
        ...

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics, ``loss`` among them, from sums over any number of batches."""
        ...


@dataclass(frozen=True)
class TranslationTask:
    """Label-smoothed cross entropy of the target given the source; optionally made consistent between two passes.

    R-Drop (Liang et al. 2021) compares two dropout masks, SimCut (Gao et al. 2022) an input with some of its
    token embeddings cut to zero.
    """

    model: Seq2Seq
    config: TaskConfig

    def init(self, rng: Array) -> Any:
        tokens = jnp.ones((1, 2), jnp.int32)
        return self.model.init(rng, tokens, tokens)["params"]

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        c, source, target = self.config, batch["source"], batch["target"]
        packed = "source_segments" in batch
        segments = Segments(batch["source_segments"], batch["target_segments"]) if packed else None

        def hidden(seeds: Seeds, cut: float = 0.0) -> Array:
            x: Any = self.model.apply({"params": params}, source, target, seeds, cut, segments, method="hidden")
            return widened(x.reshape(-1, x.shape[-1]), table).astype(self.model.config.product_dtype)

        table: Any = self.model.apply({"params": params}, method="output_table")
        constants = {
            "targets": target.reshape(-1),
            "weights": (target != PAD_ID).astype(jnp.float32).reshape(-1),
        }
        if seeds is None or c.regularizer == "none":
            return summed_cross_entropy(hidden(seeds), table, *constants.values(), c.label_smoothing, c.loss_chunk)
        second = fold_in(seeds, "second pass")
        rows_loss = consistent_rows(c.label_smoothing, c.regularizer_weight, symmetric=c.regularizer == "r_drop")
        rows = (hidden(seeds), hidden(second, c.cutoff_rate if c.regularizer == "simcut" else 0.0))
        return in_chunks(rows_loss, c.loss_chunk)(rows, table, constants)

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        return summarise(sums)


def summarise(sums: dict[str, float]) -> dict[str, float]:
    """Metrics from sums fetched off the device: loss and perplexity per target token."""
    tokens = max(sums["tokens"], 1.0)
    nll = sums["nll"] / tokens
    return {"loss": sums["loss"] / tokens, "nll": nll, "perplexity": math.exp(min(nll, 700.0))}
