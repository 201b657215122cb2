"""Multi-head attention (Vaswani et al. 2017, section 3.2), with multi-query and grouped heads.

Notation: B batch, T queries, S keys, D d_model, H heads, G key/value heads (H = G·R), K head_dim.
Heads come before positions, so that every product is a batched matrix product without a transpose.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.sharding import PartitionSpec as P

from transformer_jax.models.layers import Seeds, Weights, dropout, product
from transformer_jax.models.positions import rotary
from transformer_jax.models.taps import tap, tapped

MASKED = -1e9
"""Added to scores that must not be seen: finite, so that a row of padding alone stays free of NaN."""


def own_segment(queries: Array, keys: Array) -> Array:
    """Bias float32[B, 1, T, S] by which each query sees the keys of its own segment only, from the numbers of segments
    int32[B, T] and int32[B, S]: so what is packed into a row is as in a row of its own."""
    return jnp.where(queries[:, None, :, None] == keys[:, None, None, :], 0.0, MASKED)


def split_heads(x: Array, dtype: str, *weights: tuple[Array, Array | None]) -> list[Array]:
    """x[B, T, D] · kernel[D, H, K] + bias[H, K] -> [B, H, T, K] for each of the weights, by one matrix product."""
    kernels, biases = zip(*weights, strict=True)
    # Stacked on an axis of their own, which no device splits.
    y = product(x, jnp.stack(kernels, 1), dtype)
    y = y if biases[0] is None else y + jnp.stack(biases).astype(x.dtype)
    return [jnp.swapaxes(y[:, :, i], 1, 2) for i in range(len(weights))]


def over_heads(compute: Callable[..., Array], *arrays: Array) -> Array:
    """``compute(*arrays)`` on each device's heads: axis 1 of the arrays and of the result, or one for all.

    For a kernel that the compiler cannot split over the axes of a mesh that are left to it, beside others that are not.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.manual_axes and mesh.auto_axes):
        return compute(*arrays)
    specs = [P(None, mesh.auto_axes if x.shape[1] > 1 else None) for x in arrays]
    names = set(mesh.auto_axes)
    split = jax.shard_map(compute, in_specs=tuple(specs), out_specs=specs[0], axis_names=names, check_vma=False)
    return split(*arrays)


class MultiHeadAttention(nn.Module):
    """``attend(query(x), *keys_values(y), bias)``; `__call__` does the three at once.

    Points: ``queries`` [B, H, T, K] and ``keys`` [B, G, S, K], rotated if they are, ``values`` [B, G, S, K],
    ``weights`` float32[B, H, T, S] and ``heads`` [B, H, T, K], each head's output before the output projection.
    """

    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    use_bias: bool
    dropout_rate: float
    product_dtype: str
    implementation: str = "plain"

    def setup(self) -> None:
        D, H, G, K = self.d_model, self.num_heads, self.num_kv_heads, self.head_dim
        self.query_weights = Weights((D, H, K), ("embed", "heads", "head_dim"), use_bias=self.use_bias, name="query")
        self.key_weights = Weights((D, G, K), ("embed", "kv_heads", "head_dim"), use_bias=self.use_bias, name="key")
        self.value_weights = Weights((D, G, K), ("embed", "kv_heads", "head_dim"), use_bias=self.use_bias, name="value")
        self.output_weights = Weights(
            (H, K, D), ("heads", "head_dim", "embed"), num_input_axes=2, use_bias=self.use_bias, name="output"
        )

    def query(self, x: Array, positions: Array | None = None) -> Array:
        """[B, T, D] -> [B, H, T, K]; rotated when ``positions`` int32[T] is given."""
        (q,) = split_heads(x, self.product_dtype, self.query_weights())
        return tap(self, "queries", q if positions is None else rotary(q, positions))

    def keys_values(self, x: Array, positions: Array | None = None) -> tuple[Array, Array]:
        """[B, S, D] -> keys and values [B, G, S, K]; keys rotated when ``positions`` int32[S] is given."""
        k, v = split_heads(x, self.product_dtype, self.key_weights(), self.value_weights())
        return tap(self, "keys", k if positions is None else rotary(k, positions)), tap(self, "values", v)

    def project(self, x: Array, positions: Array | None = None) -> tuple[Array, Array, Array]:
        """`query` and `keys_values` of the same x; one matrix product where there are as many heads of each."""
        if self.num_kv_heads != self.num_heads:
            return self.query(x, positions), *self.keys_values(x, positions)
        q, k, v = split_heads(x, self.product_dtype, self.query_weights(), self.key_weights(), self.value_weights())
        if positions is not None:
            q, k = rotary(q, positions), rotary(k, positions)
        return tap(self, "queries", q), tap(self, "keys", k), tap(self, "values", v)

    def attend(
        self, q: Array, k: Array, v: Array, bias: Array | None, seeds: Seeds = None, causal: bool = False
    ) -> Array:
        """softmax(q·k/√K + bias)·v, then the output projection (eq. 1 and 2).

        Args:
          q: [B, H, T, K].  k, v: [B, G, S, K].  bias: float32, broadcastable to [B, H, T, S].
          causal: that the bias masks every key after the query: a fused kernel can then leave them out.
        Returns: [B, T, D].
        """
        # A fused kernel never has the weights, so a pass that may want to see them takes the plain way.
        plain = self.implementation == "plain" or tapped(self)
        heads = self._plain(q, k, v, bias, seeds) if plain else self._fused(q, k, v, bias, causal)
        kernel, output_bias = self.output_weights()
        heads = jnp.swapaxes(tap(self, "heads", heads), 1, 2)
        y = product(heads, kernel, self.product_dtype, num_axes=2)
        return y if output_bias is None else y + output_bias.astype(q.dtype)

    def _plain(self, q: Array, k: Array, v: Array, bias: Array | None, seeds: Seeds) -> Array:
        B, H, T, K = q.shape
        G, S = k.shape[1:3]
        # Heads of one group share keys, so they are further query rows of one product.
        scores = jnp.einsum("bgqk,bgsk->bgqs", (q * K**-0.5).reshape(B, G, -1, K), k)
        scores = scores.reshape(B, H, T, S).astype(jnp.float32)
        weights = tap(self, "weights", jax.nn.softmax(scores if bias is None else scores + bias, axis=-1))
        weights = dropout(weights.astype(q.dtype), seeds, "attention_weights", self.dropout_rate)
        return jnp.einsum("bgqs,bgsk->bgqk", weights.reshape(B, G, -1, S), v).reshape(B, H, T, K)

    def _fused(self, q: Array, k: Array, v: Array, bias: Array | None, causal: bool) -> Array:
        (B, _, T, _), S = q.shape, k.shape[2]
        if bias is not None:
            bias = bias.reshape(*(1,) * (4 - bias.ndim), *bias.shape).astype(q.dtype)
            bias = jnp.broadcast_to(bias, (B, bias.shape[1], T, S))
            # cuDNN takes no odd lengths with a bias: one more query is computed in vain, one more key never seen.
            even = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, x.shape[2] % 2), (0, 0)))
            q, k, v = map(even, (q, k, v))
            bias = jnp.pad(bias, ((0, 0), (0, 0), (0, T % 2), (0, S % 2)), constant_values=MASKED)

        def attend(q: Array, k: Array, v: Array, *bias: Array) -> Array:
            q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
            implementation: Any = self.implementation
            heads = jax.nn.dot_product_attention(q, k, v, *bias, is_causal=causal, implementation=implementation)
            return jnp.swapaxes(heads, 1, 2)

        return over_heads(attend, q, k, v, *(() if bias is None else (bias,)))[:, :, :T]

    def __call__(
        self,
        x: Array,
        y: Array,
        bias: Array | None,
        positions: Array | None = None,
        seeds: Seeds = None,
        causal: bool = False,
    ) -> Array:
        """Queries from x[B, T, D], keys and values from y[B, S, D]."""
        q, k, v = self.project(x, positions) if x is y else (self.query(x, positions), *self.keys_values(y, positions))
        return self.attend(q, k, v, bias, seeds, causal)
