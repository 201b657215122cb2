"""Positions: in packed rows, sinusoidal tables, rotary rotation, and the attention biases of ALiBi and of relative
buckets.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array


def positions_in(segments: Array) -> Array:
    """int32[B, T]: how many positions of the same segment come before each; segments int32[B, T] lie in one piece."""
    index = jnp.arange(segments.shape[1])
    starts = jnp.concatenate([jnp.ones_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], axis=1)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def sinusoidal(length: int, d_model: int) -> np.ndarray:
    """Table float32[length, d_model] of Vaswani et al. 2017, section 3.5: sines on even, cosines on odd axes."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, d_model, 2) / d_model)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)[:, :d_model].astype(np.float32)


def rotary(x: Array, positions: Array) -> Array:
    """Rotates pairs (i, i + K/2) of x[B, H, T, K] by angles position · 10000^(-2i/K) (Su et al. 2021, eq. 34).

    ``positions`` int32[T] or int32[]: queries and keys rotated so have products that depend on distance only.
    """
    half = x.shape[-1] // 2
    frequencies = 10000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slopes float32[H] of Press et al. 2022: a geometric sequence, interleaved when H is no power of two."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return np.asarray(slopes, np.float32)


def alibi(distance: Array, num_heads: int) -> Array:
    """Bias float32[..., H, T, S] = -slope · |distance[..., T, S]|; symmetric, so that an encoder can use it too."""
    distance = jnp.abs(distance).astype(jnp.float32)[..., None, :, :]
    return -jnp.asarray(alibi_slopes(num_heads))[:, None, None] * distance


def relative_buckets(distance: Array, bidirectional: bool, num_buckets: int, max_distance: int) -> Array:
    """Bucket int32 of each distance key - query (Raffel et al. 2020, section 2.1): exact near, logarithmic beyond."""
    offset: Array | int = 0
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    scale = (num_buckets - exact) / math.log(max_distance / exact)
    far = exact + (jnp.log(jnp.maximum(distance, 1) / exact) * scale).astype(jnp.int32)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))


class RelativeBias(nn.Module):
    """A learned bias per head and distance bucket, shared by the layers of a stack (Raffel et al. 2020)."""

    num_heads: int
    bidirectional: bool
    num_buckets: int = 32
    max_distance: int = 128

    @nn.compact
    def __call__(self, distance: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("heads", "buckets"))
        table = self.param("table", init, (self.num_heads, self.num_buckets))
        buckets = relative_buckets(distance, self.bidirectional, self.num_buckets, self.max_distance)
        return jax.vmap(lambda row: row[buckets])(table)
