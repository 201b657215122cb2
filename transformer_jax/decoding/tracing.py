"""Beam search of one sentence, watched: which hypotheses were alive after each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.decoding.batching import Hypothesis, hypotheses, pad_tokens
from transformer_jax.decoding.beam import BeamSearch
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.interface import EOS_ID, Hypotheses, Params, Requests
from transformer_jax.errors import UserError

STEP = 16


@dataclass(frozen=True)
class Alive:
    """An unfinished hypothesis after a step: its tokens so far, its natural log-probability, and the index of the one
    that it continues among those of the step before (-1 after the first)."""

    tokens: tuple[int, ...]
    log_prob: float
    parent: int


@dataclass(frozen=True)
class Trace:
    """One search: the hypotheses kept after each step, likeliest first, and those found, best first."""

    steps: list[list[Alive]]
    found: list[Hypothesis]


def trace(search: Any, params: Params, source: Sequence[int], config: DecodingConfig) -> Trace:
    """Searches for one sentence, as `Decoder.decode` does.

    Args:
      search: a `BeamSearch`; greedy search is its beam of one.
      source: tokens without EOS.
    Raises: UserError for another search, which keeps no beam, and for a source over ``config.max_source_length``.
    """
    if not isinstance(search, BeamSearch):
        raise UserError(f"{type(search).__name__} keeps no beam that could be traced; use method 'beam' or 'greedy'.")
    ended = [*source, EOS_ID]
    if len(ended) > config.max_source_length:
        raise UserError(
            f"it has {len(ended)} tokens with its end; decoding.max_source_length is {config.max_source_length}. "
            "Shorten it."
        )
    limit = config.output_limit(len(ended))
    # Sentences and outputs of similar lengths share a program.
    width, room = (n + -n % STEP for n in (len(ended), limit))
    request = Requests(
        jnp.asarray(pad_tokens([ended], 1, min(width, config.max_source_length))),
        jnp.asarray([limit], jnp.int32),
        jnp.zeros((1, 0), jnp.int32),
        jnp.asarray([[config.seed, 0]], jnp.int32),
    )
    taken, result = jax.device_get(_run(search, min(room, config.max_target_length), params, request))
    steps: list[list[Alive]] = []
    for tokens, log_probs, active in zip(*taken, strict=True):
        # At the last position nothing may go on.
        kept: Any = np.flatnonzero(np.isfinite(log_probs)) if active else []
        if not len(kept):
            break
        before = {one.tokens: i for i, one in enumerate(steps[-1])} if steps else {}
        rows = [(tuple(tokens[i, : len(steps) + 1].tolist()), float(log_probs[i])) for i in kept]
        alive = [Alive(row, log_prob, before.get(row[:-1], -1)) for row, log_prob in rows]
        steps.append(sorted(alive, key=lambda one: -one.log_prob))
    return Trace(steps, hypotheses(result, 0))


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    search: BeamSearch, length: int, params: Params, request: Requests
) -> tuple[tuple[Array, Array, Array], Hypotheses]:
    """After each step tokens int32[T, K, T], log_probs float32[T, K], and bool[T], whether it was taken; the result."""

    def step(state: Any, _: None) -> tuple[Any, tuple[Array, Array, Array]]:
        after = search.step(params, state)
        return after, (after.tokens[0], after.log_probs[0], search.active(state)[0])

    last, taken = jax.lax.scan(step, search.start(params, request, length), None, length=length)
    return taken, search.result(last)
