"""The train step: accumulation and devices change nothing, the average and the counts are what they say."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.tiny import random_parameters, run
from tests.training.tiny_training import GUARD, make_batch, make_task
from transformer_jax.models.layers import row_seeds
from transformer_jax.training.losses import cross_entropy
from transformer_jax.training.step import abstract_state, make_train_step, sums_and_gradients


def one_device_mesh() -> jax.sharding.Mesh:
    auto = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=auto, devices=jax.devices()[:1])


@functools.cache
def compiled(regularizer: str, accumulation: int) -> Any:
    compute = sums_and_gradients(make_task(regularizer), one_device_mesh(), accumulation)
    return jax.jit(compute)


def assert_close(a: Any, b: Any, rtol: float = 1e-5) -> None:
    """Each leaf to ``rtol`` of its largest value."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=rtol * (1e-6 + np.abs(y).max())), a, b)


@pytest.mark.parametrize(("regularizer", "accumulation"), [("none", 8), ("r_drop", 2), ("simcut", 2)])
def test_accumulation_equals_the_whole_batch(regularizer: str, accumulation: int) -> None:
    """Token for token, dropout on: microbatches hold unequal numbers of tokens, one may be padding alone."""
    batch, seeds = make_batch(), row_seeds(1, 2, jnp.arange(8))
    params = random_parameters(make_task().model.config)
    whole = compiled(regularizer, 1)(params, batch, seeds)
    assert_close(compiled(regularizer, accumulation)(params, batch, seeds), whole)
    assert whole[0]["tokens"] == np.count_nonzero(batch["target"])


def test_a_batch_of_padding_has_no_loss_and_no_gradients() -> None:
    nothing = jax.tree.map(np.zeros_like, make_batch())
    params = random_parameters(make_task().model.config)
    sums, gradients = compiled("none", 1)(params, nothing, row_seeds(1, 2, jnp.arange(8)))
    assert sums["tokens"] == sums["loss"] == 0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradients))


def test_the_loss_without_dropout_is_the_cross_entropy_of_the_logits() -> None:
    task, batch = make_task("r_drop"), make_batch()  # a regulariser is part of training alone
    params = random_parameters(task.model.config)
    loss, sums = jax.jit(task.loss)(params, batch, None)
    logits = run(task.model.config, params, batch["source"], batch["target"])
    targets = batch["target"].reshape(-1)
    smoothed, nll = cross_entropy(logits.reshape(targets.size, -1), targets, 0.1)
    np.testing.assert_allclose(loss, smoothed[targets != 0].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums["nll"], nll[targets != 0].sum(), rtol=1e-5)


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Four steps of plain gradient descent with an average, every state kept."""
    task, mesh, optimizer = make_task(), one_device_mesh(), optax.sgd(0.5)
    shapes, create = abstract_state(task, optimizer, mesh, seed=3, ema=True)
    schedule = lambda step: 0.5
    step = make_train_step(task, optimizer, schedule, mesh, shapes, seed=3, accumulation=2, ema_decay=0.25, guard=GUARD)
    state, states, metrics = create(), [], []
    for i in range(4):
        states.append(jax.tree.map(np.asarray, state))  # the step donates its buffers
        state, values = step(state, make_batch(seed=i))
        metrics.append(jax.tree.map(float, values))
    states.append(jax.tree.map(np.asarray, state))
    return {"step": step, "create": create, "states": states, "metrics": metrics}


def test_parameters_move_against_the_gradient_of_the_mean_over_tokens(trained: dict[str, Any]) -> None:
    first, second = trained["states"][:2]
    batch = make_batch(seed=0)
    sums, gradients = compiled("none", 1)(first.params, batch, row_seeds(3, 0, jnp.arange(8)))
    mean = jax.tree.map(lambda g: g / sums["tokens"], gradients)
    assert_close(second.params, jax.tree.map(lambda p, g: p - 0.5 * g, first.params, mean))
    metrics = trained["metrics"][0]
    assert metrics["gradient_norm"] == pytest.approx(float(optax.global_norm(mean)), rel=1e-4)
    assert metrics["loss"] == pytest.approx(float(sums["loss"]), rel=1e-5)
    assert metrics["learning_rate"] == 0.5


def test_the_average_starts_as_the_parameters_and_follows_its_formula(trained: dict[str, Any]) -> None:
    states = trained["states"]
    jax.tree.map(np.testing.assert_array_equal, states[0].ema_params, states[0].params)
    average = states[0].params
    for i, state in enumerate(states[1:]):
        decay = min(0.25, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
        assert_close(state.ema_params, average)
    assert [int(state.step) for state in states] == [0, 1, 2, 3, 4]


def test_the_step_is_a_function_of_state_and_batch(trained: dict[str, Any]) -> None:
    """The same twice, bit for bit; another step number has other dropout masks."""
    again, _ = trained["step"](trained["create"](), make_batch(seed=0))
    jax.tree.map(np.testing.assert_array_equal, again, trained["states"][1])
    params, batch = trained["states"][0].params, make_batch(seed=0)
    losses = [float(trained["step"].gradients(params, batch, jnp.int32(n))[0]["loss"]) for n in (0, 0, 1)]
    assert losses[0] == losses[1] == pytest.approx(trained["metrics"][0]["loss"], rel=1e-6)
    assert abs(losses[0] - losses[2]) > 1e-2
