"""Which settings a run that continues may have changed, beyond those that never matter to the steps it has taken."""

import os
from pathlib import Path

import jax
import numpy as np

from transformer_jax.experiment import RunConfig
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.optimizers import learning_rate
from transformer_jax.training.saved_steps import SavedSteps


def safe_changes(workdir: str | Path, config: RunConfig) -> tuple[str, ...]:
    """training.total_steps, if every step that was taken would have had the same learning rate; else nothing.

    With inverse_square_root and constant that is always so, with warmup_stable_decay until the decay begins.
    """
    if not os.path.exists(Path(workdir) / "config.json"):
        return ()
    run = RunDirectory.open(workdir)
    total = run.config.get("training", {}).get("total_steps")
    taken = np.arange(SavedSteps(run.checkpoints).latest_step() or 0)
    if not isinstance(total, int) or not len(taken):
        return ()
    before, now = (
        np.asarray(jax.vmap(learning_rate(config.optimizer, steps))(taken))
        for steps in (total, config.training.total_steps)
    )
    return ("training.total_steps",) if (before == now).all() else ()
