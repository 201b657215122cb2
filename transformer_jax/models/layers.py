"""The small layers every model is built from: weights at their final rank, norms, embeddings, dropout.

Shapes are written in the house notation: B batch, T target length, S source length, D d_model, H heads,
G key/value heads, K head_dim, F d_ff, V vocabulary.
"""

import math
import os
import zlib
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.errors import UserError
from transformer_jax.host import ELSEWHERE

Axes = tuple[str | None, ...]
Seeds = Array | None
"""Dropout seeds: uint32[B], one a row, or None for a deterministic pass."""

UNLIKELY = -1e4
"""The bias of a token that is never to be likely: its probability is zero, yet means over logits stay sensible."""


def need(ok: bool, message: str) -> None:
    """Raises: UserError with the message unless ``ok``."""
    if not ok:
        raise UserError(f"model: {message}")


def at_use(variables: Any, dtype: str) -> Any:
    """Parameters as a layer computes with them: what comes boxed is a part, cast before it is unboxed to the whole.

    So half as much is sent in bfloat16. Only weights are ever boxed, and all of them are used in ``dtype``.
    """
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    cast = lambda box: jax.tree.map(lambda part: part.astype(dtype), box)
    return jax.tree.map(lambda leaf: cast(leaf).unbox() if is_box(leaf) else leaf, variables, is_leaf=is_box)


class Weights(nn.Module):
    """A kernel at its final rank, with logical axis names, and an optional bias over the output axes.

    Initialised Xavier-uniform over the flattened input and output axes (Glorot and Bengio 2010).
    """

    shape: tuple[int, ...]
    axes: Axes
    num_input_axes: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        rank, split = len(self.shape), self.num_input_axes
        init = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", in_axis=tuple(range(split)), out_axis=tuple(range(split, rank))
        )
        kernel: Any = self.param("kernel", nn.with_logical_partitioning(init, self.axes), self.shape)
        if not self.use_bias:
            return kernel, None
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[split:])
        bias: Any = self.param("bias", zeros, self.shape[split:])
        return kernel, bias


@cache
def multiplies_bfloat16() -> bool:
    """Whether there are instructions for products of bfloat16 where programs run; on CPUs only in AVX-512 BF16."""
    if ELSEWHERE in os.environ or jax.default_backend() != "cpu":
        return True
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx512_bf16" in cpu.read_text().split()


def operands(*arrays: Array) -> tuple[Array, ...]:
    """The operands of a product, as they are: but bfloat16 in float32, with the same values, where that is faster.

    A CPU without instructions for bfloat16 takes 1.7 times as long for its products as for those of float32.
    """
    if multiplies_bfloat16():
        return arrays
    # Rounded once more: a conversion there and back alone XLA leaves out, but not in every program.
    rounded = lambda x: jax.lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7)
    return tuple(rounded(x) if x.dtype == jnp.bfloat16 else x for x in arrays)


def product(x: Array, kernel: Array, dtype: str, num_axes: int = 1) -> Array:
    """x[..., I] · kernel[I, O], over the last ``num_axes`` axes of x, of operands in ``dtype``; in the dtype of x."""
    if x.dtype == dtype:
        x, kernel = operands(x, kernel.astype(dtype))
        return jnp.tensordot(x, kernel, num_axes).astype(dtype)
    return _rounded_product(x, kernel, dtype, num_axes)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rounded_product(x: Array, kernel: Array, dtype: str, num_axes: int) -> Array:
    """A product of float32 arrays whose operands are rounded to ``dtype``, sums in float32, forwards and backwards.

    Differentiation would by itself multiply the float32 cotangent with a rounded operand, at the speed of float32.
    """
    return _rounded_product_forward(x, kernel, dtype, num_axes)[0]


def _rounded_product_forward(x: Array, kernel: Array, dtype: str, num_axes: int) -> tuple[Array, tuple]:
    x, kernel = operands(x.astype(dtype), kernel.astype(dtype))
    return jnp.tensordot(x, kernel, num_axes, preferred_element_type=jnp.float32), (x, kernel)


def _rounded_product_backward(dtype: str, num_axes: int, residual: tuple, dy: Array) -> tuple[Array, Array]:
    x, kernel = residual
    (dy,) = operands(dy.astype(dtype))
    rows, outputs = tuple(range(x.ndim - num_axes)), kernel.ndim - num_axes
    of_y, of_kernel = tuple(range(len(rows), dy.ndim)), tuple(range(num_axes, num_axes + outputs))
    dx = jnp.tensordot(dy, kernel, (of_y, of_kernel), preferred_element_type=jnp.float32)
    return dx, jnp.tensordot(x, dy, (rows, rows), preferred_element_type=jnp.float32)


_rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


class Embedding(nn.Module):
    """A table float32[V, D], drawn from N(0, 1/D) so that scaled look-ups and tied logits are of order one."""

    vocab_size: int
    features: int
    axes: Axes = ("vocab", "embed")

    @nn.compact
    def __call__(self) -> Array:
        init = nn.initializers.normal(self.features**-0.5)
        shape = (self.vocab_size, self.features)
        table: Any = self.param("embedding", nn.with_logical_partitioning(init, self.axes), shape)
        return table


def draw_normal(boxed: Any, rng: Array, std: float, output_std: float) -> Any:
    """Parameters boxed with their axis names, with every kernel and table drawn anew from N(0, std²).

    Args: output_std: for the kernels called "output", which end a residual branch.
    """
    count = iter(range(1 << 30))

    def draw(path: Any, box: Any) -> Any:
        names = [key.key for key in path]
        if names[-1] not in ("kernel", "embedding"):
            return box
        key = jax.random.fold_in(rng, next(count))
        return box.replace_boxed(
            (output_std if names[-2] == "output" else std) * jax.random.normal(key, box.value.shape)
        )

    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
    return jax.tree_util.tree_map_with_path(draw, boxed, is_leaf=is_box)


class OutputBias(nn.Module):
    """A bias float32[V] on logits."""

    vocab_size: int

    @nn.compact
    def __call__(self) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        bias: Any = self.param("bias", init, (self.vocab_size,))
        return bias


def widened(hidden: Array, table: Array) -> Array:
    """hidden[..., D] with a last feature of ones where table[V, D + 1] has a bias as its last column."""
    missing = table.shape[-1] - hidden.shape[-1]
    return jnp.pad(hidden, ((0, 0),) * (hidden.ndim - 1) + ((0, missing),), constant_values=1) if missing else hidden


def linear_logits(hidden: Array, table: Array, dtype: str) -> Array:
    """Logits float32[B, T, V] of hidden[B, T, D] by table[V, D], or by table[V, D + 1] with its bias; ``dtype`` is
    that of the product."""
    D = hidden.shape[-1]
    hidden, kernel = operands(hidden.astype(dtype), table[:, :D].astype(dtype))
    logits = jnp.einsum("btd,vd->btv", hidden, kernel, preferred_element_type=jnp.float32)
    return logits if table.shape[-1] == D else logits + table[:, D]


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis, in float32."""

    kind: str
    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1:]
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale: Any = self.param("scale", ones, features)
        if self.kind == "rms_norm":
            x32 = x.astype(jnp.float32)
            rms = jnp.sqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
            return (x32 / rms * scale).astype(x.dtype)
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
        bias: Any = self.param("bias", zeros, features)
        return layer_norm(x, scale, bias, self.epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """LayerNorm in float32 whose backward pass is written out: it keeps x and two numbers a row, nothing else."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple]:
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    centred = x32 - mean
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
    return (centred * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(epsilon: float, residual: tuple, dy: Array) -> tuple[Array, Array, Array]:
    x, mean, inverse, scale = residual
    dy32 = dy.astype(jnp.float32)
    normalised = (x.astype(jnp.float32) - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    dnormalised = dy32 * scale
    projection = jnp.mean(dnormalised * normalised, axis=-1, keepdims=True)
    dx = inverse * (dnormalised - jnp.mean(dnormalised, axis=-1, keepdims=True) - normalised * projection)
    return dx.astype(x.dtype), jnp.sum(dy32 * normalised, axis=rows), jnp.sum(dy32, axis=rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def mix(x: Array) -> Array:
    """A bijective hash of uint32 with full avalanche (two multiply–xorshift rounds)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def fold_in(seeds: Seeds, value: int | str | Array) -> Seeds:
    """Seeds for a part of the network: a layer's number, or a name. None stays None."""
    if seeds is None:
        return None
    salt = zlib.crc32(value.encode()) if isinstance(value, str) else value
    return mix(seeds + mix(jnp.asarray(salt, jnp.uint32) + jnp.uint32(0x9E3779B9)))


def random_bits(seeds: Array, site: str, shape: tuple[int, ...]) -> Array:
    """uint32[B, *shape] from a hash of (row seed, site, position in the row), and of nothing else."""
    row = fold_in(seeds, site)
    assert row is not None
    row = row.reshape(-1, *(1,) * len(shape))
    position = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(1, *shape)
    # A multiplier of each row's own, so that no two rows' streams are shifted copies of each other.
    return mix(position * (mix(row) | jnp.uint32(1)) + row)


def uniform(seeds: Array, site: str, shape: tuple[int, ...]) -> Array:
    """float32[B, *shape] between 0 and 1, neither of which it is, from `random_bits`."""
    return (random_bits(seeds, site, shape) >> 9).astype(jnp.float32) * 2.0**-23 + 2.0**-24


def dropout(x: Array, seeds: Seeds, site: str, rate: float) -> Array:
    """Inverted dropout (Srivastava et al. 2014) with masks from a hash of (row seed, site, position in the row).

    A row's mask depends on nothing else: not on the other rows, the device that holds it, the microbatch, or
    whether layers are scanned. It costs a fraction of a threefry mask.
    """
    if seeds is None or rate == 0.0:
        return x
    bits = random_bits(seeds, site, x[0].shape)
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def row_seeds(seed: Array | int, step: Array | int, rows: Sequence[int] | Array) -> Array:
    """Dropout seeds uint32[B] for global row numbers ``rows`` at an optimizer step."""
    base = mix(jnp.asarray(seed, jnp.uint32) + mix(jnp.asarray(step, jnp.uint32) + jnp.uint32(0x9E3779B9)))
    return mix(base + mix(jnp.asarray(rows, jnp.uint32) * jnp.uint32(0x85EBCA6B) + jnp.uint32(1)))
