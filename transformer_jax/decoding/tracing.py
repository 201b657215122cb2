"""Beam search watched: which hypotheses were alive after each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.decoding.batching import pad_tokens
from transformer_jax.decoding.beam import BeamSearch
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.interface import EOS_ID, Params, Requests
from transformer_jax.errors import UserError

STEP = 16


@dataclass(frozen=True)
class Alive:
    """An unfinished hypothesis after a step: its tokens so far, its natural log-probability, and the index of the one
    that it continues among those of the step before (-1 after the first)."""

    tokens: tuple[int, ...]
    log_prob: float
    parent: int


def trace(search: Any, params: Params, source: Sequence[int], config: DecodingConfig) -> list[list[Alive]]:
    """The hypotheses that a search of one sentence kept after each of its steps, likeliest first.

    Args:
      search: a `BeamSearch`; greedy search is its beam of one.
      source: tokens without EOS.
    Raises: UserError for another search, which keeps no beam.
    """
    if not isinstance(search, BeamSearch):
        raise UserError(f"{type(search).__name__} keeps no beam that could be traced; use method 'beam' or 'greedy'.")
    ended = [*source, EOS_ID]
    limit = config.output_limit(len(ended))
    # Sentences and outputs of similar lengths share a program.
    width, room = (n + -n % STEP for n in (len(ended), limit))
    request = Requests(
        jnp.asarray(pad_tokens([ended], 1, max(len(ended), min(width, config.max_source_length)))),
        jnp.asarray([limit], jnp.int32),
        jnp.zeros((1, 0), jnp.int32),
        jnp.asarray([[config.seed, 0]], jnp.int32),
    )
    tokens, log_probs, active = jax.device_get(_states(search, min(room, config.max_target_length), params, request))
    steps: list[list[Alive]] = []
    for step in range(int(active.sum())):
        before = {one.tokens: i for i, one in enumerate(steps[-1])} if steps else {}
        found = [
            (tuple(row[: step + 1].tolist()), float(log_prob))
            for row, log_prob in zip(tokens[step], log_probs[step], strict=True)
            if np.isfinite(log_prob)
        ]
        # At the last position nothing may go on, and a step that ends the search leaves what no longer matters.
        if not found:
            break
        found.sort(key=lambda one: -one[1])
        steps.append([Alive(row, log_prob, before.get(row[:-1], -1)) for row, log_prob in found])
    return steps


@partial(jax.jit, static_argnums=(0, 1))
def _states(search: BeamSearch, length: int, params: Params, request: Requests) -> tuple[Array, Array, Array]:
    """tokens int32[T, K, T] and log_probs float32[T, K] after each step, and bool[T]: whether it was taken."""

    def step(state: Any, _: None) -> tuple[Any, tuple[Array, Array, Array]]:
        after = search.step(params, state)
        return after, (after.tokens[0], after.log_probs[0], search.active(state)[0])

    _, states = jax.lax.scan(step, search.start(params, request, length), None, length=length)
    return states
