"""A table of pairs, tensor there and parameters here, that is read in both directions.

What a parameter is follows from its logical axes: head axes are one axis there, an axis may be in another order or
lack entries, and of the sizes nothing need be said.
"""

from collections.abc import Mapping as ReadMapping
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from transformer_jax.conversion.tensors import Tensors
from transformer_jax.errors import UserError

ONE_AXIS = (("heads", "head_dim"), ("kv_heads", "head_dim"), ("gate", "units"))
"""Neighbouring axes here that are one axis in other layouts."""

Flat = dict[str, np.ndarray]
"""Parameters by path: "decoder/layer_0/feed_forward/input/kernel"."""


class Pair(NamedTuple):
    """A tensor there and what it is here.

    Attributes:
      theirs: its name.
      ours: paths; several lie side by side on the last axis of [inputs, outputs].
      transposed: a matrix there is [outputs, inputs].
      leading: axes of size one before the first.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    leading: int = 0


class Leaf(NamedTuple):
    """The shape and the logical axes of a parameter."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]


def leaves_of(model: nn.Module, inputs: int) -> dict[str, Leaf]:
    """Every parameter of a model that is called with ``inputs`` batches of tokens; nothing is computed."""
    tokens = [jnp.ones((1, 2), jnp.int32)] * inputs
    boxed: Any = jax.eval_shape(model.init, jax.random.key(0), *tokens)["params"]
    flat = traverse_util.flatten_dict(boxed, sep="/")
    return {path: Leaf(box.value.shape, tuple(map(str, box.names))) for path, box in flat.items()}


def flatten(params: Any) -> Flat:
    """Unrolled parameters by path, as float32 in memory of this process."""
    return {path: np.asarray(leaf, np.float32) for path, leaf in traverse_util.flatten_dict(params, sep="/").items()}


def unflatten(flat: ReadMapping[str, np.ndarray]) -> Any:
    return traverse_util.unflatten_dict(dict(flat), sep="/")


@dataclass(frozen=True)
class Mapping:
    """Pairs for one model.

    Attributes:
      leaves: every parameter that a tensor there stands for, also those that a model without them is equal to one
        with zeros in their place.
      orders: for logical axes by name, the entries here that the entries there are.
      fills: by path, the value of entries that there are only here; 0 where not given.
    """

    pairs: Sequence[Pair]
    leaves: ReadMapping[str, Leaf]
    orders: ReadMapping[str, np.ndarray] = field(default_factory=dict)
    fills: ReadMapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        told = {path for pair in self.pairs for path in pair.ours}
        assert told == self.leaves.keys(), f"the table and the model differ in {told ^ self.leaves.keys()}"

    def theirs(self, params: ReadMapping[str, np.ndarray]) -> Tensors:
        """The tensors there; parameters that are not given are zeros."""
        tensors = {}
        for pair in self.pairs:
            parts = []
            for path in pair.ours:
                given = params.get(path)
                parts.append(self._outward(path, np.zeros(self.leaves[path].shape) if given is None else given))
            joined = np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
            joined = joined.T if pair.transposed else joined
            tensors[pair.theirs] = joined.reshape((1,) * pair.leading + joined.shape)
        return tensors

    def ours(self, tensors: ReadMapping[str, np.ndarray], what: str) -> Flat:
        """The parameters here.

        Args: what: names the checkpoint in messages.
        Raises: UserError for a tensor that is missing, has another shape, is not in the table, or differs from
          another one that is the same parameter here.
        """
        self._check_names(tensors, what)
        found: Flat = {}
        for pair in self.pairs:
            tensor, shapes = tensors[pair.theirs], [self._outward_shape(path) for path in pair.ours]
            joined = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
            wanted = (1,) * pair.leading + (joined[::-1] if pair.transposed else joined)
            if tensor.shape != wanted:
                raise UserError(f"{what}: the tensor {pair.theirs} is {tensor.shape}; its config asks for {wanted}.")
            matrix = tensor.reshape(tensor.shape[pair.leading :])
            matrix = matrix.T if pair.transposed else matrix
            cuts = np.cumsum([shape[-1] for shape in shapes])[:-1]
            for path, part in zip(pair.ours, np.split(matrix, cuts, axis=-1), strict=True):
                value = self._inward(path, part)
                if path in found and not np.array_equal(found[path], value):
                    other = next(p.theirs for p in self.pairs if path in p.ours)
                    raise UserError(
                        f"{what}: the tensors {other} and {pair.theirs} differ; the config says they are one."
                    )
                found[path] = value
        return found

    def _check_names(self, tensors: ReadMapping[str, np.ndarray], what: str) -> None:
        known = [pair.theirs for pair in self.pairs]
        for problem, names in (
            ("lacks", [name for name in known if name not in tensors]),
            ("has what its config has no place for:", [name for name in tensors if name not in known]),
        ):
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                raise UserError(f"{what} {problem} {', '.join(names[:5])}{more}. Its config.json must be another's.")

    def _outward(self, path: str, value: np.ndarray) -> np.ndarray:
        for axis, name in enumerate(self.leaves[path].axes):
            if name in self.orders:
                value = np.take(value, self.orders[name], axis)
        return np.asarray(value, np.float32).reshape(self._outward_shape(path))

    def _outward_shape(self, path: str) -> tuple[int, ...]:
        leaf = self.leaves[path]
        sizes = [len(self.orders.get(n, range(size))) for n, size in zip(leaf.axes, leaf.shape, strict=True)]
        merged = [i for i, names in enumerate(pairwise(leaf.axes)) if names in ONE_AXIS]
        for i in reversed(merged):
            sizes[i : i + 2] = [sizes[i] * sizes[i + 1]]
        return tuple(sizes)

    def _inward(self, path: str, value: np.ndarray) -> np.ndarray:
        leaf = self.leaves[path]
        sizes = [len(self.orders.get(n, range(size))) for n, size in zip(leaf.axes, leaf.shape, strict=True)]
        value = value.reshape(sizes)
        for axis, name in enumerate(leaf.axes):
            if name in self.orders:
                whole = np.full(
                    (*value.shape[:axis], leaf.shape[axis], *value.shape[axis + 1 :]),
                    self.fills.get(path, 0),
                    np.float32,
                )
                index: Any = (*(slice(None),) * axis, self.orders[name])
                whole[index] = value
                value = whole
        return np.ascontiguousarray(value, np.float32)
