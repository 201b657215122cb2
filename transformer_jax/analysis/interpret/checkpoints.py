"""Checkpoints beside each other: how far apart, what lies between them, their means, and how anything develops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import traverse_util
from matplotlib.figure import Figure

from transformer_jax.analysis.averaging import mean
from transformer_jax.analysis.interpret.measures import Measure
from transformer_jax.errors import UserError
from transformer_jax.models.transformer import Params

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Curve:
    """A measure over something. Attributes: x: float[n]; values: float[n]; x_label, label: what they are."""

    x: np.ndarray
    values: np.ndarray
    x_label: str
    label: str

    @property
    def barrier(self) -> float:
        """How far the curve rises above the straight line between its ends (Frankle et al. 2020, section 2)."""
        first, last = self.values[0], self.values[-1]
        line = first + (last - first) * (self.x - self.x[0]) / (self.x[-1] - self.x[0])
        return float(np.max(self.values - line))

    def plot(self) -> Figure:
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axis = figure.subplots()
        axis.plot(self.x, self.values, marker="o", markersize=3)
        axis.set(xlabel=self.x_label, ylabel=self.label)
        axis.grid(alpha=0.3)
        return figure


@dataclass(frozen=True)
class Development:
    """An analysis at several checkpoints. Attributes: steps: n steps; results: what the analysis gave at each."""

    steps: tuple[int, ...]
    results: list[Any]

    def array(self, select: Callable[[Any], Any] = np.asarray) -> np.ndarray:
        """The results, or what is selected of each, as one array [n, …]."""
        return np.stack([np.asarray(select(result)) for result in self.results])

    def plot(self, label: str, select: Callable[[Any], Any] = np.asarray, names: Sequence[str] = ()) -> Figure:
        """A line for each number, over the steps. Args: names: of the numbers, for the legend."""
        values = self.array(select).reshape(len(self.steps), -1)
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        for k, line in enumerate(values.T):
            axis.plot(self.steps, line, marker="o", markersize=3, label=names[k] if names else None)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if names:
            axis.legend(fontsize=7)
        return figure


def over_checkpoints(run: Any, analysis: Callable[[Any], Any], steps: Sequence[int] | None = None) -> Development:
    """An analysis of the run as it was at each checkpoint: any function of a run.

    Args: steps: which; all that are there by default.
    """
    steps = run.checkpoints.steps() if steps is None else steps
    return Development(tuple(steps), [analysis(run.with_params(run.load(step))) for step in steps])


def interpolation(run: Any, start: Params, end: Params, measure: Measure, label: str, points: int = 11) -> Curve:
    """A measure along the straight line between two sets of parameters of the run's shapes.

    `Curve.barrier` of a loss says whether the two lie in one basin.

    Args: points: how many, the ends among them.
    """
    if points < 2:
        raise UserError(f"interpolation: points is {points}; it must be at least 2.")
    require_same_shapes(start, end)
    x = np.linspace(0.0, 1.0, points)
    between = lambda share: jax.tree.map(lambda a, b: ((1 - share) * a + share * b).astype(a.dtype), start, end)
    values = [measure(run.with_params(between(share))) for share in x]
    return Curve(x, np.asarray(values), "way from the first to the second", label)


def averaging(run: Any, measure: Measure, label: str, most: int | None = None) -> Curve:
    """A measure of the mean of the newest 1, 2, 3 … checkpoints (Vaswani et al. 2017, section 6.1)."""
    steps = run.checkpoints.steps()[-(most or 0) :]
    newest = [run.load(step) for step in reversed(steps)]
    counts = np.arange(1, len(newest) + 1)
    values = [measure(run.with_params(mean(newest[:count]))) for count in counts]
    return Curve(counts, np.asarray(values), "newest checkpoints averaged", label)


def compare_parameters(one: Params, other: Params) -> "pd.DataFrame":
    """A row for each parameter: ``norm`` of the first, ``distance`` between the two, ``relative`` (distance over norm)
    and ``cosine`` of the angle between them; and a row "all".
    """
    import pandas as pd

    require_same_shapes(one, other)
    flats = [traverse_util.flatten_dict(tree, sep="/") for tree in (one, other)]
    pairs = {path: tuple(np.asarray(flat[path], np.float64).ravel() for flat in flats) for path in flats[0]}
    everything = [np.concatenate([pair[i] for pair in pairs.values()]) for i in (0, 1)]
    rows = {path: _compare(*pair) for path, pair in (*pairs.items(), ("all", everything))}
    return pd.DataFrame.from_dict(rows, orient="index")


def _compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    norms, distance = (np.linalg.norm(a), np.linalg.norm(b)), float(np.linalg.norm(a - b))
    product = norms[0] * norms[1]
    return {
        "norm": float(norms[0]),
        "distance": distance,
        "relative": distance / float(norms[0]) if norms[0] else np.inf,
        "cosine": float(a @ b / product) if product else np.nan,
    }


def require_same_shapes(one: Params, other: Params) -> None:
    """Raises: UserError unless two trees of parameters have the same paths and shapes; names the first difference."""
    shapes = [
        {path: np.shape(leaf) for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}
        for tree in (one, other)
    ]
    for path in sorted(shapes[0].keys() | shapes[1].keys()):
        a, b = (shape.get(path, "absent") for shape in shapes)
        if a != b:
            raise UserError(f"parameters differ in {path}: {a} and {b}; compare checkpoints of one architecture.")
