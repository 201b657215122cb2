"""Which of the tokens that were read an output token is due to: by gradients, and by following attention.

Gradients are of log P(token | what was read), with respect to the embeddings.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.interpret.attention import plot_maps, predicted_names, stacked
from transformer_jax.analysis.interpret.measures import log_probs_of
from transformer_jax.analysis.run import Run
from transformer_jax.data.tokenizers import BOS, EOS, PAD, UNK
from transformer_jax.errors import UserError
from transformer_jax.models.taps import Interventions, Network
from transformer_jax.models.transformer import Params

Embeddings = dict[str, Any]


@dataclass(frozen=True)
class Attribution:
    """What each token that is predicted is due to.

    Attributes:
      values: for each name of embeddings, such as "source_embeddings", float[T, positions]: row t for the token that is
        predicted at position t.
      read: for each of those names, the tokens read.
      predicted: the T tokens predicted.
      differences: float[T] that the rows of all values together should sum to, by the method; None where it says none.
      label: what the numbers are.
    """

    values: dict[str, np.ndarray]
    read: dict[str, list[str]]
    predicted: list[str]
    differences: np.ndarray | None
    label: str

    def plot(self) -> Figure:
        """One heat map for each kind of embeddings, side by side."""
        return plot_maps(self.values, self.predicted, self.read, self.label)


def input_times_gradient(run: Run, *texts: str) -> Attribution:
    """Σ_d e_d · ∂ log P / ∂e_d for each embedding e (Simonyan et al. 2014; Shrikumar et al. 2016, section 2)."""
    inputs = run.inputs(*([text] for text in texts))
    embeddings = run.capture_inputs(inputs, ["*embeddings"])
    slopes = _slopes(run.model, run.params, embeddings, inputs, run.predicted(inputs))
    values = {name: (embeddings[name][0] * np.asarray(slope)[:, 0]).sum(-1) for name, slope in slopes.items()}
    return _attribution(run, inputs, values, None, "input times gradient")


def integrated_gradients(run: Run, *texts: str, steps: int = 64, baseline: int = UNK) -> Attribution:
    """Gradients summed along the line from a baseline to the input (Sundararajan et al. 2017, eq. 3).

    The baseline is the same text with every token but the special ones replaced. The rows of the result sum to the
    difference of log P between input and baseline, up to the error of the sum over steps, which shrinks with them.

    Args:
      steps: points on the line, at the middles of equal parts of it.
      baseline: the token that stands in for the others; the unknown one by default.
    """
    if steps < 1:
        raise UserError(f"integrated_gradients: steps is {steps}; it must be at least 1.")
    inputs = run.inputs(*([text] for text in texts))
    special = (PAD, EOS, UNK, BOS)
    blank = tuple(np.where(np.isin(side, special), side, baseline).astype(side.dtype) for side in inputs)
    ends = [run.capture_inputs(rows, ["*embeddings"]) for rows in (blank, inputs)]
    predicted = run.predicted(inputs)
    along = (np.arange(steps, dtype=np.float32) + 0.5) / steps
    path = {name: low + along[:, None, None] * (ends[1][name] - low) for name, low in ends[0].items()}
    slopes = _slopes(run.model, run.params, path, inputs, predicted)
    values = {
        name: ((ends[1][name] - ends[0][name])[0] * np.asarray(slope, np.float64).mean(axis=1)).sum(-1)
        for name, slope in slopes.items()
    }
    low, high = (np.asarray(_log_probs(run.model, run.params, end, inputs, predicted))[0] for end in ends)
    return _attribution(run, inputs, values, high - low, f"integrated gradients, {steps} steps")


def attention_rollout(run: Run, *texts: str) -> Attribution:
    """How much of each token's embedding reaches a position if attention moves it (Abnar and Zuidema 2020, section 3).

    Heads are averaged, and after each attention half of a position's state is what it was before. In an
    encoder-decoder the decoder's states are followed through its own attention and through cross-attention to what the
    encoder's states are made of. Rows sum to one. A decoder's embeddings are those of the tokens *before* each one.
    """
    inputs = run.inputs(*([text] for text in texts))
    weights = run.capture_inputs(inputs, ["*/weights"])
    stack = run.model.last_stack
    layers = lambda pattern: stacked(weights, pattern)[0].mean(axis=1).astype(np.float64)
    own = layers(f"{stack}/layer_*/self_attention/weights")
    mixed = np.eye(own.shape[-1])
    names = [name for name in run.points if name.endswith("embeddings")]
    if not any("/cross_attention/" in name for name in weights):
        for attended in own:
            mixed = (mixed + attended @ mixed) / 2
        return _attribution(run, inputs, {names[0]: mixed}, np.ones(len(mixed)), "attention rollout")
    memory = np.eye(inputs[0].shape[1])
    for attended in layers("encoder/layer_*/self_attention/weights"):
        memory = (memory + attended @ memory) / 2
    of_source = np.zeros((len(mixed), len(memory)))
    for attended, crossed in zip(own, layers(f"{stack}/layer_*/cross_attention/weights"), strict=True):
        mixed, of_source = (mixed + attended @ mixed) / 2, (of_source + attended @ of_source) / 2
        mixed, of_source = mixed / 2, (of_source + crossed @ memory) / 2
    values = {"source_embeddings": of_source, "target_embeddings": mixed}
    return _attribution(run, inputs, values, np.ones(len(mixed)), "attention rollout")


METHODS = {
    "input_times_gradient": input_times_gradient,
    "integrated_gradients": integrated_gradients,
    "attention_rollout": attention_rollout,
}
Method = Literal["input_times_gradient", "integrated_gradients", "attention_rollout"]


def _attribution(
    run: Run, inputs: Inputs, values: dict[str, np.ndarray], differences: np.ndarray | None, label: str
) -> Attribution:
    read = {name: run.read_pieces(name, inputs) for name in values}
    return Attribution(values, read, predicted_names(run, inputs), differences, label)


@partial(jax.jit, static_argnames="model")
def _log_probs(model: Network, params: Params, embeddings: Embeddings, inputs: Inputs, predicted: Array) -> Array:
    """float32[R, T] for R versions of the embeddings of one text."""
    replaced = {name: lambda value, _, new=new: new.astype(value.dtype) for name, new in embeddings.items()}
    changed = model.clone(interventions=Interventions(replaced, model.interventions))
    rows = len(next(iter(embeddings.values())))
    repeated = [jnp.broadcast_to(side, (rows, side.shape[1])) for side in inputs]
    logits: Any = changed.apply({"params": params}, *repeated)
    return log_probs_of(logits, jnp.broadcast_to(predicted, (rows, predicted.shape[1])))


@partial(jax.jit, static_argnames="model")
def _slopes(model: Network, params: Params, embeddings: Embeddings, inputs: Inputs, predicted: Array) -> Any:
    """For each name, float32[T, R, positions, D]: how row r's log P of each token t depends on its embeddings."""
    log_probs, back = jax.vjp(lambda e: _log_probs(model, params, e, inputs, predicted), embeddings)
    one_position = lambda t: jnp.broadcast_to(jax.nn.one_hot(t, log_probs.shape[1]), log_probs.shape)
    # One position at a time: all at once would hold the activations of each.
    return jax.lax.map(lambda t: back(one_position(t))[0], jnp.arange(log_probs.shape[1]))
