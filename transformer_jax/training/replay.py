"""A step kept so that it can be made again: the state before it and its batch, beside the run that made it.

    RUN/replay/STEP/   a checkpoint of the state with the batch in it; step.json has the reason and what was measured

A step is a pure function of these and of the run's config (its seed is there), so on the same devices it comes out
the same to the bit.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.checkpoints import BATCH, Checkpoints
from transformer_jax.training.guard import differing
from transformer_jax.training.step import TrainState, TrainStep


def save_bundle(
    run: RunDirectory,
    number: int,
    state: TrainState,
    batch: Mapping[str, Any],
    position: Mapping[str, int],
    measured: Mapping[str, float],
) -> str:
    """Writes the bundle of step ``number``; returns the command that reproduces it.

    Args:
      state: as it was before the step.
      batch: of the step, placed on the devices.
      position: of the data after the step.
      measured: what it measured, floats.
    """
    with Checkpoints(run.replay, keep_latest=1000) as bundles:
        bundles.discard_after(number - 1)
        bundles.save(number, {**vars(state), BATCH: dict(batch)}, position, measured)
    return f"python experiments/replay.py {run.path} --step={number}"


def load_bundle(
    run: RunDirectory, number: int, shapes: TrainState
) -> tuple[TrainState, dict[str, np.ndarray], dict[str, float]]:
    """The state, the batch and what was measured. Raises: UserError when there is none, or it is damaged."""
    with Checkpoints(run.replay) as bundles:
        state, _ = bundles.restore(number, shapes)
        batch = jax.tree.map(np.asarray, bundles.restore_parameters(number, BATCH))
        return state, batch, bundles.metrics(number)


def copy(state: TrainState) -> TrainState:
    """Buffers of its own, so that the original can be donated."""
    return jax.tree.map(jnp.copy, state)


def twice(step: TrainStep, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any], dict[str, int]]:
    """Makes a step two times from the same state, which is kept.

    Returns: the new state, its metrics, and the number of elements that came out different, for each array with any.
    """
    first, second = step(copy(state), batch), step(copy(state), batch)
    counts = jax.device_get(jax.jit(differing)(first, second))
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(count)
        for path, count in jax.tree_util.tree_leaves_with_path(counts)
    }
    return *first, {path: count for path, count in found.items() if count}
