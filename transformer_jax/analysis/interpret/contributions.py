"""Direct logit attribution: what each sublayer, or each head, adds to the logit of a token (Elhage et al. 2021).

The residual stream is a sum, and the output table reads it through the last norm. With the deviation that each norm
divides by taken as it is in the pass, norms are linear, so logits fall into parts exactly. In a post-norm network every
sum passes all the norms after it.
"""

from collections.abc import Mapping, Sequence
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
from transformer_jax.analysis.run import Run
from transformer_jax.errors import UserError
from transformer_jax.models.taps import Interventions, Network
from transformer_jax.models.transformer import Params

Parts = dict[str, np.ndarray]
TOLERANCE = 0.02
"""Of the largest logit: what rounding in bfloat16 may make of a sum."""


@dataclass(frozen=True)
class Contributions:
    """Parts of the logits of one token a position.

    Attributes:
      parts: C names, from the embeddings upwards; "norms" is what the biases of norms give.
      values: float64[C, T]; a column sums to the logit, or to the difference of two.
      pieces: T names of the tokens.
    """

    parts: list[str]
    values: np.ndarray
    pieces: list[str]

    def plot(self) -> Figure:
        rows, columns = self.values.shape
        figure = Figure(figsize=(0.55 * columns + 5, 0.32 * rows + 1.5), layout="constrained")
        axis = figure.subplots()
        largest = np.abs(self.values).max()
        image = axis.imshow(self.values, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        axis.set_yticks(range(rows), self.parts, fontsize=7)
        axis.set_xticks(range(columns), self.pieces, rotation=60, ha="right", fontsize=8)
        figure.colorbar(image, label="part of the logit")
        return figure


def contributions(
    run: Run,
    *texts: str,
    tokens: Sequence[int] | None = None,
    against: Sequence[int] | None = None,
    heads: bool = False,
) -> Contributions:
    """The parts of the logits of one text, or source and target, in teacher forcing.

    Args:
      tokens: whose logits, one a position; those that are to be predicted by default.
      against: tokens whose logits are subtracted, one a position.
      heads: each attention's part is split into those of its heads, and of its bias if it has one.
    Raises: UserError for a network whose logits are no such sum.
    """
    inputs, stack = run.inputs(*([text] for text in texts)), run.model.last_stack
    found = {name: value[0] for name, value in run.capture_inputs(inputs, [f"{stack}/*", "logits"]).items()}
    chosen = np.asarray(run.predicted(inputs)[0] if tokens is None else tokens)
    weights = {
        name: np.asarray(leaf, np.float64) for name, leaf in traverse_util.flatten_dict(run.params, sep="/").items()
    }
    parts = _stream(run.model.config, stack, found, weights, heads)
    other = None if against is None else np.asarray(against)
    read = np.asarray(_directions(run.model, run.params, inputs, found[f"{stack}/output"], chosen, other), np.float64)
    values = np.stack([(part * read).sum(-1) for part in parts.values()])
    at = np.arange(len(chosen))
    logits = found["logits"][at, chosen] - (0.0 if other is None else found["logits"][at, other])
    if np.abs(values.sum(0) - logits).max() > TOLERANCE * np.abs(found["logits"]).max():
        raise UserError(
            f"contributions: the logits of {type(run.model).__name__} are not a linear function of the output of its "
            f"{stack}, or something between the two is edited; they have no parts."
        )
    return Contributions(list(parts), values, run.token_names(chosen.tolist()))


@partial(jax.jit, static_argnames="model")
def _directions(
    model: Network, params: Params, inputs: Inputs, output: Array, chosen: Array, other: Array | None
) -> Array:
    """float32[T, D]: what the logit of each position's token, or the difference of two, reads of the stack's output."""

    def total(output: Array) -> Array:
        put = Interventions({f"{model.last_stack}/output": lambda value, name: output[None].astype(value.dtype)})
        logits: Any = model.clone(interventions=put).apply({"params": params}, *inputs)
        logits, at = logits[0].astype(jnp.float32), jnp.arange(len(chosen))
        return jnp.sum(logits[at, chosen] - (0.0 if other is None else logits[at, other]))

    return jax.grad(total)(output)


def _stream(config: Any, stack: str, found: Mapping[str, np.ndarray], weights: Mapping[str, Any], heads: bool) -> Parts:
    """The stack's output in parts [T, D] that sum to it."""
    parts: Parts = {"embeddings": found[f"{stack}/layer_0/residual_before"].astype(np.float64)}
    layer = 0
    while f"{stack}/layer_{layer}/residual_before" in found:
        for sublayer in ("self_attention", "cross_attention", "feed_forward"):
            path = f"{stack}/layer_{layer}/{sublayer}"
            if f"{path}_output" not in found:
                continue
            parts |= (
                _by_head(path, found, weights) if heads and "attention" in sublayer else {path: found[f"{path}_output"]}
            )
            if config.norm_placement == "post":
                parts = _through_norm(config, parts, weights, f"{path}_norm")
        layer += 1
    return _through_norm(config, parts, weights, f"{stack}/final_norm") if config.norm_placement == "pre" else parts


def _by_head(path: str, found: Mapping[str, np.ndarray], weights: Mapping[str, Any]) -> Parts:
    kernel = weights[f"{path}/output/kernel"]
    outputs = np.einsum("htk,hkd->htd", found[f"{path}/heads"].astype(np.float64), kernel)
    parts = {f"{path}/head_{i}": output for i, output in enumerate(outputs)}
    bias = weights.get(f"{path}/output/bias")
    return parts if bias is None else {**parts, f"{path}/bias": np.broadcast_to(bias, outputs.shape[1:])}


def _through_norm(config: Any, parts: Parts, weights: Mapping[str, Any], norm: str) -> Parts:
    """The norm of the sum, in parts: each is centred, divided by the deviation of the sum, and scaled."""
    whole = np.sum(list(parts.values()), axis=0)
    scale = weights[f"{norm}/scale"]
    if config.norm == "rms_norm":
        deviation = np.sqrt((whole**2).mean(-1, keepdims=True) + config.norm_epsilon)
        return {name: part / deviation * scale for name, part in parts.items()}
    deviation = np.sqrt(whole.var(-1, keepdims=True) + config.norm_epsilon)
    through = {name: (part - part.mean(-1, keepdims=True)) / deviation * scale for name, part in parts.items()}
    return {**through, "norms": through.get("norms", 0.0) + np.broadcast_to(weights[f"{norm}/bias"], whole.shape)}
