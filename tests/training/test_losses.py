"""Losses in closed form and in chunks, against what they stand for."""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.models import layers
from transformer_jax.training.losses import (
    Sums,
    consistent_rows,
    cross_entropy,
    in_chunks,
    summed_cross_entropy,
)

N, D, V = 23, 8, 37


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Two passes' states, a table, targets and weights of N tokens, five of them padding."""
    rng = np.random.default_rng(0)
    weights = np.ones(N, np.float32)
    weights[[3, 4, 11, N - 2, N - 1]] = 0
    return {
        "rows": (jnp.float32(rng.standard_normal((N, D))), jnp.float32(rng.standard_normal((N, D)))),
        "table": jnp.float32(rng.standard_normal((V, D))),
        "constants": {"targets": jnp.asarray(rng.integers(0, V, N)), "weights": jnp.asarray(weights)},
    }


def one_hot_loss(logits: np.ndarray, targets: np.ndarray, smoothing: float) -> np.ndarray:
    """-Σ q log p with the smoothed target distribution q written out, in float64."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    q = (1 - smoothing) * np.eye(logits.shape[-1])[targets] + smoothing / logits.shape[-1]
    return -(q * log_p).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_that_of_the_smoothed_distribution(made: dict[str, Any], smoothing: float) -> None:
    logits, targets = 3 * made["rows"][0] @ made["table"].T, made["constants"]["targets"]
    smoothed, nll = cross_entropy(logits, targets, smoothing)
    np.testing.assert_allclose(smoothed, one_hot_loss(logits, targets, smoothing), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(nll, one_hot_loss(logits, targets, 0.0), rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda z: cross_entropy(z, targets, smoothing)[0].sum())(logits)
    q = (1 - smoothing) * np.eye(V)[targets] + smoothing / V
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - q, atol=1e-6)


def test_cross_entropy_of_large_and_low_precision_logits_stays_exact() -> None:
    smoothed, nll = cross_entropy(jnp.array([[1000.0, 0.0], [-1000.0, 0.0]]), jnp.array([0, 0]), 0.0)
    np.testing.assert_allclose(smoothed, [0.0, 1000.0])
    smoothed, nll = cross_entropy(jnp.zeros((1, 30000), jnp.bfloat16), jnp.array([5]), 0.1)
    assert smoothed.dtype == nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, np.log(30000), rtol=1e-6)


def gradients_of(loss: Any, *args: Any) -> Any:
    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*args)


def plain_loss(hidden: Any, table: Any, constants: Any) -> tuple[Any, Sums]:
    """The sum over tokens from all logits at once."""
    smoothed, nll = cross_entropy(hidden @ table.T, constants["targets"], 0.1)
    weights = constants["weights"]
    total = jnp.sum(weights * smoothed)
    return total, {"loss": total, "nll": jnp.sum(weights * nll), "tokens": jnp.sum(weights)}


def chunked_loss(chunk: int) -> Callable[..., tuple[Any, Sums]]:
    return lambda hidden, table, constants: summed_cross_entropy(
        hidden, table, constants["targets"], constants["weights"], 0.1, chunk
    )


R_DROP, SIMCUT = (consistent_rows(0.1, 2.5, symmetric=symmetric) for symmetric in (True, False))
LOSSES = {
    "cross_entropy": (plain_loss, chunked_loss, lambda rows: rows[0]),
    "r_drop": (R_DROP, lambda chunk: in_chunks(R_DROP, chunk), lambda rows: rows),
    "simcut": (SIMCUT, lambda chunk: in_chunks(SIMCUT, chunk), lambda rows: rows),
}


@pytest.mark.parametrize(
    ("name", "chunk"), [("cross_entropy", c) for c in (1, 5, N, 64)] + [("r_drop", 5), ("simcut", 5), ("simcut", 64)]
)
def test_chunks_change_neither_value_nor_gradients(made: dict[str, Any], name: str, chunk: int) -> None:
    """Chunks that divide N, do not, hold all of it and more; under an outer factor, as a mean makes one."""
    plain, in_chunks_of, choose = LOSSES[name]

    def value_and_gradients(loss: Any) -> Any:
        scaled = lambda rows, table: jax.tree.map(lambda x: 0.7 * x, loss(rows, table, made["constants"]))
        return gradients_of(scaled, choose(made["rows"]), made["table"])

    whole, chunked = value_and_gradients(plain), value_and_gradients(in_chunks_of(chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), whole, chunked)
    without_gradient = in_chunks_of(chunk)(choose(made["rows"]), made["table"], made["constants"])
    np.testing.assert_allclose(0.7 * without_gradient[0], whole[0][0], rtol=1e-5)
    assert without_gradient[1]["tokens"] == N - 5


@pytest.mark.parametrize("chunk", [4, N])
@pytest.mark.parametrize("kept", [0, 1, N])
def test_none_one_and_all_tokens_count(made: dict[str, Any], kept: int, chunk: int) -> None:
    """A batch of padding alone has no loss and no gradients, and no NaN."""
    constants = made["constants"] | {"weights": jnp.float32(np.arange(N) >= N - kept)}
    gradient = lambda loss: jax.value_and_grad(loss, (0, 1), has_aux=True)(made["rows"][0], made["table"], constants)
    expected, got = gradient(plain_loss), gradient(chunked_loss(chunk))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), expected, got)
    assert got[0][1]["tokens"] == kept


def test_large_logits_do_not_overflow_in_chunks(made: dict[str, Any]) -> None:
    rows = 300.0 * made["rows"][0]
    expected = plain_loss(rows, made["table"], made["constants"])[0]
    (value, _), gradients = gradients_of(chunked_loss(5), rows, made["table"], made["constants"])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert all(jnp.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("native", [True, False], ids=["bfloat16 instructions", "none"])
def test_chunks_of_bfloat16_states(made: dict[str, Any], native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients come in the dtypes of what they are gradients of, and near those of float32."""
    monkeypatch.setattr(layers, "multiplies_bfloat16", lambda: native)
    gradient = lambda *args: gradients_of(chunked_loss(5), *args)
    hidden = made["rows"][0].astype(jnp.bfloat16)
    (expected, _), wanted = gradient(hidden.astype(jnp.float32), made["table"], made["constants"])
    (value, _), got = gradient(hidden, made["table"], made["constants"])
    assert (value.dtype, got[0].dtype, got[1].dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(value, expected, rtol=1e-2)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, atol=0.03 * np.abs(theirs).max())


def test_no_buffer_of_all_tokens_by_vocabulary_lives() -> None:
    """In the compiled value and gradients no array is that large, nor is the scratch memory."""
    tokens, vocabulary = 4096, 5003
    shape = jax.ShapeDtypeStruct
    rows, table = shape((tokens, D), jnp.float32), shape((vocabulary, D), jnp.float32)
    constants = {"targets": shape((tokens,), jnp.int32), "weights": shape((tokens,), jnp.float32)}

    def sizes(loss: Any, rows: Any) -> tuple[int, int]:
        """The elements of the largest array in the program, and its scratch memory in bytes."""
        program = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(rows, table, constants).compile()
        arrays = re.findall(r"(?:f32|bf16|s32|pred)\[([\d,]+)\]", program.as_text())
        largest = max(math.prod(map(int, dims.split(","))) for dims in arrays)
        return largest, program.memory_analysis().temp_size_in_bytes

    for loss, given in ((chunked_loss(64), rows), (in_chunks(R_DROP, 64), (rows, rows))):
        largest, scratch = sizes(loss, given)
        assert largest < tokens * vocabulary / 16
        assert scratch < 4 * tokens * vocabulary / 4
    assert sizes(plain_loss, rows)[0] >= tokens * vocabulary  # the same look at one that does


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_consistency_losses_are_their_papers_formulas(made: dict[str, Any], symmetric: bool) -> None:
    (first, second), table, constants = made["rows"], np.asarray(made["table"], np.float64), made["constants"]
    z1, z2 = np.asarray(first, np.float64) @ table.T, np.asarray(second, np.float64) @ table.T
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (z1, z2))
    one, two = (one_hot_loss(z, constants["targets"], 0.1) for z in (z1, z2))
    if symmetric:  # R-Drop's loss is of both passes together; ours is on the scale of one
        rows = (one + two + 2.5 * (divergence(p, q) + divergence(q, p)) / 2) / 2
    else:
        rows = one + 2.5 * divergence(p, q)
    expected = (rows * constants["weights"]).sum()
    total, sums = consistent_rows(0.1, 2.5, symmetric=symmetric)(made["rows"], made["table"], constants)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], expected, rtol=1e-5)
    plain = one_hot_loss(z1, constants["targets"], 0.0) * constants["weights"]
    np.testing.assert_allclose(sums["nll"], plain.sum(), rtol=1e-5)
    assert sums["tokens"] == N - 5


def test_equal_passes_have_no_divergence(made: dict[str, Any]) -> None:
    first, table, constants = made["rows"][0], made["table"], made["constants"]
    plain, _ = plain_loss(first, table, constants)
    for symmetric in (True, False):
        total, _ = consistent_rows(0.1, 9.0, symmetric=symmetric)((first, first), table, constants)
        np.testing.assert_allclose(total, plain, rtol=1e-6)
