"""Muon (Jordan et al. 2024): momentum, made orthogonal matrix by matrix; the devices share the matrices out."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.sharding import BATCH

STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration: steep at zero, at the price of singular values that end near 1, not at 1."""


class MuonState(NamedTuple):
    momentum: Any


def matrix_axes(path: Any, leaf: Array) -> tuple[int, int] | None:
    """How a parameter is a matrix: the first axes of its inputs and of its outputs. None for all but kernels."""
    keys = [str(getattr(key, "key", key)) for key in path]
    if keys[-1] != "kernel":
        return None
    stacked = int("layers" in keys)
    return stacked, (leaf.ndim - 1 if keys[-2] == "output" else stacked + 1)


def orthogonalise(x: Array) -> Array:
    """About U·Vᵀ for each x = U·S·Vᵀ of x[N, m, n] with m <= n.

    In float32: products of bfloat16 would make the update of one device another than that of eight.
    """
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def scale_by_muon(decay: float) -> optax.GradientTransformationExtraArgs:
    """Nesterov momentum, orthogonalised, at 0.2·√max(m, n): updates as large as Adam's, so that one learning rate
    serves both (Liu et al. 2025, eq. 4).

    ``update`` takes the mesh, over whose data and fsdp axes matrices of one shape are dealt out (without, each device
    does them all), and keeps the momentum where ``good`` is False.
    """

    def update(
        updates: Any, state: MuonState, params: Any = None, *, mesh: Mesh | None = None, good: Any = True, **_: Any
    ) -> Any:
        del params
        momentum = jax.tree.map(lambda m, g: jnp.where(good, decay * m + g, m), state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: jnp.where(good, decay * m + g, 0.0), momentum, updates)
        paths, structure = jax.tree_util.tree_flatten_with_path(ahead)
        kernels = [_as_matrices(path, leaf) for path, leaf in paths]
        scaled: list[Any] = [None] * len(kernels)
        for shape in sorted({matrices.shape[1:] for matrices, _ in kernels}):
            members = [i for i, (matrices, _) in enumerate(kernels) if matrices.shape[1:] == shape]
            stack = _shared_out(jnp.concatenate([kernels[i][0] for i in members]), mesh)
            counts = [len(kernels[i][0]) for i in members]
            for i, part in zip(members, jnp.split(stack, np.cumsum(counts)[:-1]), strict=True):
                scaled[i] = kernels[i][1](0.2 * max(shape) ** 0.5 * part)
        return jax.tree.unflatten(structure, scaled), MuonState(momentum)

    return optax.GradientTransformationExtraArgs(lambda params: MuonState(jax.tree.map(jnp.zeros_like, params)), update)


def _as_matrices(path: Any, leaf: Array) -> tuple[Array, Callable[[Array], Array]]:
    """A kernel as matrices [N, m, n] with m <= n, one a layer if layers are stacked; and the way back."""
    axes = matrix_axes(path, leaf)
    assert axes is not None
    first, split = axes
    matrices = leaf.reshape(leaf.shape[0] if first else 1, math.prod(leaf.shape[first:split]), -1)
    wide = matrices.shape[1] <= matrices.shape[2]
    back = lambda matrices: (matrices if wide else matrices.swapaxes(1, 2)).reshape(leaf.shape)
    return matrices if wide else matrices.swapaxes(1, 2), back


def _shared_out(stack: Array, mesh: Mesh | None) -> Array:
    """`orthogonalise`, each device its part of the stack."""
    if mesh is None:
        return orthogonalise(stack)
    place = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    padded = jnp.pad(stack, ((0, -len(stack) % devices), (0, 0), (0, 0)))
    return place(orthogonalise(place(padded, BATCH)), P())[: len(stack)]
