"""Arithmetic is counted as it is done: loops by their rounds, devices by their number."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.made_files import tiny_config, write_pairs
from transformer_jax.analysis.flops import matmul_flops, model_flops
from transformer_jax.analysis.plan import make_plan
from transformer_jax.experiment import parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.sharding import make_mesh
from transformer_jax.training.step import abstract_batch

A, B = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
ONE = 2 * 3 * 5 * 7


def test_a_product_and_its_gradients():
    assert matmul_flops(jnp.dot, A, B) == ONE
    loss = lambda a, b: jnp.sum(jnp.dot(a, b) ** 2)
    assert matmul_flops(jax.grad(loss, argnums=(0, 1)), A, B) == 3 * ONE
    assert matmul_flops(jax.grad(jax.checkpoint(lambda a, b: jnp.sin(loss(a, b))), argnums=(0, 1)), A, B) == 4 * ONE


def test_loops_count_their_rounds_and_branches_the_dearest():
    def loop(a, b):
        return jax.lax.scan(lambda total, _: (total + jax.jit(jnp.dot)(a, b).sum(), None), 0.0, None, length=11)[0]

    assert matmul_flops(loop, A, B) == 11 * ONE
    branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: (a @ b) + (a @ b))
    assert matmul_flops(branch, A, B) == 2 * ONE


def test_a_loop_of_unknown_length_goes_through_what_it_slices():
    whole = jax.ShapeDtypeStruct((12, 5), jnp.float32)

    def loop(x, b, rounds):
        take = lambda i: jax.lax.dynamic_slice_in_dim(x, 3 * i, 3)
        return jax.lax.fori_loop(0, rounds, lambda i, total: total + take(i) @ b, jnp.zeros((3, 7)))

    assert matmul_flops(loop, whole, B, jax.ShapeDtypeStruct((), jnp.int32)) == 4 * ONE
    assert matmul_flops(loop, whole, B, jax.ShapeDtypeStruct((), jnp.int32), share=0.5) == 2 * ONE


def test_what_every_device_does_counts_for_each():
    mesh = jax.sharding.AbstractMesh((4, 2), ("a", "b"))
    rows = jax.sharding.PartitionSpec("a")
    product = jax.shard_map(
        lambda a, b: a @ b, mesh=mesh, in_specs=(rows, jax.sharding.PartitionSpec()), out_specs=rows, axis_names={"a"}
    )
    assert matmul_flops(product, jax.ShapeDtypeStruct((12, 5), jnp.float32), B) == 4 * ONE


def test_a_convolution():
    image, kernel = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32), jax.ShapeDtypeStruct((4, 4, 3, 5), jnp.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    down = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=layout)
    forward = 2 * (2 * 4 * 4 * 5) * (4 * 4 * 3)
    assert matmul_flops(down, image, kernel) == forward
    backward = matmul_flops(jax.grad(lambda x, k: down(x, k).sum(), argnums=0), image, kernel) - forward
    assert backward == pytest.approx(forward)  # the zeros between its rows are not multiplied


def test_a_models_arithmetic_is_that_of_its_formula_however_it_is_computed(tmp_path):
    data = write_pairs(tmp_path / "data")
    counts = []
    for changes in ({}, {"model__remat": "full", "task__loss_chunk": 4}):
        config = parse_config(tiny_config(data, **changes))
        experiment, mesh = find_family(config.family).prepare(config, None), make_mesh(config.mesh)
        batch = abstract_batch(mesh, experiment.batches.specs[-1])
        counts.append(model_flops(config, experiment.task, mesh, batch))
    assert counts[1] == counts[0]


def test_a_batch_of_products():
    stack = jax.ShapeDtypeStruct((4, 3, 5), jnp.float32)
    assert matmul_flops(lambda x, y: jnp.einsum("bij,jk->bik", x, y), stack, B) == 4 * ONE


def test_a_transformer_step_is_the_formula_of_its_sizes(tmp_path):
    """Encoder-decoder: 3 times the forward pass; 2 a multiplication; the softmax of tokens that count."""
    config = tiny_config(write_pairs(tmp_path / "data"), model__dropout_rate=0.0, model__embedding_dropout_rate=0.0)
    plan = make_plan(config, None)
    c = config.model
    d, ff, vocabulary = c.d_model, c.d_ff, dict(plan.modules)["shared_embedding"] // c.d_model
    for shape in plan.shapes:
        rows, s, t = (
            int(re.search(pattern, shape.name)[1])
            for pattern in (r"(\d+) x", r"source \d+ x (\d+)", r"target \d+ x (\d+)")
        )
        encoder = rows * (s * (4 * d * d + 2 * d * ff) + 2 * s * s * d)
        decoder = rows * (t * (6 * d * d + 2 * d * ff) + s * 2 * d * d + 2 * t * t * d + 2 * s * t * d)
        assert shape.tokens is not None
        products = 3 * (encoder + decoder + shape.tokens * d * vocabulary) + rows * t * d  # the last: the mean logit
        assert shape.matmul_flops == pytest.approx(2 * products, rel=1e-9)
        assert shape.seconds > 0
        assert 0.5 * shape.matmul_flops < shape.xla_flops * plan.mesh["data"] < 3 * shape.matmul_flops
