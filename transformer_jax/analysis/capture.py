"""Reading activations by name: in teacher forcing, and of every hypothesis that a search finds.

The names are those of `transformer_jax.models.taps`, chosen by patterns as `fnmatch` has them: ``"*/weights"`` is all
attention weights, ``"decoder/layer_?/residual_after"`` the residual stream after each layer of the decoder.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from transformer_jax.config import suggest
from transformer_jax.errors import UserError
from transformer_jax.models.taps import COLLECTION, Network
from transformer_jax.models.transformer import Params

Inputs = tuple[np.ndarray, ...]
"""What a network is called with: arrays int32[B, positions], zeros where a row has ended, or images."""
Sides = Callable[[str], tuple[int | None, int | None]]
"""``sides(name)``: along which of the inputs the last axis but one of an activation runs, and along which the last;
None where it runs along none."""

STEP = 16
"""Inputs are padded to multiples of so many positions, so that sentences of similar lengths share a program."""


@dataclass(frozen=True)
class CapturedHypothesis:
    """One output of a search and what the network computed for it.

    Attributes:
      text, tokens, score, log_prob: as the search gives them; tokens without the end.
      activations: by name, without a batch axis and without padding, over what the network read to write it and,
        where the network knows an end, to end it.
    """

    text: str
    tokens: list[int]
    score: float
    log_prob: float
    activations: dict[str, np.ndarray]


def read(state: Mapping[str, Any]) -> dict[str, Any]:
    """Activations by name, from the state that ``apply(…, mutable=["intermediates"])`` returns."""
    return {"/".join(path): values[0] for path, values in flatten_dict(dict(state.get(COLLECTION, {}))).items()}


@partial(jax.jit, static_argnames=("model", "chosen"))
def _captured(model: Network, chosen: tuple[str, ...], params: Params, inputs: Inputs) -> dict[str, Any]:
    _, state = model.apply({"params": params}, *inputs, mutable=[COLLECTION])
    found = read(state)
    return {name: found[name] for name in chosen}


@lru_cache(maxsize=16)
def points(model: Network) -> dict[str, jax.ShapeDtypeStruct]:
    """All names of an unrolled network, with the shape and type each has for two positions of one sentence, or one
    image."""
    model = model.clone(interventions=None)
    inputs = model.example()
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    _, state = jax.eval_shape(lambda p, *a: model.apply({"params": p}, *a, mutable=[COLLECTION]), params, *inputs)
    return read(state)


def matching(names: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    """The names that any of the patterns matches, in their order. Raises: UserError for a pattern that matches none."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            # Of a large network whole names are hundreds, and their last parts a few.
            ends = {f"*/{name.rpartition('/')[2]}" if "/" in name else name for name in names}
            near = difflib.get_close_matches(pattern, [*names, *ends], n=1)
            raise UserError(f"activations: nothing is called {pattern!r}. {suggest(pattern, near or ends)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def capture(model: Any, params: Params, inputs: Inputs, names: Sequence[str], sides: Sides) -> dict[str, np.ndarray]:
    """Activations in teacher forcing, by name.

    Args:
      model: unrolled; its interventions are at work, and what is read is what they leave.
      names: patterns.
    Returns: arrays whose first axis is the batch's, in the network's own layout, over as many positions as ``inputs``
      has; what stands at padding means nothing.
    """
    chosen = matching(points(model), names)
    padded = tuple(_padded(rows, model.config.max_length) if rows.ndim == 2 else rows for rows in inputs)
    found = jax.device_get(_captured(model, chosen, params, padded))
    lengths = [rows.shape[1] for rows in inputs]
    return {name: cut(value, lengths, sides(name)) for name, value in found.items()}


def _padded(rows: np.ndarray, limit: int) -> np.ndarray:
    length = rows.shape[1]
    return np.pad(rows, ((0, 0), (0, max(length, min(limit, length + -length % STEP)) - length)))


def unpadded(row: np.ndarray) -> list[int]:
    """Tokens without the zeros at the end."""
    return row[: np.flatnonzero(row)[-1] + 1].tolist() if row.any() else []


def cut(value: np.ndarray, lengths: Sequence[int], sides: tuple[int | None, int | None]) -> np.ndarray:
    """``value`` over the first lengths[side] positions of the axes that have a side."""
    rows, columns = (slice(None) if side is None else slice(lengths[side]) for side in sides)
    return value[..., rows, columns]


def alone(activations: Mapping[str, np.ndarray], inputs: Inputs, row: int, sides: Sides) -> dict[str, np.ndarray]:
    """The activations of one row of a batch, without its axis and its padding."""
    lengths = [len(unpadded(rows[row])) for rows in inputs]
    return {name: cut(value[row], lengths, sides(name)) for name, value in activations.items()}
