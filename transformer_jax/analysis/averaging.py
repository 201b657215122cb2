"""Means of parameters over checkpoints (Vaswani et al. 2017, section 6.1)."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.run_directory import AVERAGED, RunDirectory, write_json
from transformer_jax.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    from transformer_jax.analysis.run import Run


def mean(trees: Iterable[Any]) -> Any:
    """The mean of parameter trees, summed in float64, in the dtype they have; one tree comes back as it is."""
    count, total, first = 0, None, None
    for tree in trees:
        count += 1
        first = tree if first is None else first
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)
        total = wide if total is None else jax.tree.map(np.add, total, wide)
    if count == 1:
        return first
    return jax.tree.map(lambda leaf, like: (leaf / count).astype(like.dtype), total, first)


def save_average(run: "Run", output: str | Path) -> None:
    """Writes a run directory with the mean of the checkpoints that ``run`` was opened with as its only one.

    It can be opened for everything but training: it holds no optimizer state. Its averaged.json says what it is.

    Raises: UserError when output holds a run already, or something else, or cannot be written.
    """
    if (Path(output) / "config.json").exists():
        raise UserError(f"{output} holds a run already. Choose another --output, or remove it.")
    params = mean(run.checkpoints.restore_parameters(step) for step in run.steps)
    with (
        RunDirectory.create_or_resume(output, run.directory.config) as averaged,
        Checkpoints(averaged.checkpoints) as checkpoints,
    ):
        shutil.copytree(run.directory.tokenizer, averaged.tokenizer)
        write_json(averaged.path / AVERAGED, {"run": str(run.directory.path), "steps": run.steps})
        checkpoints.save(run.steps[-1], {"params": params}, {}, {})
