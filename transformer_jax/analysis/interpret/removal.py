"""What each layer, and each sublayer, is good for: a measure of the run without it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax import Array
from matplotlib.figure import Figure

from transformer_jax.analysis.interpret.measures import Measure
from transformer_jax.analysis.interventions import ablate
from transformer_jax.analysis.run import Run
from transformer_jax.models.taps import Edit


@dataclass(frozen=True)
class Removals:
    """A measure of the whole run, and without each part.

    Attributes:
      parts: N paths of layers or sublayers; values: float[N]; whole: of the run as it is; label: what was measured.
    """

    parts: list[str]
    values: np.ndarray
    whole: float
    label: str

    def plot(self) -> Figure:
        figure = Figure(figsize=(6.5, 0.35 * len(self.parts) + 1.3), layout="constrained")
        axis = figure.subplots()
        axis.barh(self.parts, self.values)
        axis.axvline(self.whole, color="black", linestyle="--", label="nothing removed")
        axis.invert_yaxis()
        axis.set_xlabel(self.label)
        axis.legend()
        return figure


def layer_removal(run: Run, measure: Measure, label: str) -> Removals:
    """A measure without each layer: what enters it is what leaves it."""
    layers = [name.removesuffix("/residual_before") for name in run.points if name.endswith("/residual_before")]
    layers.sort(key=lambda path: (not path.startswith("encoder"), int(path.rpartition("_")[2])))
    return _removals(run, measure, label, {layer: skip(layer) for layer in layers})


def sublayer_removal(run: Run, measure: Measure, label: str) -> Removals:
    """A measure without what each sublayer adds to the residual stream."""
    outputs = [name for name in run.points if name.endswith(("_attention_output", "feed_forward_output"))]
    order = ("self_attention_output", "cross_attention_output", "feed_forward_output")
    outputs.sort(key=lambda name: (not name.startswith("encoder"), int(_layer(name)), order.index(name.split("/")[-1])))
    return _removals(run, measure, label, {name.removesuffix("_output"): {name: ablate} for name in outputs})


def _layer(name: str) -> str:
    return name.split("layer_")[1].split("/")[0]


def _removals(run: Run, measure: Measure, label: str, edits: Mapping[str, Mapping[str, Edit]]) -> Removals:
    values = [measure(run.intervene(edit)) for edit in edits.values()]
    return Removals(list(edits), np.asarray(values), measure(run), label)


def skip(layer: str) -> dict[str, Edit]:
    """Edits that leave out a layer, such as ``decoder/layer_1``: the network is as if it had been built without it."""
    entered: list[Array] = []

    def remember(value: Array, name: str) -> Array:
        entered[:] = [value]
        return value

    return {f"{layer}/residual_before": remember, f"{layer}/residual_after": lambda value, name: entered.pop()}
