"""Where arrays lie: sizes of the mesh, rules for parameters, and optimizer state beside its parameters."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from tests.models.tiny import tiny_config
from transformer_jax.errors import UserError
from transformer_jax.models.transformer import EncoderDecoder
from transformer_jax.sharding import AXES, MeshConfig, fetch_each, make_mesh, parameter_shardings, state_shardings

MESH = AbstractMesh((2, 2, 2), AXES)


def boxed_parameters(**changes: Any) -> Any:
    tokens = jnp.ones((1, 2), jnp.int32)
    sizes = dict(source_vocab_size=14, target_vocab_size=14)
    model = EncoderDecoder(tiny_config(**{**sizes, **changes}))
    return jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -2, 1), (-1, -1, 1)])
def test_sizes_that_are_no_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match="each is at least 1, and one may be -1"):
        MeshConfig(*sizes)


def test_a_mesh_must_have_as_many_devices_as_there_are() -> None:
    count = jax.device_count()
    with pytest.raises(UserError, match=f"needs {count + 1} devices.*but {count} are present"):
        make_mesh(MeshConfig(count + 1, 1, 1))
    with pytest.raises(UserError, match=f"'fsdp': {2 * count}.*but {count} are present"):
        make_mesh(MeshConfig(-1, 2 * count, 1))
    assert dict(make_mesh(MeshConfig(-1, 1, 1)).shape) == {"data": count, "fsdp": 1, "tensor": 1}
    assert dict(make_mesh(MeshConfig(1, 1, -1)).shape) == {"data": 1, "fsdp": 1, "tensor": count}


@pytest.mark.parametrize("scan", [False, True])
def test_every_parameter_lies_by_the_rules(scan: bool) -> None:
    boxed = boxed_parameters(scan_layers=scan, activation="swiglu", attention_bias=True, positions="relative")
    shardings = parameter_shardings(MESH, boxed)
    layer = shardings["decoder"]["layers" if scan else "layer_0"]
    stacked = (None,) if scan else ()
    attention, feed_forward = layer["cross_attention"], layer["feed_forward"]
    assert attention["query"]["kernel"].spec == P(*stacked, "fsdp", "tensor", None)
    assert attention["key"]["bias"].spec == P(*stacked, "tensor", None)
    assert attention["output"]["kernel"].spec == P(*stacked, "tensor", None, "fsdp")
    assert feed_forward["input"]["kernel"].spec == P(*stacked, "fsdp", None, "tensor")
    assert feed_forward["output"]["kernel"].spec == P(*stacked, "tensor", "fsdp")
    assert layer["feed_forward_norm"]["scale"].spec == P(*stacked, None)
    assert shardings["shared_embedding"]["embedding"].spec == P("tensor", "fsdp")


def test_what_mirrors_a_parameter_lies_as_it_does() -> None:
    boxed = boxed_parameters()
    params, shardings = nn.unbox(boxed), parameter_shardings(MESH, boxed)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = jax.eval_shape(lambda p: {"params": p, "moments": optimizer.init(p), "step": jnp.zeros(())}, params)
    placed = state_shardings(MESH, state, params, shardings)
    for name in ("mu", "nu"):
        moments = optax.tree_utils.tree_get(placed["moments"], name)
        assert jax.tree.leaves(moments) == jax.tree.leaves(shardings)
    assert jax.tree.leaves(placed["params"]) == jax.tree.leaves(shardings)
    assert placed["step"].spec == optax.tree_utils.tree_get(placed["moments"], "count").spec == P()


def test_an_indivisible_axis_and_one_without_a_rule_are_named() -> None:
    with pytest.raises(UserError, match=r"shared_embedding/embedding has size 13, which mesh.tensor=2"):
        parameter_shardings(MESH, boxed_parameters(source_vocab_size=13, target_vocab_size=13))
    with pytest.raises(UserError, match=r"'kv_heads' of parameter .*key/kernel has size 1, which mesh.tensor=2"):
        parameter_shardings(MESH, boxed_parameters(num_kv_heads=1))
    unknown = {"a": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4,), jnp.float32), ("width",))}
    with pytest.raises(UserError, match=r"parameter a has the axis 'width', which has no rule"):
        parameter_shardings(MESH, unknown)


def test_results_are_fetched_while_no_more_than_the_next_is_computed() -> None:
    started: list[int] = []

    def computed() -> Iterator[jax.Array]:
        for i in range(4):
            started.append(i)
            yield jnp.full(2, i)

    for i, value in enumerate(fetch_each(computed())):
        assert isinstance(value, np.ndarray)
        assert value.tolist() == [i, i]
        assert len(started) == min(i + 2, 4)
    assert len(started) == 4
