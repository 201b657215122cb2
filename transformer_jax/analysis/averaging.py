"""Means of parameters over checkpoints (Vaswani et al. 2017, section 6.1)."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


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
