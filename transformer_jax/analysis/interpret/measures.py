"""How good a run is on given texts, as one number: what ablations, removals and interpolations are judged by."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.analysis.capture import STEP, Inputs, unpadded
from transformer_jax.analysis.run import Run
from transformer_jax.errors import UserError
from transformer_jax.models.taps import Network
from transformer_jax.models.transformer import Params

Measure = Callable[[Any], float]
"""``measure(run)``: one number. Made once, it may be asked of any run with the same tokenizer."""

ROWS = 64
"""Rows of a batch of texts."""


def nll_on(*texts: Sequence[str]) -> Measure:
    """Negative log-likelihood in nats per predicted token, in teacher forcing; texts as for `Run.capture`."""
    return lambda run: _per_token(run, texts)[0]


def accuracy_on(*texts: Sequence[str]) -> Measure:
    """The share of tokens that are likeliest where they are to be predicted, in teacher forcing."""
    return lambda run: _per_token(run, texts)[1]


def exact_matches_on(sources: Sequence[str], references: Sequence[str], **decoding: Any) -> Measure:
    """The share of lines whose translation is the reference; decoding settings are changed by keyword."""

    def measure(run: Any) -> float:
        tokens = [best[0].tokens for best in run.search(sources, **{"n_best": 1, **decoding})]
        return float(np.mean([a == b for a, b in zip(run.decode(tokens), references, strict=True)]))

    return measure


def _per_token(run: Run, texts: Sequence[Sequence[str]]) -> tuple[float, float]:
    sums = [
        _sums(run.model, run.params, padded, run.predicted(padded)) for _, padded in batches(run, run.inputs(*texts))
    ]
    nll, correct, count = np.sum(jax.device_get(sums), axis=0)
    return float(nll / count), float(correct / count)


@partial(jax.jit, static_argnames="model")
def _sums(model: Network, params: Params, inputs: Inputs, predicted: Array) -> tuple[Array, Array, Array]:
    logits: Any = model.apply({"params": params}, *inputs)
    real = predicted != 0
    correct = (jnp.argmax(logits, axis=-1) == predicted) & real
    return -jnp.sum(log_probs_of(logits, predicted)), jnp.sum(correct), jnp.sum(real)


def log_probs_of(logits: Array, tokens: Array) -> Array:
    """log softmax(logits[…, T, V]) of tokens[…, T], 0 where the token is 0."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jnp.where(tokens == 0, 0.0, chosen - jax.nn.logsumexp(logits, axis=-1))


def batches(run: Run, inputs: Inputs) -> Iterator[tuple[np.ndarray, Inputs]]:
    """Rows of similar lengths together, in few shapes: the numbers of the rows int[r], and the rows, padded.

    Rows of zeros fill up the last batch of each shape. Raises: UserError when there are no rows.
    """
    if not len(inputs[0]):
        raise UserError("analysis: there are no texts; give at least one.")
    limit, rows = run.model.config.max_length, min(ROWS, 1 << (len(inputs[0]) - 1).bit_length())
    lengths = np.asarray([[len(unpadded(row)) for row in side] for side in inputs]).T
    shapes = np.minimum(lengths + -lengths % STEP, limit)
    for shape in np.unique(shapes, axis=0):
        members = np.flatnonzero((shapes == shape).all(axis=1))
        for first in range(0, len(members), rows):
            chosen = members[first : first + rows]
            yield chosen, tuple(_fit(side[chosen], rows, n) for side, n in zip(inputs, shape, strict=True))


def _fit(side: np.ndarray, rows: int, length: int) -> np.ndarray:
    fitted = np.zeros((rows, length), side.dtype)
    width = min(length, side.shape[1])
    fitted[: len(side), :width] = side[:, :width]
    return fitted
