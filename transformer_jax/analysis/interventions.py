"""Ready-made edits for `Run.intervene`: ablate, scale, mean-ablate, patch, switch off heads.

run.intervene({"decoder/layer_1/feed_forward_output": ablate}).translate(lines)
run.intervene(mask_heads({"decoder/layer_0/cross_attention": [1, 1, 0, 1]})).score(sources, targets)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from transformer_jax.analysis.run import Run
from transformer_jax.errors import UserError
from transformer_jax.models.taps import Edit


def ablate(value: Array, name: str) -> Array:
    """Zeros."""
    return jnp.zeros_like(value)


def scale(factor: float) -> Edit:
    """Everything times a factor."""
    return lambda value, name: value * jnp.asarray(factor, value.dtype)


def mean_ablate(means: Mapping[str, np.ndarray]) -> dict[str, Edit]:
    """Every position gets the mean that `mean_activations` found for its name."""
    return {name: _constant(mean) for name, mean in means.items()}


def patch(activations: Mapping[str, np.ndarray], positions: Any = slice(None)) -> dict[str, Edit]:
    """What was captured in one pass takes its place in another (Vig et al. 2020).

    Args:
      activations: from `Run.capture`, only what is to be patched: of one sentence, for every row there is, or of as
        many rows as there will be.
      positions: which of the captured positions, as an index of the last axis but one; all by default.
    Returns: edits for teacher forcing, and for what is computed once in decoding, such as the encoder's side. They
      raise ValueError where there is no room for the positions.
    """
    return {name: _put(values, positions) for name, values in activations.items()}


def mask_heads(masks: Mapping[str, ArrayLike]) -> dict[str, Edit]:
    """Outputs of heads times a number each: 0 removes a head, 1 leaves it (Michel et al. 2019, section 2.3).

    Args: masks: float[H] by the path of an attention, such as ``decoder/layer_0/cross_attention``.
    """
    return {f"{path}/heads": _heads(np.asarray(mask, np.float32)) for path, mask in masks.items()}


def mean_activations(run: Run, *texts: Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Means over all positions of all texts, padding excluded, shaped so that they stand for any position.

    Raises: UserError for attention weights, whose means over positions say nothing.
    """
    inputs = run.inputs(*texts)
    means = {}
    for name, value in run.capture_inputs(inputs, names).items():
        side, columns = run.sides(name)
        if side is None or columns is not None:
            raise UserError(f"mean_activations: {name} has no mean over positions; choose other names.")
        real = (inputs[side] != 0).reshape(len(value), *(1,) * (value.ndim - 3), -1, 1)
        axes = (0, value.ndim - 2)
        means[name] = (np.where(real, value, 0).sum(axes, keepdims=True) / real.sum()).astype(value.dtype)
    return means


def _constant(mean: np.ndarray) -> Edit:
    return lambda value, name: jnp.broadcast_to(jnp.asarray(mean, value.dtype), value.shape)


def _put(values: np.ndarray, positions: Any) -> Edit:
    rows, columns = np.arange(values.shape[-2])[positions], values.shape[-1]

    def edit(value: Array, name: str) -> Array:
        fits = len(values) in (1, len(value)) and values.shape[1:-2] == value.shape[1:-2]
        if not fits or values.shape[-2] > value.shape[-2] or columns > value.shape[-1]:
            raise ValueError(f"patch: {name} is {list(value.shape)} here; {list(values.shape)} was captured.")
        return value.at[..., rows, :columns].set(jnp.asarray(values, value.dtype)[..., rows, :])

    return edit


def _heads(mask: np.ndarray) -> Edit:
    def edit(value: Array, name: str) -> Array:
        if mask.shape != value.shape[1:2]:
            raise ValueError(f"mask_heads: {name} has {value.shape[1]} heads, the mask {list(mask.shape)}.")
        return value * jnp.asarray(mask, value.dtype)[:, None, None]

    return edit
