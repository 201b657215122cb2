"""Norms and positions against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models import layers
from transformer_jax.models.layers import Norm, layer_norm, product
from transformer_jax.models.positions import alibi_slopes, relative_buckets, rotary, sinusoidal


def plain_layer_norm(x, scale, bias):
    x = x.astype(jnp.float32)
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 2e-2)])
def test_layer_norms_own_gradient_is_the_derivative(dtype: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    # Rows of very different size and offset, and a table of weights for the outputs.
    x = rng.standard_normal((4, 5, 16)) * 10.0 ** rng.integers(-2, 3, (4, 5, 1)) + rng.standard_normal((4, 5, 1))
    scale, bias = (jnp.float32(rng.standard_normal(16)) for _ in range(2))
    x, outer = jnp.asarray(x, dtype), jnp.float32(rng.standard_normal((4, 5, 16)))

    def own(x, scale, bias):
        y = layer_norm(x, scale, bias, 1e-6)
        return jnp.sum(outer * y.astype(jnp.float32)), y

    def plain(x, scale, bias):
        y = plain_layer_norm(x, scale, bias)
        return jnp.sum(outer * y), y

    gradients, y = jax.jit(jax.grad(own, (0, 1, 2), has_aux=True))(x, scale, bias)
    expected, expected_y = jax.jit(jax.grad(plain, (0, 1, 2), has_aux=True))(x, scale, bias)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.astype(jnp.float32), expected_y, atol=tolerance * 4, rtol=tolerance)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = (np.asarray(g, np.float32) for g in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=tolerance)


def test_rms_norm_is_its_formula() -> None:
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    scale = jnp.arange(1.0, 9.0)
    y = Norm("rms_norm", 1e-6).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(y, x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale, rtol=1e-5)


def test_sinusoidal_table() -> None:
    table = sinusoidal(50, 8)
    assert table[7, 4] == pytest.approx(np.sin(7 / 10000 ** (4 / 8)), abs=1e-6)
    assert table[7, 5] == pytest.approx(np.cos(7 / 10000 ** (4 / 8)), abs=1e-6)


def test_products_of_rotated_vectors_depend_on_distance_alone() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    at = lambda x, position: rotary(x, jnp.array([position]))
    product = lambda i, j: float(jnp.sum(at(q, i) * at(k, j)))
    assert product(9, 4) == pytest.approx(product(25, 20), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-2
    assert np.linalg.norm(at(q, 9)) == pytest.approx(np.linalg.norm(q), rel=1e-5)


def test_alibi_slopes_are_the_published_ones() -> None:
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(12)[8:], 2.0 ** -np.array([0.5, 1.5, 2.5, 3.5]))


def test_relative_buckets_are_exact_when_near_and_never_run_out() -> None:
    """Raffel et al. 2020: 32 buckets; half for each direction in an encoder, the past alone in a decoder."""
    distance = jnp.arange(-300, 301)
    both, past = relative_buckets(distance, True, 32, 128), relative_buckets(distance, False, 32, 128)
    np.testing.assert_array_equal(both[300 - 7 : 308], [7, 6, 5, 4, 3, 2, 1, 0, *range(17, 24)])
    np.testing.assert_array_equal(past[300 - 15 : 300], range(15, 0, -1))
    assert not past[300:].any()
    assert set(np.asarray(both)) == set(range(32)) - {16}
    assert set(np.asarray(past)) == set(range(32))


@pytest.mark.parametrize("native", [True, False], ids=["bfloat16 instructions", "none"])
@pytest.mark.parametrize("num_axes", [1, 2])
def test_rounded_products_and_their_gradients_are_those_of_rounded_operands(
    num_axes: int, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "multiplies_bfloat16", lambda: native)
    rng = np.random.default_rng(0)
    rows, inputs, outputs = (3, 5), (4, 6)[2 - num_axes :], (2, 8)
    x, kernel, dy = (jnp.float32(rng.standard_normal(s)) for s in (rows + inputs, inputs + outputs, rows + outputs))
    rounded = lambda x: x.astype(jnp.bfloat16).astype(jnp.float32)
    compiled = jax.jit(lambda x, kernel: product(x, kernel, "bfloat16", num_axes))
    # A conversion there and back may be left out by the compiler, in some programs, an explicit rounding not.
    assert ("reduce_precision" in compiled.lower(x, kernel).as_text()) == (not native)
    y, gradients = jax.vjp(compiled, x, kernel)
    exact, pull = jax.vjp(lambda x, kernel: product(x, kernel, "float32", num_axes), rounded(x), rounded(kernel))
    assert y.dtype == jnp.float32
    # Equal but for the order of the sums: nothing is rounded after the operands are.
    for ours, theirs in zip((y, *gradients(dy)), (exact, *pull(rounded(dy))), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert np.abs(y - product(x, kernel, "float32", num_axes)).max() > 1e-3
