"""The device mesh, the rules that place every array on it, and nothing else.

The mesh has the axes (data, fsdp, tensor). Batches lie over data and fsdp, parameters and optimizer state over
fsdp, heads, feed-forward and vocabulary over tensor. A laptop is the mesh (1, 1, 1).
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))
RULES: tuple[tuple[str, str | None], ...] = (
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("head_dim", None),
    ("gate", None),
    ("norm", None),
    ("positions", None),
    ("buckets", None),
    ("layers", None),
)


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1, which takes the devices that are left."""

    data: int
    fsdp: int
    tensor: int

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if any(s < 1 and s != -1 for s in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"mesh: sizes {dict(zip(AXES, sizes, strict=True))} are not usable; each is at least 1, "
                "and one may be -1 (the rest)."
            )


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices. Raises: UserError when the sizes do not multiply to the device count."""
    sizes = [config.data, config.fsdp, config.tensor]
    count = jax.device_count()
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if int(np.prod(sizes)) != count:
        raise UserError(
            f"mesh: {dict(zip(AXES, sizes, strict=True))} needs {known} devices, or a multiple where a size is -1, "
            f"but {count} are present; set --config.mesh.data=-1 to use what is left."
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def parameter_shardings(mesh: Mesh, boxed: Any) -> Any:
    """Shardings of a parameter tree whose leaves carry logical axis names (as `jax.eval_shape` of an init gives).

    Raises: UserError for an axis without a rule, and for a size that its mesh axes do not divide.
    """
    rules = dict(RULES)

    def place(path: Any, leaf: nn.LogicallyPartitioned) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = []
        for size, axis in zip(leaf.value.shape, leaf.names, strict=True):
            if axis is not None and axis not in rules:
                raise UserError(
                    f"sharding: parameter {name} has the axis {axis!r}, which has no rule; known: {sorted(rules)}."
                )
            mesh_axis = rules[axis] if axis is not None else None
            if mesh_axis is not None and size % mesh.shape[mesh_axis]:
                raise UserError(
                    f"sharding: axis {axis!r} of parameter {name} has size {size}, which mesh.{mesh_axis}="
                    f"{mesh.shape[mesh_axis]} does not divide; choose a divisor of {size}."
                )
            spec.append(mesh_axis)
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(place, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def state_shardings(mesh: Mesh, state: Any, params: Any, shardings: Any) -> Any:
    """Shardings of a whole train state: whatever mirrors a parameter (moments, averages) lies as the parameter does."""
    by_path = {
        jax.tree_util.keystr(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def place(path: Any, leaf: Any) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = by_path.get(jax.tree_util.keystr(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(place, state)


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts a global batch (numpy, leading axis the rows) on the mesh, rows over data and fsdp."""
    return jax.device_put(batch, NamedSharding(mesh, BATCH))
