"""Weights as matrices: their statistics and singular values."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from flax import traverse_util
from matplotlib.figure import Figure

from transformer_jax.analysis.capture import matching
from transformer_jax.models.transformer import Params

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Spectra:
    """Attributes:
    singular_values: by path, float64[min(inputs, outputs)], largest first, of every matrix.
    statistics: a data frame, a row for each parameter: ``mean``, ``std``, ``largest`` (absolute), ``norm`` (Frobenius);
      of matrices also ``spectral_norm``; ``stable_rank``, ‖W‖_F² / ‖W‖₂² (Rudelson and Vershynin 2007);
      ``effective_rank``, exp of the entropy of the normalised singular values (Roy and Vetterli 2007, eq. 2); and
      ``condition``, largest over smallest.
    """

    singular_values: dict[str, np.ndarray]
    statistics: "pd.DataFrame"

    def plot(self, patterns: Sequence[str] = ("*",)) -> Figure:
        """Singular values of the matrices that a pattern matches, each spectrum divided by its largest."""
        figure = Figure(figsize=(8, 5), layout="constrained")
        axis = figure.subplots()
        for path in matching(self.singular_values, patterns):
            values = self.singular_values[path]
            axis.plot(np.linspace(0, 1, len(values)), values / max(values[0], 1e-30), label=path, linewidth=1)
        axis.set(xlabel="place among the singular values", ylabel="share of the largest", yscale="log")
        axis.legend(fontsize=6, loc="lower left", ncols=2)
        return figure


def spectra(params: Params, patterns: Sequence[str] = ("*",)) -> Spectra:
    """Of the parameters whose paths a pattern matches, such as ``run.params``.

    Kernels are matrices from all their inputs to all their outputs: of attention, from d_model to all heads, or back.
    """
    import pandas as pd

    flat = traverse_util.flatten_dict(params, sep="/")
    values, rows = {}, {}
    for path in matching(flat, patterns):
        leaf = np.asarray(flat[path], np.float64)
        row = {"mean": leaf.mean(), "std": leaf.std(), "largest": np.abs(leaf).max(), "norm": np.linalg.norm(leaf)}
        if leaf.ndim > 1:
            split = 2 if fnmatchcase(path, "*attention/output/kernel") else 1
            values[path] = np.linalg.svd(leaf.reshape(int(np.prod(leaf.shape[:split])), -1), compute_uv=False)
            row |= _of_spectrum(values[path])
        rows[path] = row
    return Spectra(values, pd.DataFrame.from_dict(rows, orient="index"))


def _of_spectrum(values: np.ndarray) -> dict[str, float]:
    largest = values[0]
    if largest == 0.0:
        return {"spectral_norm": 0.0, "stable_rank": 0.0, "effective_rank": 0.0, "condition": np.inf}
    shares = values[values > 0] / values.sum()
    return {
        "spectral_norm": largest,
        "stable_rank": float((values**2).sum() / largest**2),
        "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
        "condition": float(largest / values[-1]) if values[-1] else np.inf,
    }
