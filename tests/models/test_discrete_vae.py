"""The discrete VAE's parts: the likelihood of pixels, the relaxation, and tokens that are an image's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from transformer_jax.errors import UserError
from transformer_jax.models.discrete_vae import DiscreteVae, DiscreteVaeConfig, divergence, logit_laplace
from transformer_jax.models.layers import row_seeds, uniform

SIZES = dict(image_size=8, channels=3, vocab_size=5, code_width=6, patch_size=2, width=4, halvings=1, num_blocks=1)


@pytest.fixture(scope="module")
def model_and_params():
    model = DiscreteVae(DiscreteVaeConfig(**SIZES))
    return model, nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3), jnp.uint8))["params"])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)


def test_logit_laplace_is_the_density_of_a_squashed_laplace(images):
    rng = np.random.default_rng(1)
    location, log_scale = rng.normal(size=(2, *images.shape)).astype(np.float32)
    x = 0.1 + 0.8 * images / 255
    expected = stats.laplace.logpdf(np.log(x / (1 - x)), location, np.exp(log_scale)) - np.log(x * (1 - x))
    np.testing.assert_allclose(logit_laplace(images, location, log_scale), expected, rtol=1e-4, atol=1e-4)


def test_divergence_from_uniform():
    logits = np.random.default_rng(2).normal(size=(7, 5)).astype(np.float32)
    q = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(divergence(logits), [stats.entropy(row, np.full(5, 0.2)) for row in q], rtol=1e-4)


def test_uniform_numbers_are_uniform_and_independent_of_rows():
    seeds = row_seeds(0, 0, range(4))
    drawn = np.asarray(uniform(seeds, "a", (50_000,)))
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert all(stats.kstest(row, "uniform").pvalue > 1e-3 for row in drawn)
    assert abs(np.corrcoef(drawn)[np.triu_indices(4, 1)]).max() < 0.02
    np.testing.assert_array_equal(uniform(seeds[2:3], "a", (50_000,))[0], drawn[2])
    assert (np.asarray(uniform(seeds, "b", (50_000,))) != drawn).mean() > 0.99
    # The largest of all there are must not round to 1, where a Gumbel would be infinite.
    assert np.float32((2**23 - 1) * 2.0**-23 + 2.0**-24) < 1


def test_the_relaxation_hardens_as_it_cools(model_and_params, images):
    """At a low temperature the decoder is given one code a place; which one follows softmax(logits)."""
    model, params = model_and_params
    seeds = row_seeds(0, 0, range(4))
    cold = model.apply({"params": params}, images, seeds, 1e-3)
    gumbel = -jnp.log(-jnp.log(uniform(seeds, "gumbel", (2, 2, 5))))
    chosen = jnp.argmax(cold.logits + gumbel, axis=-1)
    codes = model.apply({"params": params}, method="codes")
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, atol=1e-5)
    location, _ = model.apply({"params": params}, codes[chosen], method="pixels")
    np.testing.assert_allclose(cold.location, location, atol=1e-4)
    hard = model.apply({"params": params}, images)
    tokens = model.apply({"params": params}, images, method="encode")
    assert tokens.shape == (4, 2, 2)
    np.testing.assert_array_equal(jnp.argmax(hard.logits, axis=-1), tokens)
    decoded = model.apply({"params": params}, tokens, method="decode")
    assert (decoded.dtype, decoded.shape) == (jnp.uint8, images.shape)


def test_what_the_pixels_say_reaches_the_encoder(model_and_params, images):
    model, params = model_and_params

    def loss(params):
        relaxed = model.apply({"params": params}, images, row_seeds(0, 0, range(4)), 1.0)
        return -logit_laplace(images, relaxed.location, relaxed.log_scale).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    for part in ("encoder_input", "encoder_output", "codebook", "decoder_input", "decoder_output"):
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients[part])), part
    assert float(gradients["log_sharpness"]) != 0


def test_impossible_sizes_say_what_would_do():
    for changes, message in (
        ({"halvings": 3}, "8 pixels are no multiple of 16"),
        ({"width": 6}, "multiple of 4"),
        ({"vocab_size": 1}, "vocab_size is 1"),
    ):
        with pytest.raises(UserError, match=message):
            DiscreteVaeConfig(**{**SIZES, **changes})
