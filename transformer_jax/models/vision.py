"""The Vision Transformer (Dosovitskiy et al. 2021): the encoder's layers over patches of an image.

Notation: B batch, P side of an image, C channels, T patches, D d_model.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.models.layers import Embedding, Seeds, Weights, dropout, need, product
from transformer_jax.models.positions import sinusoidal
from transformer_jax.models.taps import Network, tap
from transformer_jax.models.transformer import BlockConfig, Stack


@dataclass(frozen=True, kw_only=True)
class VisionTransformerConfig(BlockConfig):
    """Hyperparameters of one classifier."""

    image_size: int
    channels: int
    num_classes: int
    patch_size: int
    num_layers: int

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [n for n in range(1, self.image_size + 1) if self.image_size % n == 0]
        need(
            self.patch_size in sizes,
            f"patch_size is {self.patch_size}; it must divide {self.image_size} pixels, so one of {sizes}.",
        )
        patches = (self.image_size // self.patch_size) ** 2
        need(patches <= self.max_length, f"an image has {patches} patches, max_length is {self.max_length}; raise it.")


class VisionTransformer(Network):
    """``model.apply({"params": params}, images)`` gives logits float32[B, num_classes].

    The states of all patches are averaged (Beyer et al. 2022), there is no class token.

    Points: ``embeddings`` [B, T, D], ``logits`` float32[B, num_classes].
    """

    last_stack = "encoder"
    config: VisionTransformerConfig

    @nn.nowrap
    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        c = self.config
        return (jax.ShapeDtypeStruct((1, c.image_size, c.image_size, c.channels), jnp.uint8),)

    def setup(self) -> None:
        c = self.config
        self.patches = Weights((c.patch_size**2 * c.channels, c.d_model), (None, "embed"), use_bias=True)
        if c.positions == "learned":
            self.positions = Embedding((c.image_size // c.patch_size) ** 2, c.d_model, ("positions", "embed"))
        self.encoder = Stack(c, c.num_layers, causal=False, has_memory=False)
        self.classes = Weights((c.d_model, c.num_classes), ("embed", None), use_bias=True)

    def __call__(self, images: Array, seeds: Seeds = None) -> Array:
        """images [B, P, P, C], of values from 0 to 255."""
        c, (B, P) = self.config, images.shape[:2]
        side = P // c.patch_size
        x = (
            images.astype(c.activation_dtype).reshape(B, side, c.patch_size, side, c.patch_size, c.channels) / 127.5
            - 1.0
        )
        kernel, bias = self.patches()
        assert bias is not None
        x = product(jnp.swapaxes(x, 2, 3).reshape(B, side * side, -1), kernel, c.product_dtype) + bias
        if c.positions == "learned":
            x = x + self.positions()
        elif c.positions == "sinusoidal":
            x = x + sinusoidal(side * side, c.d_model)
        x = dropout(tap(self, "embeddings", x.astype(c.activation_dtype)), seeds, "embedding", c.embedding_dropout_rate)
        states = self.encoder(x, None, None, None, seeds)
        kernel, bias = self.classes()
        assert bias is not None
        return tap(self, "logits", jnp.mean(states, axis=1).astype(jnp.float32) @ kernel + bias)
