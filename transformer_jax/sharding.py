"""The device mesh, the rules that place every array on it, and how a sharded parameter is put together at its use.

The mesh has the axes (data, fsdp, tensor). Batches lie over data and fsdp, parameters and optimizer state over
fsdp, heads, feed-forward and vocabulary over tensor. A laptop is the mesh (1, 1, 1).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import Array
from jax.experimental import multihost_utils
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
    ("units", None),
    ("norm", None),
    ("positions", None),
    ("types", None),
    ("buckets", None),
    ("layers", None),
)
SETTINGS = {
    "embed": ": model.d_model",
    "vocab": ": tokenizer.vocab_size",
    "heads": ": model.num_heads",
    "kv_heads": ": model.num_kv_heads",
    "mlp": ": model.d_ff",
}
"""Where the size of a sharded axis comes from."""


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


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over all devices, or those given.

    Raises: UserError when the sizes do not multiply to the device count.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    count = jax.device_count() if devices is None else len(devices)
    known = int(np.prod([s for s in sizes if s != -1]))
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if int(np.prod(sizes)) != count:
        raise UserError(
            f"mesh: {dict(zip(AXES, sizes, strict=True))} needs {known} devices, or a multiple where a size is -1, "
            f"but {count} are present; "
            + (f"set sizes that divide {count}." if -1 in sizes else "set --config.mesh.data=-1 to use what is left.")
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


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
            mesh_axis = None if axis is None else rules[axis]
            if axis is not None and mesh_axis is not None and size % mesh.shape[mesh_axis]:
                parts = mesh.shape[mesh_axis]
                divisors = [n for n in range(1, min(size, mesh.size) + 1) if size % n == 0]
                raise UserError(
                    f"sharding: axis {axis!r} of parameter {name} has size {size}, which mesh.{mesh_axis}={parts} "
                    f"does not divide; mesh.{mesh_axis} may be one of {divisors}, or the size a multiple of {parts} "
                    f"(next {size + -size % parts}{SETTINGS.get(axis, '')})."
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


def manual_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes over which rows lie and on which programs say themselves what is sent; ``tensor`` is the compiler's.

    An axis of one device is not among them: there is nothing to send, and the partitioner refuses it beside others.
    """
    return tuple(axis for axis in BATCH[0] if mesh.shape[axis] > 1)


def parameter_specs(mesh: Mesh, boxed: Any) -> Any:
    """As `parameter_shardings`, but only the names, and of axes of one device none."""
    name = lambda axis: axis if axis is not None and mesh.shape[axis] > 1 else None
    return jax.tree.map(lambda s: P(*map(name, s.spec)), parameter_shardings(mesh, boxed))


def manual_specs(specs: Any) -> Any:
    """What `parameter_specs` say of the manual axes alone, for `jax.shard_map`."""
    return jax.tree.map(lambda spec: P(*(axis if axis in BATCH[0] else None for axis in spec)), specs)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(x: Array, spec: P) -> Array:
    """The whole of a parameter of which each device along fsdp holds its part, inside `jax.shard_map`.

    Backwards the gradients of all devices are added in float32, whatever their dtype, and each keeps its part.
    """
    send = lambda x: jax.lax.all_gather(x, "fsdp", axis=tuple(spec).index("fsdp"), tiled=True)
    return _beside_tensor(send, spec)(x)


def _gather_backward(spec: P, _: None, cotangent: Array) -> tuple[Array]:
    add = lambda x: jax.lax.psum_scatter(x, "fsdp", scatter_dimension=tuple(spec).index("fsdp"), tiled=True)
    return (_beside_tensor(add, spec)(cotangent.astype(jnp.float32)).astype(cotangent.dtype),)


gather.defvjp(lambda x, spec: (gather(x, spec), None), _gather_backward)


def _beside_tensor(send: Callable[[Array], Array], spec: P) -> Callable[[Array], Array]:
    """``send`` on each device's part along tensor: left to the compiler, it would be made whole first."""
    if "tensor" not in spec:
        return send
    split = P(*(axis if axis == "tensor" else None for axis in spec))
    return jax.shard_map(send, in_specs=split, out_specs=split, axis_names={"tensor"}, check_vma=False)


@struct.dataclass
class Shard(nn.meta.AxisMetadata[Array]):
    """This device's part of a parameter along fsdp. Models unbox it where they use it, which gathers the whole."""

    value: Array
    spec: P = struct.field(pytree_node=False)

    def unbox(self) -> Array:
        return gather(self.value, self.spec)

    def replace_boxed(self, val: Any) -> Any:
        return Shard(val, self.spec)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Shard":
        return Shard(self.value, P(*self.spec[:index], None, *self.spec[index:]))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Shard":
        return Shard(self.value, P(*self.spec[:index], *self.spec[index + 1 :]))


def at_use(params: Any, specs: Any) -> Any:
    """Parameters as a model takes them inside `jax.shard_map`, from the parts that `parameter_specs` describe.

    Those of layers (below a key that begins with "layer") stay in their `Shard` boxes, and each layer gathers its own
    when its turn comes, so that no more than a layer is ever whole; all others, which several parts of a model may
    share, are gathered here.
    """

    def one(path: Any, part: Array, spec: P) -> Any:
        if "fsdp" not in spec:
            return part
        box = Shard(part, spec)
        return box if any(str(getattr(key, "key", key)).startswith("layer") for key in path) else box.unbox()

    return jax.tree_util.tree_map_with_path(one, params, specs)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, whole and the same on every process, on the mesh: each device is given its part."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    put = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    return jax.tree.map(lambda leaf: put(np.asarray(leaf)), tree)


def fetch(tree: Any) -> Any:
    """Arrays as NumPy, whole on every process, wherever their parts lie."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    whole = lambda x: isinstance(x, np.ndarray) or x.is_fully_addressable or x.is_fully_replicated
    return jax.tree.map(lambda x: np.asarray(x) if whole(x) else multihost_utils.process_allgather(x, tiled=True), tree)


def fetch_each(computed: Iterable[Any]) -> Iterator[Any]:
    """`fetch` of each result, while the next is computed.

    Not of all at once: CPU devices share a few threads, and programs whose all-reductions wait for one another may
    take them all.
    """
    pending = None
    for result in computed:
        if pending is not None:
            yield fetch(pending)
        pending = result
    if pending is not None:
        yield fetch(pending)


def own_blocks(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Which rows of every global batch the devices of this process hold: ``(blocks, count)``.

    The rows are cut into ``count`` equal blocks, and those of numbers ``blocks`` are here. Processes that share a
    group along tensor hold the same ones; on a pod they need not be neighbours.
    """
    if jax.process_count() == 1:
        return (0,), 1
    count = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = NamedSharding(mesh, BATCH).addressable_devices_indices_map((count,))
    return tuple(sorted({index[0].start or 0 for index in parts.values() if index is not None})), count


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts this process's rows (numpy, `own_blocks` one after another) of a global batch on the mesh."""
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    blocks, count = own_blocks(mesh)

    def put(rows: np.ndarray) -> Array:
        size = len(rows) // len(blocks)
        first = lambda index: blocks.index((index[0].start or 0) // size) * size
        shape = (size * count, *rows.shape[1:])
        return jax.make_array_from_callback(shape, sharding, lambda i: rows[first(i) : first(i) + size])

    return jax.tree.map(put, batch)


def map_rows(function: Callable[..., Array], params: Any, *arrays: np.ndarray, rows: int = 256) -> np.ndarray:
    """``function(params, *rows of the arrays)``, jitted and the same for each row, over all rows on all local devices.

    Args:
      params: whole, or wherever they lie.
      rows: so many at a time, or a few more that the devices can share.
    """
    mesh = Mesh(np.array(jax.local_devices()), ("rows",))
    params = jax.device_put(fetch(params), NamedSharding(mesh, P()))
    rows += -rows % mesh.size
    found = []
    for first in range(0, len(arrays[0]), rows):
        part = [array[first : first + rows] for array in arrays]
        count = len(part[0])
        padded = [np.concatenate([x, np.repeat(x[-1:], rows - count, axis=0)]) for x in part]
        found.append(np.asarray(function(params, *jax.device_put(padded, NamedSharding(mesh, P("rows")))))[:count])
    return np.concatenate(found)
