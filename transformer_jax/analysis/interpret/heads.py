"""Which attention heads matter: by gradient, by taking each out, by taking out more and more (Michel et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import Array
from matplotlib.figure import Figure

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.interpret.measures import Measure, batches, log_probs_of, nll_on
from transformer_jax.analysis.run import Run
from transformer_jax.models.taps import Interventions, Network
from transformer_jax.models.transformer import Params

Head = tuple[str, int]
"""The path of an attention and the number of one of its heads: ("decoder/layer_0/cross_attention", 2)."""


@dataclass(frozen=True)
class HeadImportance:
    """A number for each head: the larger, the more it matters.

    Attributes:
      attentions: A paths, in the order of the network.
      scores: float[A, H].
      label: what the numbers are.
    """

    attentions: tuple[str, ...]
    scores: np.ndarray
    label: str

    def ranked(self) -> list[Head]:
        """All heads, the least important first."""
        order = np.argsort(self.scores, axis=None, kind="stable")
        rows, heads = np.unravel_index(order, self.scores.shape)
        return [(self.attentions[row], int(head)) for row, head in zip(rows, heads, strict=True)]

    def normalized(self) -> "HeadImportance":
        """Each attention's scores divided by their Euclidean norm, as Michel et al. compare layers (section 4.1)."""
        norms = np.linalg.norm(self.scores, axis=1, keepdims=True)
        scores = np.divide(self.scores, norms, out=np.zeros_like(self.scores), where=norms > 0)
        return HeadImportance(self.attentions, scores, f"{self.label}, normalised by layer")

    def plot(self) -> Figure:
        """A heat map: a row for each attention, a column for each head."""
        rows, columns = self.scores.shape
        figure = Figure(figsize=(1.1 * columns + 4, 0.45 * rows + 1.4), layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(self.scores, cmap="Blues", aspect="auto")
        axis.set_xticks(range(columns), [f"head {head}" for head in range(columns)])
        axis.set_yticks(range(rows), self.attentions)
        middle = (self.scores.max() + self.scores.min()) / 2
        for (row, column), score in np.ndenumerate(self.scores):
            colour = "white" if score > middle else "black"
            axis.text(column, row, f"{score:.3g}", ha="center", va="center", fontsize=8, color=colour)
        figure.colorbar(image, label=self.label)
        return figure


@dataclass(frozen=True)
class PruningCurve:
    """What remains when heads are taken out, one after the other.

    Attributes:
      removed: the heads in the order of removal.
      counts: int[n], how many were out; values: float[n], the measure then.
      label: what was measured.
    """

    removed: tuple[Head, ...]
    counts: np.ndarray
    values: np.ndarray
    label: str

    def plot(self) -> Figure:
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axis = figure.subplots()
        axis.plot(self.counts, self.values, marker="o", markersize=3)
        axis.set(xlabel=f"heads removed, of {len(self.removed)}", ylabel=self.label)
        axis.grid(alpha=0.3)
        return figure


def attentions(run: Run) -> tuple[str, ...]:
    """The paths of all attentions, in the order of the network: encoder first, self- before cross-attention."""
    paths = [name.removesuffix("/heads") for name in run.points if name.endswith("/heads")]
    place = lambda path: (not path.startswith("encoder"), _number(path), "cross" in path, path)
    return tuple(sorted(paths, key=place))


def _number(path: str) -> int:
    digits = [part.removeprefix("layer_") for part in path.split("/") if part.startswith("layer_")]
    return int(digits[0]) if digits else 0


def gradient_importance(run: Run, *texts: Sequence[str]) -> HeadImportance:
    """The mean over texts of |∂L/∂ξ_h|, where ξ_h = 1 multiplies the output of head h (Michel et al. 2019, eq. 2).

    L is the negative log-likelihood of a text per predicted token, in nats. One backward pass for all heads.

    Args: texts: as for `Run.capture`.
    """
    return gradient_importance_on(run, run.inputs(*texts))


def gradient_importance_on(run: Run, inputs: Inputs) -> HeadImportance:
    """As `gradient_importance`, of tokens as the model is called with them."""
    paths = attentions(run)
    heads = [run.points[f"{path}/heads"].shape[1] for path in paths]
    total, count = [np.zeros(n) for n in heads], 0
    for members, padded in batches(run, inputs):
        ones = {path: np.ones((len(padded[0]), n), np.float32) for path, n in zip(paths, heads, strict=True)}
        slopes = _slopes(run.model, run.params, ones, padded, run.predicted(padded))
        for row, path in zip(total, paths, strict=True):
            row += np.abs(np.asarray(slopes[path][: len(members)], np.float64)).sum(axis=0)
        count += len(members)
    return HeadImportance(paths, np.stack(total) / count, "mean |∂loss/∂head|")


@partial(jax.jit, static_argnames="model")
def _slopes(model: Network, params: Params, masks: dict[str, Array], inputs: Inputs, predicted: Array) -> Any:
    def loss(masks: dict[str, Array]) -> Array:
        edits = {f"{path}/heads": lambda value, _, m=mask: value * m[:, :, None, None] for path, mask in masks.items()}
        masked = model.clone(interventions=Interventions(edits, model.interventions))
        logits: Any = masked.apply({"params": params}, *inputs)
        lengths = jnp.maximum(jnp.sum(predicted != 0, axis=1), 1)
        # Rows do not touch each other, so the gradient of their sum holds that of each.
        return jnp.sum(-jnp.sum(log_probs_of(logits, predicted), axis=1) / lengths)

    return jax.grad(loss)(masks)


def ablation_importance(run: Run, measure: Measure, label: str = "increase") -> HeadImportance:
    """By how much a measure that is to be small, such as `nll_on`, grows when each head alone is taken out."""
    paths, whole = attentions(run), measure(run)
    scores = [
        [measure(without_heads(run, [(path, head)])) - whole for head in range(run.points[f"{path}/heads"].shape[1])]
        for path in paths
    ]
    return HeadImportance(paths, np.asarray(scores), label)


def pruning_curve(
    run: Run, order: Sequence[Head], measure: Measure, label: str, counts: Sequence[int] | None = None
) -> PruningCurve:
    """A measure of the run without the first 0, 1, 2 … heads of an order, such as `HeadImportance.ranked` gives.

    Args: counts: how many to take out; each number from none to all by default.
    """
    counts = range(len(order) + 1) if counts is None else counts
    values = [measure(without_heads(run, order[:count])) for count in counts]
    return PruningCurve(tuple(order), np.asarray(counts), np.asarray(values), label)


def without_heads(run: Any, heads: Sequence[Head]) -> Any:
    """The run without some heads: their rows of the output projection are zero, so nothing is compiled anew.

    The same network as with `interventions.mask_heads`.
    """
    flat = dict(traverse_util.flatten_dict(run.params, sep="/"))
    for path, head in heads:
        kernel = np.array(flat[f"{path}/output/kernel"])
        kernel[head] = 0.0
        flat[f"{path}/output/kernel"] = kernel
    return run.with_params(traverse_util.unflatten_dict(flat, sep="/"))


def nll_importance(run: Run, *texts: Sequence[str]) -> HeadImportance:
    """`ablation_importance` by the negative log-likelihood of texts."""
    return ablation_importance(run, nll_on(*texts), "increase of nats per token")
