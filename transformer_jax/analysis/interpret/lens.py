"""Logit lens (nostalgebraist 2020): what the network would predict if each layer were its last."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.interpret.attention import predicted_names, stacked
from transformer_jax.analysis.run import Run
from transformer_jax.models.taps import Interventions, Network
from transformer_jax.models.transformer import Params


@dataclass(frozen=True)
class LogitLens:
    """Predictions of one text, read off the residual stream before the first layer and after each of L layers.

    Attributes:
      pieces: T tokens that are to be predicted, "" where there is none.
      tokens: int32[L + 1, T, k], the likeliest at each place, best first; names: the same, readable.
      probabilities: float32[L + 1, T, k], theirs.
      log_probs: float32[L + 1, T], of the tokens that are to be predicted; 0 where there is none.
      ranks: int32[L + 1, T], how many tokens are likelier than those; 0 where there is none.
      divergence: float32[L + 1, T], from the prediction there to the last one: KL(last ‖ there) in nats.
    """

    pieces: list[str]
    tokens: np.ndarray
    names: list[list[list[str]]]
    probabilities: np.ndarray
    log_probs: np.ndarray
    ranks: np.ndarray
    divergence: np.ndarray

    def plot(self) -> Figure:
        """The likeliest token at each place, coloured by its probability; the last layer at the top."""
        rows, columns = self.log_probs.shape
        figure = Figure(figsize=(0.9 * columns + 2, 0.5 * rows + 1.5), layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(self.probabilities[..., 0], vmin=0, vmax=1, cmap="Blues", aspect="auto", origin="lower")
        for row in range(rows):
            for column in range(columns):
                colour = "white" if self.probabilities[row, column, 0] > 0.5 else "black"
                name = self.names[row][column][0]
                axis.text(column, row, name, ha="center", va="center", fontsize=7, color=colour)
        axis.set_yticks(range(rows), ["embeddings", *(f"layer {i}" for i in range(rows - 1))])
        axis.set_xticks(range(columns), self.pieces, rotation=60, ha="right", fontsize=8)
        axis.set_xlabel("to be predicted")
        figure.colorbar(image, label="probability of the likeliest token")
        return figure


def logit_lens(run: Run, *texts: str, k: int = 5) -> LogitLens:
    """The lens for one text, or source and target, in teacher forcing.

    The residual stream goes through all that the network has after its last layer: norm, head, output table.

    Args: k: how many of the likeliest tokens to keep.
    """
    return logit_lens_on(run, run.inputs(*([text] for text in texts)), k)


def logit_lens_on(run: Run, inputs: Inputs, k: int) -> LogitLens:
    """As `logit_lens`, of tokens int32[1, …] as the model is called with them."""
    stack = run.model.last_stack
    found = run.capture_inputs(inputs, [f"{stack}/layer_0/residual_before", f"{stack}/layer_*/residual_after"])
    before = found[f"{stack}/layer_0/residual_before"]
    streams = np.concatenate([before, stacked(found, f"{stack}/layer_*/residual_after")[0]])
    predicted = run.predicted(inputs)[0]
    read = jax.device_get(_read_off(run.model, run.params, inputs, streams, predicted, k))
    names = [[run.token_names(place) for place in layer] for layer in read["tokens"].tolist()]
    return LogitLens(predicted_names(run, inputs), names=names, **read)


@partial(jax.jit, static_argnames=("model", "k"))
def _read_off(
    model: Network, params: Params, inputs: Inputs, streams: Array, predicted: Array, k: int
) -> dict[str, Array]:
    # Each stream takes the place of what leaves the last layer, in a row of its own.
    last = f"{model.last_stack}/layer_{len(streams) - 2}/residual_after"
    put = Interventions({last: lambda value, name: streams.astype(value.dtype)}, model.interventions)
    rows = [jnp.broadcast_to(side, (len(streams), side.shape[1])) for side in inputs]
    logits: Any = model.clone(interventions=put).apply({"params": params}, *rows)
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    probabilities, tokens = jax.lax.top_k(log_probs, k)
    own = jnp.take_along_axis(log_probs, predicted[None, :, None], axis=-1)
    real, final = predicted != 0, log_probs[-1:]
    return {
        "tokens": tokens,
        "probabilities": jnp.exp(probabilities),
        "log_probs": jnp.where(real, own[..., 0], 0.0),
        "ranks": jnp.where(real, jnp.sum(log_probs > own, axis=-1), 0),
        "divergence": jnp.sum(jnp.exp(final) * (final - log_probs), axis=-1),
    }
