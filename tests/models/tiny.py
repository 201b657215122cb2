"""Tiny models for tests: parameters drawn without compiling anything, and batches with padding."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from transformer_jax.models.transformer import EncoderDecoder, TransformerConfig

TINY = dict(
    source_vocab_size=13,
    target_vocab_size=13,
    d_model=16,
    d_ff=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    max_length=16,
)


BASE = dict(num_encoder_layers=1, num_decoder_layers=1, d_ff=20)


def tiny_config(**changes: Any) -> TransformerConfig:
    return TransformerConfig(**{**TINY, **changes})


def random_parameters(config: TransformerConfig, seed: int = 0) -> Any:
    """Every leaf random, the biases and norm scales too: a term left out anywhere would show.

    A leaf depends on its path, shape and the seed alone, so models share what they have in common.
    """
    tokens = jnp.ones((1, 2), jnp.int32)
    return drawn_like(jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), tokens, tokens)["params"], seed)


def drawn_like(shapes: Any, seed: int = 0) -> Any:
    """`random_parameters` for any model, from what `jax.eval_shape` gives of its init."""

    def draw(path: Any, leaf: Any) -> jax.Array:
        rng = np.random.default_rng([seed, zlib.crc32(jax.tree_util.keystr(path).encode())])
        spread, centre = (0.2, 1.0) if path[-1].key == "scale" else (0.4, 0.0)
        return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))


def token_batch(seed: int = 0, rows: int = 3, source: int = 7, target: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Source int32[rows, source], target int32[rows, target]; the first row full, the others padded."""
    rng = np.random.default_rng(seed)
    sides = []
    for length in (source, target):
        tokens = rng.integers(4, TINY["target_vocab_size"], (rows, length)).astype(np.int32)
        for row in range(1, rows):
            tokens[row, length - min(2 * row, length - 2) :] = 0
        sides.append(tokens)
    return sides[0], sides[1]


def run(config: TransformerConfig, params: Any, *args: Any, method: Any = None) -> Any:
    """The model applied to args, compiled."""
    apply = lambda p, a: EncoderDecoder(config).apply({"params": p}, *a, method=method)
    return jax.jit(apply)(params, args)
