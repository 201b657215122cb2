"""What a Spotlight page shows, as data: it knows no model and no page. Parts that a family lacks are left out.

Notation: L layers, H heads, Q queries, K keys, T positions of the text that is predicted, k candidates.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class AttentionView:
    """One kind of attention, of all layers and heads.

    Attributes:
      name, title: such as "cross" and "Cross-attention".
      explanation: a sentence that says who looks at what.
      queries, keys: names of token rows in `Example.rows`.
      layers: their L numbers; an LSTM's decoder attends in its last alone.
      weights: float[L, H, Q, K], from 0 to 1.
      importance: float[L, H], or None.
    """

    name: str
    title: str
    explanation: str
    queries: str
    keys: str
    layers: Sequence[int]
    weights: np.ndarray
    importance: np.ndarray | None = None


@dataclass(frozen=True)
class Row:
    """A row of tokens.

    Attributes:
      title: what the row is, such as "Source".
      tokens: as the tokenizer writes them.
      text: which they are pieces of; it decides the direction in which the row is written.
    """

    title: str
    tokens: Sequence[str]
    text: str


@dataclass(frozen=True)
class Hypothesis:
    """One output of the search. ``log_probs`` are of its tokens, natural, the end included if it has one."""

    text: str
    tokens: Sequence[str]
    log_probs: Sequence[float]
    score: float


@dataclass(frozen=True)
class Beam:
    """An unfinished hypothesis after a step: its last token, the index of the one it continues among those of the
    step before (-1 at first), its natural log-probability, and whether the best output begins with it."""

    token: str
    parent: int
    log_prob: float
    on_best: bool


@dataclass(frozen=True)
class Candidates:
    """The likeliest tokens at each position, given what the model was given before.

    Attributes:
      row: the token row whose positions these are.
      title: of the tokens that were taken, such as "Output".
      tokens: [T][k], likeliest first.
      log_probs: float[T, k], natural.
      taken: [T], what the text has where each prediction is made; "?" where that is not known.
      taken_log_probs: float[T]; NaN there.
    """

    row: str
    title: str
    tokens: Sequence[Sequence[str]]
    log_probs: np.ndarray
    taken: Sequence[str]
    taken_log_probs: np.ndarray


@dataclass(frozen=True)
class Lens:
    """The logit lens (nostalgebraist 2020): what the output layer reads from the residual stream after each layer.

    Attributes:
      row: the token row whose positions these are.
      layers: L names, first to last.
      tokens: [L][T][k], likeliest first.
      probabilities: float[L, T, k].
    """

    row: str
    layers: Sequence[str]
    tokens: Sequence[Sequence[Sequence[str]]]
    probabilities: np.ndarray


@dataclass(frozen=True)
class Example:
    """One text and what the model does with it. ``rows`` are its token rows by name."""

    title: str
    rows: Mapping[str, Row]
    views: Sequence[AttentionView]
    hypotheses: Sequence[Hypothesis] = ()
    beams: Sequence[Sequence[Beam]] = ()
    candidates: Candidates | None = None
    lens: Lens | None = None


@dataclass(frozen=True)
class Report:
    """A page: what was analysed, and its examples. ``importance`` says how the importance of heads was measured."""

    run: str
    facts: Mapping[str, str] = field(default_factory=dict)
    importance: str = ""
    examples: Sequence[Example] = ()


def as_json(value: Any, name: str = "") -> Any:
    """A report, or a part of one, as the page reads it.

    Numbers have five digits, those that are not finite are null. Of attention weights there are the number of heads
    and base64 of uint8[L, H, Q, K], in which 255 is 1, so they are off by at most 0.002.
    """
    if is_dataclass(value):
        return {one.name: as_json(getattr(value, one.name), one.name) for one in fields(value)}
    if isinstance(value, np.ndarray) and name == "weights":
        bytes_ = np.rint(np.clip(value, 0, 1) * 255).astype(np.uint8).tobytes()
        return {"heads": value.shape[1], "uint8": base64.b64encode(bytes_).decode()}
    if isinstance(value, np.ndarray):
        return as_json(value.tolist())
    if isinstance(value, Mapping):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [as_json(one) for one in value]
    return value
