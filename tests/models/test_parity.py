"""Parity with implementations that others wrote: Hugging Face T5 and Llama, torch.nn.Transformer.

Marian, Pegasus and GPT-2, which are converted, are in tests/conversion. Weights, inputs and outputs are in fixtures/,
made by fixtures/make_fixtures.py.
"""

from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.tiny import tiny_config
from transformer_jax.models.attention import MASKED, MultiHeadAttention
from transformer_jax.models.transformer import EncoderDecoder, IncrementalDecoder, TransformerConfig

SIZES = dict(source_vocab_size=32, target_vocab_size=32, d_ff=24)
CONFIGS = {
    "torch_pre_norm": tiny_config(
        **SIZES,
        attention_bias=True,
        norm_epsilon=1e-5,
        num_encoder_layers=1,
        activation="gelu",
        norm_placement="pre",
        positions="learned",
        tie_embeddings="none",
    ),
    "t5": tiny_config(
        **{**SIZES, "d_ff": 20, "max_length": 40},
        num_encoder_layers=1,
        activation="geglu",
        feed_forward_bias=False,
        norm_placement="pre",
        norm="rms_norm",
        positions="relative",
        tie_embeddings="source_target",
    ),
}


def read(name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """The parameter tree and the other arrays of a fixture."""
    with np.load(Path(__file__).parent / "fixtures" / f"{name}.npz") as file:
        arrays = {key: jnp.asarray(file[key]) for key in file.files}
    params = {key.removeprefix("params/"): v for key, v in arrays.items() if key.startswith("params/")}
    others = {key: np.asarray(v) for key, v in arrays.items() if not key.startswith("params/")}
    return flax.traverse_util.unflatten_dict(params, sep="/"), others


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_theirs(name: str) -> None:
    """The same numbers from a padded source; and the parameter tree has exactly their weights."""
    config: TransformerConfig = CONFIGS[name]
    params, given = read(name)
    model = EncoderDecoder(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), given["source"], given["target"])["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, nn.unbox(shapes))
    logits = jax.jit(model.apply)({"params": params}, given["source"], given["target"])
    assert (given["source"] == 0).any()
    assert given["logits"].std() > 0.5
    np.testing.assert_allclose(logits, given["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["torch_pre_norm", "t5"])
def test_cached_logits_equal_theirs(name: str) -> None:
    params, given = read(name)
    decoder = IncrementalDecoder(EncoderDecoder(CONFIGS[name]))
    length = given["target"].shape[1]
    cache = jax.jit(decoder.start, static_argnums=(2, 3))(params, given["source"], 1, length)
    step = jax.jit(decoder.step)
    fed = np.full((3, 1), 3, np.int32)
    for t in range(length):
        logits, cache = step(params, cache, fed)
        np.testing.assert_allclose(logits[:, 0], given["logits"][:, t], atol=1e-5, rtol=1e-5)
        fed = given["target"][:, t : t + 1]


def test_rotary_grouped_attention_equals_llamas() -> None:
    params, given = read("llama_attention")
    block = MultiHeadAttention(16, 4, 2, 4, use_bias=False, dropout_rate=0.0, product_dtype="float32")
    positions = np.arange(11)
    causal = np.where(positions[None] <= positions[:, None], 0.0, MASKED)
    y = block.apply({"params": params}, given["inputs"], given["inputs"], causal, positions)
    np.testing.assert_allclose(y, given["outputs"], atol=1e-5, rtol=1e-5)
