"""Schedules at their corners; every optimizer learns; what Muon, clipping and Schedule-Free do."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from tests.models.tiny import random_parameters, tiny_config
from transformer_jax.errors import UserError
from transformer_jax.training.optimizers import (
    OptimizerConfig,
    evaluation_parameters,
    learning_rate,
    make_optimizer,
)

ADAM = OptimizerConfig(
    name="adam",
    schedule="constant",
    peak_learning_rate=0.1,
    warmup_steps=0,
    decay_fraction=0.2,
    b1=0.9,
    b2=0.98,
    epsilon=1e-9,
    weight_decay=0.0,
    clip_norm=0.0,
)
replace = dataclasses.replace


@pytest.mark.parametrize(
    ("schedule", "corners"),
    {
        "inverse_square_root": {10: 0.1, 40: 0.05, 1000: 0.01},
        "cosine": {10: 0.1, 55: 0.05, 100: 0.0, 200: 0.0},
        "linear": {10: 0.1, 55: 0.05, 100: 0.0, 200: 0.0},
        "warmup_stable_decay": {10: 0.1, 79: 0.1, 80: 0.1, 90: 0.05, 100: 0.0, 200: 0.0},
        "constant": {10: 0.1, 100: 0.1},
    }.items(),
)
def test_schedules_at_their_corners(schedule: str, corners: dict[int, float]) -> None:
    """Ten steps of warm-up, a hundred in all; the first step already moves."""
    rate = learning_rate(replace(ADAM, schedule=schedule, warmup_steps=10), 100)
    for step, expected in ({0: 0.01, 4: 0.05, 9: 0.1} | corners).items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7), step


@pytest.mark.parametrize("schedule", ["cosine", "linear", "warmup_stable_decay"])
@pytest.mark.parametrize(("warmup", "fraction"), [(0, 0.2), (1, 1.0), (30, 1.0), (99, 0.5)])
def test_decays_end_at_zero_with_the_run(schedule: str, warmup: int, fraction: float) -> None:
    rate = learning_rate(replace(ADAM, schedule=schedule, warmup_steps=warmup, decay_fraction=fraction), 100)
    rates = np.array([float(rate(step)) for step in range(101)])
    assert rates[100] == pytest.approx(0, abs=1e-7)
    assert (rates[:100] > 0).all()
    assert rates.max() == pytest.approx(0.1)


OPTIMIZERS = {
    "adam": ADAM,
    "adamw": replace(ADAM, name="adamw", weight_decay=0.01),
    "muon": replace(ADAM, name="muon", weight_decay=0.01),
    "schedule_free_adamw": replace(ADAM, name="schedule_free_adamw", weight_decay=0.01),
    "clipped": replace(ADAM, clip_norm=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    """A linear map from examples: without warm-up the first step lowers the loss, sixty twentyfold."""
    rng = np.random.default_rng(0)
    x, wanted = rng.standard_normal((64, 6)), rng.standard_normal((6, 4))
    params = {"layer": {"kernel": jnp.zeros((6, 4)), "bias": jnp.ones(4)}}
    loss = lambda p: jnp.mean((x @ p["layer"]["kernel"] + p["layer"]["bias"] - x @ wanted) ** 2)
    optimizer = make_optimizer(OPTIMIZERS[name], 100)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, losses = optimizer.init(params), [float(loss(params))]
    for _ in range(60):
        params, state = step(params, state)
        losses.append(float(loss(evaluation_parameters(OPTIMIZERS[name], state, params))))
    assert losses[1] < losses[0]
    assert losses[-1] < losses[0] / 20


def first_update(config: OptimizerConfig, params: Any) -> tuple[dict[tuple[str, ...], np.ndarray], Any]:
    rng = np.random.default_rng(1)
    gradients = jax.tree.map(lambda p: jnp.float32(rng.standard_normal(p.shape)), params)
    optimizer = make_optimizer(config, 100)
    updates, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    return flatten_dict(jax.tree.map(np.asarray, updates)), state


@pytest.mark.parametrize("scan", [False, True])
def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adam(scan: bool) -> None:
    """A kernel's update, as a matrix inputs × outputs, has nearly equal singular values; Adam's first update
    is the sign of the gradient times a constant."""
    config = tiny_config(activation="swiglu", attention_bias=True, scan_layers=scan)
    params = random_parameters(config)["encoder"]
    updates, _ = first_update(replace(ADAM, name="muon"), params)
    kernels = 0
    for path, update in updates.items():
        if path[-1] != "kernel":
            assert np.ptp(np.abs(update)) < 1e-5, path
            continue
        kernels += 1
        layers = update if scan else update[None]
        # Attention's output kernel is [heads, head_dim, d_model]; all others have one input axis.
        inputs = 24 if path[-3:-1] == ("feed_forward", "output") else 16
        for matrix in layers.reshape(layers.shape[0], inputs, -1):
            values = np.linalg.svd(matrix, compute_uv=False)
            assert np.quantile(values, 0.1) > 0.5 * values.max(), path  # a few tiny ones stay so
            assert np.sqrt(np.mean(matrix**2)) == pytest.approx(0.1 * 0.2, rel=0.3), path  # as large as Adam's
    assert kernels == (6 if scan else 2 * 6)


def test_weight_decay_shrinks_what_has_no_gradient() -> None:
    params = {"layer": {"kernel": jnp.ones((3, 2))}}
    zero = jax.tree.map(jnp.zeros_like, params)
    for name in ("adamw", "muon"):
        optimizer = make_optimizer(replace(ADAM, name=name, weight_decay=0.5), 10)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["layer"]["kernel"], -0.1 * 0.5, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 1e6])
def test_clipping_scales_the_gradient_to_the_norm(clip_norm: float) -> None:
    params = {"layer": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}
    _, state = first_update(replace(ADAM, clip_norm=clip_norm), params)
    _, unclipped = first_update(ADAM, params)
    moment, plain = (optax.tree_utils.tree_get(s, "mu") for s in (state, unclipped))
    norm = float(optax.global_norm(plain)) / 0.1
    factor = clip_norm / norm if 0 < clip_norm < norm else 1.0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, factor * b, rtol=1e-5), moment, plain)


def test_schedule_free_is_evaluated_at_its_average() -> None:
    """After one step of its iterate z from x, the average is z itself (Defazio et al. 2024, eq. 3 to 5)."""
    config = OPTIMIZERS["schedule_free_adamw"]
    params = {"layer": {"kernel": jnp.ones((3, 2))}}
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    params = optax.apply_updates(params, updates)
    z = optax.tree_utils.tree_get(state, "z")
    average = evaluation_parameters(config, state, params)
    expected = (np.asarray(params["layer"]["kernel"]) - 0.1 * np.asarray(z["layer"]["kernel"])) / 0.9
    np.testing.assert_allclose(average["layer"]["kernel"], expected, rtol=1e-5)
    assert evaluation_parameters(ADAM, None, params) is params


IMPOSSIBLE = {
    "peak_learning_rate is 0": dict(peak_learning_rate=0.0),
    "warmup_steps is -1": dict(warmup_steps=-1),
    "decay_fraction is 0": dict(decay_fraction=0.0),
    "clip_norm is -1": dict(clip_norm=-1.0),
    "b1 is 1.0": dict(b1=1.0),
    "b2 is -0.9": dict(b2=-0.9),
    "epsilon is 0": dict(epsilon=0.0),
    "weight_decay is -0.1": dict(name="adamw", weight_decay=-0.1),
    "weight_decay=0.1 needs optimizer.name='adamw'": dict(weight_decay=0.1),
    "schedule='cosine' cannot go with schedule_free_adamw": dict(name="schedule_free_adamw", schedule="cosine"),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_settings_are_named(message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(ADAM, **IMPOSSIBLE[message])
