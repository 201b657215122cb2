"""The task of a text-to-image Transformer: the next token of a caption and of the image after it."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from transformer_jax.errors import UserError
from transformer_jax.models.layers import Seeds, uniform
from transformer_jax.models.text_to_image import TextToImage
from transformer_jax.models.tokens import BOS_ID
from transformer_jax.training.losses import Sums, summed_cross_entropy
from transformer_jax.training.tasks import Batch


@dataclass(frozen=True)
class TextToImageTaskConfig:
    """The loss of a text-to-image model.

    Attributes:
      text_weight: share of the text's mean loss in the whole, the image's has the rest; 1/8 in Ramesh et al. 2021,
        section 2.2.
      caption_dropout: share of training images that are shown without their caption, which classifier-free guidance
        needs (Ho and Salimans 2022).
      label_smoothing: of image tokens.
      loss_chunk: rows whose logits exist at a time on a device.
    """

    text_weight: float
    caption_dropout: float
    label_smoothing: float
    loss_chunk: int

    def __post_init__(self) -> None:
        for name in ("text_weight", "caption_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"task.{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.loss_chunk < 1:
            raise UserError(f"task.loss_chunk is {self.loss_chunk}; it must be at least 1.")


@dataclass(frozen=True)
class TextToImageTask:
    """Cross entropies of text and image tokens, each averaged over its kind and then weighted.

    Batches have "tokens" int32[B, S + N], a caption as `data.captions.caption_rows` makes it and then an image, and
    "weights" float32[B].
    """

    model: TextToImage
    config: TextToImageTaskConfig

    def init(self, rng: Array) -> Any:
        c = self.model.config
        return self.model.init(rng, jnp.zeros((1, c.max_length), jnp.int32))["params"]

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        c, model, S, N = self.config, self.model.config, self.model.config.text_length, self.model.config.image_length
        text, image, weights = batch["tokens"][:, :S], batch["tokens"][:, S:], batch["weights"]
        captioned = weights
        if seeds is not None and c.caption_dropout:
            kept = uniform(seeds, "caption", ()) >= c.caption_dropout
            text, captioned = jnp.where(kept[:, None], text, model.no_caption), weights * kept
        start = jnp.full_like(text[:, :1], BOS_ID)
        inputs = jnp.concatenate([start, text, image[:, :-1]], axis=1)
        states: Any = self.model.apply({"params": params}, inputs, seeds, method="hidden")
        tables: Any = self.model.apply({"params": params}, method="output_tables")

        def part(states: Array, table: Array, targets: Array, counts: Array, smoothing: float) -> tuple[Array, Sums]:
            rows, each = states.reshape(-1, states.shape[-1]), jnp.repeat(counts, targets.shape[1])
            return summed_cross_entropy(rows, table, targets.reshape(-1), each, smoothing, c.loss_chunk)

        text_loss, text_sums = part(states[:, :S], tables[0], text, captioned, 0.0)
        image_loss, image_sums = part(states[:, S:], tables[1], image - model.first_code, weights, c.label_smoothing)
        # Counted in tokens, of which there are S + N a row, the loss is the weighted sum of the two means.
        loss = (S + N) * (c.text_weight / S * text_loss + (1 - c.text_weight) / N * image_loss)
        rows = jnp.sum(weights)
        sums = {"text_nll": text_sums["nll"], "image_nll": image_sums["nll"], "captioned": jnp.sum(captioned)}
        return loss, {"loss": loss, "tokens": rows * (S + N), "images": rows, **sums}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """The loss, and nats a text token and an image token; perplexity is that of image tokens."""
        S, N = self.model.config.text_length, self.model.config.image_length
        image_nll = sums["image_nll"] / max(sums["images"] * N, 1.0)
        return {
            "loss": sums["loss"] / max(sums["tokens"], 1.0),
            "text_nll": sums["text_nll"] / max(sums["captioned"] * S, 1.0),
            "image_nll": image_nll,
            "perplexity": math.exp(min(image_nll, 700.0)),
        }
