"""The Flax model against the executable specification, and the incremental decoder against both."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import random_parameters, tiny_config, token_batch
from transformer_jax.models.reference import transformer
from transformer_jax.models.transformer import EncoderDecoder, IncrementalDecoder

CONFIG = tiny_config(num_encoder_layers=3)  # depths differ, so that a stack taken for the other would show
MODEL = EncoderDecoder(CONFIG)
BEAMS, STEPS = 4, 6
ATOL = 1e-5  # logits of order one


@pytest.fixture(scope="module")
def params() -> Any:
    return random_parameters(CONFIG)


@pytest.fixture(scope="module")
def logits() -> Callable:
    return jax.jit(lambda params, source, target: MODEL.apply({"params": params}, source, target))


@pytest.fixture(scope="module")
def decoder() -> Any:
    class Jitted:
        plain = IncrementalDecoder(MODEL)
        start = staticmethod(jax.jit(plain.start, static_argnums=(2, 3)))
        step = staticmethod(jax.jit(plain.step))
        reorder = staticmethod(jax.jit(plain.reorder))

    return Jitted


def test_the_defaults_are_the_papers_model(params, logits):
    source, target = token_batch(seed=1)
    expected = transformer(params, source, target)
    assert expected.std() > 0.5  # numbers that a wrong model would not meet by chance
    np.testing.assert_allclose(logits(params, source, target), expected, atol=ATOL, rtol=1e-5)


def test_rows_of_padding_alone_stay_finite_and_leave_the_others_alone(params, logits):
    source, target = token_batch(seed=2)
    source[2], target[2] = 0, 0
    got = logits(params, source, target)
    assert jnp.isfinite(got).all()
    np.testing.assert_allclose(got[:2], transformer(params, source, target)[:2], atol=ATOL, rtol=1e-5)


def test_shapes_and_size_of_the_published_base_model():
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    config = tiny_config(
        source_vocab_size=37000, target_vocab_size=37000, d_model=512, d_ff=2048, num_heads=8,
        num_encoder_layers=6, num_decoder_layers=6, max_length=1024,
    )  # fmt: skip
    shapes = jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), tokens, tokens)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6) == 63  # table 3 gives 65·10^6 with a slightly larger vocabulary


def test_cached_decoding_equals_the_specification_token_by_token(params, decoder):
    """Four beams with different prefixes: each step's logits are those of the whole prefix, beam by beam."""
    source, _ = token_batch(seed=3)
    target = np.random.default_rng(3).integers(4, 13, (3, BEAMS, STEPS)).astype(np.int32)
    expected = transformer(params, np.repeat(source, BEAMS, axis=0), target.reshape(-1, STEPS))
    expected = expected.reshape(3, BEAMS, STEPS, -1)
    cache = decoder.start(params, source, BEAMS, STEPS)
    fed = np.full((3, BEAMS), 3, np.int32)
    for t in range(STEPS):
        got, cache = decoder.step(params, cache, fed)
        np.testing.assert_allclose(got, expected[:, :, t], atol=ATOL, rtol=1e-5)
        fed = target[:, :, t]


def test_cached_decoding_follows_reordered_beams(params, decoder):
    """Beams that die, split and swap places at every step, differently in each sentence."""
    rng = np.random.default_rng(4)
    source, _ = token_batch(seed=4)
    cache = decoder.start(params, source, BEAMS, STEPS)
    history = np.zeros((3, BEAMS, 0), np.int32)
    fed = np.full((3, BEAMS), 3, np.int32)
    for t in range(STEPS):
        got, cache = decoder.step(params, cache, fed)
        target = np.concatenate([history, np.zeros((3, BEAMS, 1), np.int32)], axis=-1).reshape(-1, t + 1)
        expected = transformer(params, np.repeat(source, BEAMS, axis=0), target)[:, -1]
        np.testing.assert_allclose(got, expected.reshape(3, BEAMS, -1), atol=ATOL, rtol=1e-5)
        parents = rng.integers(0, BEAMS, (3, BEAMS))
        cache = decoder.reorder(cache, parents)
        fed = rng.integers(4, 13, (3, BEAMS)).astype(np.int32)
        history = np.take_along_axis(history, parents[:, :, None], axis=1)
        history = np.concatenate([history, fed[:, :, None]], axis=-1)


def test_every_leaf_of_the_cache_leads_with_the_sentence(params, decoder):
    source, _ = token_batch()
    cache = decoder.start(params, source, BEAMS, STEPS)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(cache)} == {3}
