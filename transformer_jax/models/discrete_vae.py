"""The discrete variational autoencoder of Ramesh et al. 2021 (DALL-E): an image as a grid of tokens, and back.

Notation: B batch, C channels, P side of an image, G side of its grid of tokens, V codes, F features.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.models.layers import Axes, Embedding, Weights, need, uniform
from transformer_jax.models.taps import Network, tap

EPSILON = 0.1
"""Pixel values lie in [ε, 1-ε], where their logits are finite (appendix A.3)."""
LEAST_LOG_SCALE = 0.0
"""Drawn images have surfaces of one colour, which would else be infinitely likely, and drown what edges cost."""

FIRST_SHARPNESS = 10.0
"""Of the logits, before training: a few of hundreds of codes share each place."""


@dataclass(frozen=True, kw_only=True)
class DiscreteVaeConfig:
    """Hyperparameters of one autoencoder.

    Attributes:
      image_size: P.
      channels: C.
      vocab_size: V.
      code_width: length of a code's embedding. Small, codes have neighbours, and one that is rarely drawn learns from
        theirs what it stands for.
      patch_size: the first convolution is of whole patches of so many pixels a side, the last one makes them.
      width: features at the resolution of patches; each halving of the resolution doubles them.
      halvings: how often it is halved, so that G = P / (patch_size · 2^halvings).
      num_blocks: residual blocks at each resolution.
    """

    image_size: int
    channels: int
    vocab_size: int
    code_width: int
    patch_size: int
    width: int
    halvings: int
    num_blocks: int

    def __post_init__(self) -> None:
        least = {"vocab_size": 2, "code_width": 1, "patch_size": 1, "width": 4, "halvings": 0, "num_blocks": 1}
        for name, value in least.items():
            need(getattr(self, name) >= value, f"{name} is {getattr(self, name)}; it must be at least {value}.")
        need(self.width % 4 == 0, f"width is {self.width}; it must be a multiple of 4.")
        need(
            self.image_size % (self.patch_size * 2**self.halvings) == 0,
            f"patch_size is {self.patch_size} and halvings is {self.halvings}, but {self.image_size} pixels are no "
            f"multiple of {self.patch_size * 2**self.halvings}.",
        )

    @property
    def grid(self) -> int:
        """G."""
        return self.image_size // (self.patch_size * 2**self.halvings)


class Convolution(nn.Module):
    """A convolution that keeps the resolution: [B, H, W, F] -> [B, H, W, features]."""

    features: int
    size: int
    axes: Axes = (None, None, None, "embed")

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel, bias = Weights(shape, self.axes, num_input_axes=3, use_bias=True, name="weights")()
        assert bias is not None
        if self.size == 1:
            return jnp.tensordot(x, kernel[0, 0], 1) + bias
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout) + bias


class Block(nn.Module):
    """A residual block with a bottleneck (appendix A.1), whose branch counts for ``gain``. Point: ``features``
    [B, H, W, features]."""

    features: int
    gain: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = self.features // 4
        straight = x if x.shape[-1] == self.features else Convolution(self.features, 1, name="skip")(x)
        for i in range(2):
            x = Convolution(hidden, 3, name=f"convolution_{i}")(nn.relu(x))
        y = straight + self.gain * Convolution(self.features, 1, name="output")(nn.relu(x))
        return tap(self, "features", y)


def unit(x: Array) -> Array:
    """x divided by the length of its last axis."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


class Relaxed(NamedTuple):
    """What training needs of an image: logits of its tokens float32[B, G, G, V], and of the pixels, given relaxed
    tokens, location and log-scale float32[B, P, P, C] of their logit-Laplace distribution.
    """

    logits: Array
    location: Array
    log_scale: Array


class DiscreteVae(Network):
    """``model.apply({"params": params}, images, method="encode")`` gives tokens, method="decode" takes them.

    Codes are unit vectors that encoder and decoder share: logits are sharpness · cos(features, code), the sharpness is
    learned (l2-normalised codes of few dimensions: Yu et al. 2021, section 3.2). With a linear layer of free logits, as
    in Ramesh et al. 2021, fewer codes stay in use (docs/text_to_image.md).

    Points: ``logits`` float32[B, G, G, V], ``location`` float32[B, P, P, C].
    """

    config: DiscreteVaeConfig

    @nn.nowrap
    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        c = self.config
        return (jax.ShapeDtypeStruct((1, c.image_size, c.image_size, c.channels), jnp.uint8),)

    def setup(self) -> None:
        c = self.config
        depth = (c.halvings + 1) * c.num_blocks
        stages = range(c.halvings + 1)
        blocks = lambda stage: [Block(c.width * 2**stage, 1 / depth**0.5) for _ in range(c.num_blocks)]
        self.encoder_input = Convolution(c.width, 3)
        self.encoder_blocks = [blocks(stage) for stage in stages]
        self.encoder_output = Convolution(c.code_width, 1, (None, None, "embed", None))
        first = nn.with_logical_partitioning(nn.initializers.constant(math.log(FIRST_SHARPNESS)), ())
        self.log_sharpness: Any = self.param("log_sharpness", first, ())
        self.codebook = Embedding(c.vocab_size, c.code_width)
        self.decoder_input = Convolution(c.width * 2**c.halvings, 3)
        self.decoder_blocks = [blocks(stage) for stage in reversed(stages)]
        self.decoder_output = Convolution(2 * c.channels * c.patch_size**2, 1, (None, None, "embed", None))

    def logits(self, images: Array) -> Array:
        """uint8[B, P, P, C] -> float32[B, G, G, V]."""
        c, side = self.config, self.config.image_size // self.config.patch_size
        patches = images.reshape(-1, side, c.patch_size, side, c.patch_size, c.channels).swapaxes(2, 3)
        x = self.encoder_input(patches.reshape(-1, side, side, c.patch_size**2 * c.channels) / 127.5 - 1.0)
        for stage, blocks in enumerate(self.encoder_blocks):
            if stage:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for block in blocks:
                x = block(x)
        logits = jnp.exp(self.log_sharpness) * unit(self.encoder_output(nn.relu(x))) @ self.codes().T
        return tap(self, "logits", logits)

    def codes(self) -> Array:
        """Their embeddings, float32[V, code_width], of length one."""
        return unit(self.codebook())

    def pixels(self, codes: Array) -> tuple[Array, Array]:
        """Location and log-scale float32[B, P, P, C] from embedded tokens [B, G, G, code_width]."""
        x = self.decoder_input(codes * self.config.code_width**0.5)
        for stage, blocks in enumerate(self.decoder_blocks):
            if stage:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            for block in blocks:
                x = block(x)
        c, side = self.config, self.config.image_size // self.config.patch_size
        patches = self.decoder_output(nn.relu(x)).reshape(-1, side, side, c.patch_size, c.patch_size, 2 * c.channels)
        pixels = patches.swapaxes(2, 3).reshape(-1, c.image_size, c.image_size, 2 * c.channels)
        location, log_scale = jnp.split(pixels, 2, axis=-1)
        return tap(self, "location", location), jnp.maximum(log_scale, LEAST_LOG_SCALE)

    def __call__(self, images: Array, seeds: Array | None = None, temperature: Array | float = 1.0) -> Relaxed:
        """Tokens relaxed by Gumbel noise of ``seeds`` uint32[B] at a temperature float32[B, 1, 1, 1] (Jang et al. 2016;
        Maddison et al. 2016); without seeds the likeliest tokens, as `encode` gives them.
        """
        logits = self.logits(images)
        if seeds is None:
            codes = self.codes()[jnp.argmax(logits, axis=-1)]
        else:
            gumbel = -jnp.log(-jnp.log(uniform(seeds, "gumbel", logits.shape[1:])))
            codes = jax.nn.softmax((logits + gumbel) / temperature, axis=-1) @ self.codes()
        return Relaxed(logits, *self.pixels(codes))

    def encode(self, images: Array) -> Array:
        """uint8[B, P, P, C] -> tokens int32[B, G, G]."""
        return jnp.argmax(self.logits(images), axis=-1).astype(jnp.int32)

    def decode(self, tokens: Array) -> Array:
        """int32[B, G, G] -> images uint8[B, P, P, C]: sigmoid of the location, mapped back to [0, 1]."""
        location, _ = self.pixels(self.codes()[tokens])
        values = (nn.sigmoid(location) - EPSILON) / (1 - 2 * EPSILON)
        return jnp.round(255 * jnp.clip(values, 0, 1)).astype(jnp.uint8)


def logit_laplace(images: Array, location: Array, log_scale: Array) -> Array:
    """Log-density of pixels uint8[...], mapped to [ε, 1-ε], under the logit-Laplace distribution (eq. 2):

    f(x) = 1 / (2·b·x·(1-x)) · exp(-|logit(x) - μ| / b), the density of sigmoid(Laplace(μ, b)).
    """
    x = EPSILON + (1 - 2 * EPSILON) * images.astype(jnp.float32) / 255
    distance = jnp.abs(jnp.log(x) - jnp.log1p(-x) - location)
    return -math.log(2) - log_scale - jnp.log(x) - jnp.log1p(-x) - distance * jnp.exp(-log_scale)


def divergence(logits: Array) -> Array:
    """KL divergence of softmax(logits [..., V]) from the uniform distribution, in nats."""
    log_q = jax.nn.log_softmax(logits, axis=-1)
    return jnp.sum(jnp.exp(log_q) * log_q, axis=-1) + math.log(logits.shape[-1])
