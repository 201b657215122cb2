"""Sampling from the model: temperature, top-k, top-p and min-p, with randomness that belongs to the sentence.

Notation: B sentences, K samples of each, T target length, P prefix length, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.decoding.beam import forced_tokens, last_tokens, log_prob_of
from transformer_jax.decoding.interface import (
    EOS_ID,
    NEVER_GENERATED,
    PAD_ID,
    Cache,
    Decodable,
    Hypotheses,
    Params,
    Requests,
)
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class SamplingConfig:
    """How to draw a token.

    ``temperature`` > 0 divides the logits. Then come, in this order, each on what the one before left:
    ``top_k`` keeps the k likeliest tokens (0: all); ``top_p`` the fewest tokens that hold at least that mass
    (1: all; Holtzman et al. 2020); ``min_p`` those at least that fraction as likely as the likeliest (0:
    all; Nguyen et al. 2024).
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(
                f"sampling.temperature is {self.temperature}; it must be above 0. For the likeliest token at "
                "each step use method='greedy'."
            )
        if self.top_k < 0:
            raise UserError(f"sampling.top_k is {self.top_k}; it must be 0 (all tokens) or more.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p is {self.top_p}; it must be above 0 and at most 1 (all tokens).")
        if not 0 <= self.min_p < 1:
            raise UserError(f"sampling.min_p is {self.min_p}; it must be at least 0 (all tokens) and below 1.")


class SampleState(NamedTuple):
    """K samples of each of B sentences, so far."""

    cache: Cache
    requests: Requests
    position: Array  # int32[B]: tokens generated so far
    tokens: Array  # int32[B, K, T]
    log_probs: Array  # float32[B, K]
    ended: Array  # bool[B, K]


@dataclass(frozen=True)
class Sampling:
    """Draws ``num_hypotheses`` samples of each sentence. Scores are log-probabilities under the model
    itself.
    """

    model: Decodable
    config: SamplingConfig
    num_hypotheses: int
    min_length: int

    def usual_slots(self, length: int) -> None:
        """Samples have no tokens in common."""

    def start(self, params: Params, requests: Requests, length: int, num_slots: int | None = None) -> SampleState:
        B, K = requests.source.shape[0], self.num_hypotheses
        return SampleState(
            cache=self.model.start(params, requests.source, K, length),
            requests=requests,
            position=jnp.zeros(B, jnp.int32),
            tokens=jnp.zeros((B, K, length), jnp.int32),
            log_probs=jnp.zeros((B, K)),
            ended=jnp.zeros((B, K), bool),
        )

    def active(self, state: SampleState) -> Array:
        return ~state.ended.all(axis=1) & (state.position < state.tokens.shape[-1])

    def result(self, state: SampleState) -> Hypotheses:
        return Hypotheses(state.tokens, state.log_probs, state.log_probs, state.ended.all(axis=1))

    def step(self, params: Params, state: SampleState) -> SampleState:
        requests = state.requests
        position = state.position[:, None]
        logits, cache = self.model.step(params, state.cache, last_tokens(state.tokens, state.position))
        excluded = np.zeros(logits.shape[-1], np.float32)
        excluded[list(NEVER_GENERATED)] = -np.inf
        allowed = logits + excluded
        early = (position + 1 < self.min_length)[..., None] & (np.arange(logits.shape[-1]) == EOS_ID)
        drawn = draw(
            jnp.where(early, -jnp.inf, allowed),
            uniforms(requests.seed, state.position, self.num_hypotheses),
            self.config,
        )
        if requests.prefix.shape[1]:
            forced = forced_tokens(requests.prefix, state.position)[:, None]
            drawn = jnp.where(forced != PAD_ID, forced, drawn)
        last = position + 1 >= requests.max_length[:, None]
        drawn = jnp.where(last, EOS_ID, drawn)
        drawn = jnp.where(state.ended, PAD_ID, drawn)
        write = jax.nn.one_hot(state.position, state.tokens.shape[-1], dtype=bool)[:, None, :]
        log_probs = state.log_probs + jnp.where(state.ended, 0.0, log_prob_of(logits, drawn))
        return SampleState(
            cache=cache,
            requests=requests,
            position=state.position + 1,
            tokens=jnp.where(write, drawn[:, :, None], state.tokens),
            log_probs=log_probs,
            ended=state.ended | (((drawn == EOS_ID) | last) & (position < state.tokens.shape[-1])),
        )


def uniforms(seed: Array, position: Array, count: int) -> Array:
    """float32[B, count] in [0, 1), a function of seed int32[B, 2] and position int32[B] alone."""

    def one(seed: Array, position: Array) -> Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed[0]), seed[1]), position)
        return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(jnp.arange(count))

    return jax.vmap(one)(seed, position)


def draw(logits: Array, uniform: Array, config: SamplingConfig) -> Array:
    """Tokens int32[...] for logits float32[..., V], by inverting the cumulative distribution at
    uniform[...].
    """
    logits = logits / config.temperature
    if config.top_k or config.top_p < 1:
        ranked = -jnp.sort(-logits, axis=-1)
        if config.top_k:
            kth = ranked[..., min(config.top_k, logits.shape[-1]) - 1, None]
            logits = jnp.where(logits >= kth, logits, -jnp.inf)
            ranked = jnp.where(ranked >= kth, ranked, -jnp.inf)
        if config.top_p < 1:
            probabilities = jax.nn.softmax(ranked, axis=-1)
            mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
            threshold = jnp.min(jnp.where(mass_before < config.top_p, ranked, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = jnp.where(weights >= config.min_p, weights, 0.0)
    cumulative = jnp.cumsum(weights, axis=-1)
    return jnp.argmax(cumulative > uniform[..., None] * cumulative[..., -1:], axis=-1).astype(jnp.int32)
