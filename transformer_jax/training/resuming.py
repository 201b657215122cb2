"""Which settings a run that continues may have changed, beyond those that never matter to the steps it has taken."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_jax.config import flatten
from transformer_jax.errors import UserError
from transformer_jax.experiment import RunConfig, parse_config
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.optimizers import learning_rate
from transformer_jax.training.saved_steps import SavedSteps


def safe_changes(workdir: str | Path, config: RunConfig) -> tuple[str, ...]:
    """Keys that may differ: those the run is older than, if it went by what they are now, and training.total_steps, if
    every step that was taken would have had the same learning rate.

    With inverse_square_root and constant that is always so, with warmup_stable_decay until the decay begins.
    """
    if not os.path.exists(Path(workdir) / "config.json"):
        return ()
    run = RunDirectory.open(workdir)
    safe = _unsaid(run.config, config)
    total = run.config.get("training", {}).get("total_steps")
    taken = np.arange(SavedSteps(run.checkpoints).latest_step() or 0)
    if not isinstance(total, int) or not len(taken):
        return safe
    before, now = (
        np.asarray(jax.vmap(learning_rate(config.optimizer, steps))(taken))
        for steps in (total, config.training.total_steps)
    )
    return (*safe, "training.total_steps") if (before == now).all() else safe


def _unsaid(written: Mapping[str, Any], config: RunConfig) -> tuple[str, ...]:
    """Keys that a config written earlier does not have, whose defaults then are their values now."""
    try:
        before, now = (flatten(asdict(one)) for one in (parse_config(written), config))
    except UserError:  # it lacks one without a default
        return ()
    return tuple(sorted({key for key in now.keys() - flatten(written).keys() if before.get(key, ()) == now[key]}))
