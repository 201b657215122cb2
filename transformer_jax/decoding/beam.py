"""Beam search with GNMT scores, patience or exact stopping, and a forced prefix; greedy search is its beam of one.

Notation: B sentences, K beams, N finished hypotheses kept, T target length, P prefix length, V vocabulary.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.decoding.interface import (
    BOS_ID,
    EOS_ID,
    NEVER_GENERATED,
    PAD_ID,
    AttendingDecodable,
    Cache,
    Decodable,
    Hypotheses,
    Params,
    Requests,
    Search,
    SharingDecodable,
    start_cache,
)
from transformer_jax.errors import UserError

BRANCHES = 8
"""Slots for what a beam after the first does not have in common with others."""


def length_normaliser(length: Array, alpha: float) -> Array:
    """((5 + length) / 6)^alpha with EOS counted (Wu et al. 2016, eq. 14)."""
    return ((5.0 + length) / 6.0) ** alpha


class BeamState(NamedTuple):
    """The search of B sentences. ``done_*`` hold the N best finished hypotheses, best first."""

    cache: Cache
    requests: Requests
    position: Array  # int32[B]: tokens generated so far
    active: Array  # bool[B]: not finished
    finished: Array  # int32[B]: hypotheses that have ended so far
    tokens: Array  # int32[B, K, T]
    log_probs: Array  # float32[B, K]: of the unfinished hypotheses; -inf where there is none
    coverage: Array | None  # float32[B, K, S]: attention summed over the steps so far
    done_tokens: Array  # int32[B, N, T]
    done_scores: Array  # float32[B, N]
    done_log_probs: Array  # float32[B, N]


@dataclass(frozen=True)
class BeamSearch:
    """Keeps the K likeliest unfinished hypotheses and the N best finished ones by

        log P(Y|X) / ((5 + |Y|) / 6)^alpha + beta · Σ_i log min(Σ_j p_ij, 1)      (Wu et al. 2016, eq. 14)

    where p_ij is the attention of target token j to source token i. A hypothesis finishes when its EOS is
    among the K likeliest continuations of its sentence. A sentence stops when patience · K hypotheses have
    finished (Kasai et al. 2022; 1 is what most toolkits do), and at the latest when no unfinished one can
    still beat the worst of the N: log-probabilities only fall, so its score is at most
    log P / ((5 + max_length) / 6)^alpha. With patience 0 it stops by that bound alone, which is exact but slow
    for alpha > 0.

    Lengths count EOS. At the last position only EOS is allowed; before ``min_length`` it is not.
    """

    model: Decodable
    beam_size: int
    num_hypotheses: int
    length_penalty: float
    coverage_penalty: float
    min_length: int
    patience: float

    def __post_init__(self) -> None:
        if self.coverage_penalty and not isinstance(self.model, AttendingDecodable):
            raise UserError(
                f"coverage_penalty={self.coverage_penalty} needs attention to the source, which "
                f"{type(self.model).__name__} does not offer (step_with_attention); set it to 0."
            )

    def usual_slots(self, length: int) -> int | None:
        if not isinstance(self.model, SharingDecodable):
            return None
        return min(length + (self.beam_size - 1) * BRANCHES, self.beam_size * length)

    def start(self, params: Params, requests: Requests, length: int, num_slots: int | None = None) -> BeamState:
        B, S = requests.source.shape
        K, N = self.beam_size, self.num_hypotheses
        return BeamState(
            cache=start_cache(self.model, params, requests.source, K, length, num_slots),
            requests=requests,
            position=jnp.zeros(B, jnp.int32),
            active=jnp.ones(B, bool),
            finished=jnp.zeros(B, jnp.int32),
            tokens=jnp.zeros((B, K, length), jnp.int32),
            log_probs=jnp.zeros((B, K)).at[:, 1:].set(-jnp.inf),
            coverage=jnp.zeros((B, K, S)) if self.coverage_penalty else None,
            done_tokens=jnp.zeros((B, N, length), jnp.int32),
            done_scores=jnp.full((B, N), -jnp.inf),
            done_log_probs=jnp.full((B, N), -jnp.inf),
        )

    def active(self, state: BeamState) -> Array:
        return state.active & self._has_room(state)

    def _has_room(self, state: BeamState) -> Array:
        """bool[B]: whether one more token of every beam can be kept."""
        enough = state.position < state.tokens.shape[-1]
        return enough & self.model.has_room(state.cache) if isinstance(self.model, SharingDecodable) else enough

    def result(self, state: BeamState) -> Hypotheses:
        return Hypotheses(state.done_tokens, state.done_scores, state.done_log_probs, ~state.active)

    def step(self, params: Params, state: BeamState) -> BeamState:
        requests, K, T = state.requests, self.beam_size, state.tokens.shape[-1]
        position = state.position[:, None]
        fed, coverage = last_tokens(state.tokens, state.position), state.coverage
        if coverage is None:
            logits, cache = self.model.step(params, state.cache, fed)
        else:
            assert isinstance(self.model, AttendingDecodable)
            logits, cache, attention = self.model.step_with_attention(params, state.cache, fed)
            coverage = coverage + attention

        # Continuations: K ends, one a beam, and the K likeliest others over all beams.
        before = jnp.where(state.active[:, None], state.log_probs, -jnp.inf)
        ends, log_probs, parents, chosen = best_continuations(logits, before)
        last = position + 1 >= requests.max_length[:, None]
        ends = jnp.where(last | (position + 1 >= self.min_length), ends, -jnp.inf)
        log_probs = jnp.where(last, -jnp.inf, log_probs)
        if requests.prefix.shape[1]:
            forced = forced_tokens(requests.prefix, state.position)[:, None]
            log_p = log_prob_of(logits, jnp.broadcast_to(forced, (forced.shape[0], K)))
            is_forced = (forced != PAD_ID) & ~last
            ends = jnp.where(is_forced, -jnp.inf, ends)
            log_probs = jnp.where(is_forced, before + log_p, log_probs)
            parents = jnp.where(is_forced, jnp.arange(K), parents)
            chosen = jnp.where(is_forced, forced, chosen)

        # An end counts when fewer than K continuations of its sentence are likelier.
        likelier = jnp.concatenate([log_probs, ends], axis=1)[:, None, :] > ends[:, :, None]
        ends = jnp.where(likelier.sum(-1) < K, ends, -jnp.inf)
        done = self._merge(state, ends, coverage)

        write = jax.nn.one_hot(position[:, 0], T, dtype=bool)[:, None, :]
        history = jnp.take_along_axis(state.tokens, parents[:, :, None], axis=1)
        best = log_probs.max(axis=1) / length_normaliser(requests.max_length, self.length_penalty)
        active = best > done[0][:, -1]
        finished = state.finished + jnp.sum(ends > -jnp.inf, axis=1, dtype=jnp.int32)
        if self.patience:
            active &= finished < max(self.patience * K, self.num_hypotheses)
        # What a row without room goes on to compute beside others says nothing of it: it stays unfinished and, as its
        # beams could come to have room again, but not what was lost, beyond the last position.
        has_room = self._has_room(state)
        active = state.active & (active | ~has_room)
        return BeamState(
            cache=self.model.reorder(cache, parents),
            requests=requests,
            position=jnp.where(has_room, state.position + 1, T),
            active=active,
            finished=finished,
            tokens=jnp.where(write, chosen[:, :, None], history),
            log_probs=log_probs,
            coverage=None if coverage is None else jnp.take_along_axis(coverage, parents[:, :, None], axis=1),
            done_scores=done[0],
            done_log_probs=done[1],
            done_tokens=done[2],
        )

    def _merge(self, state: BeamState, ends: Array, coverage: Array | None) -> tuple[Array, Array, Array]:
        """The N best of the finished hypotheses and those that end now with log-probability ends[B, K]."""
        position = state.position[:, None]
        scores = ends / length_normaliser(position + 1, self.length_penalty)
        if coverage is not None:
            covered = jnp.log(jnp.clip(coverage, 1e-9, 1.0))
            real = state.requests.source[:, None, :] != PAD_ID
            scores = scores + self.coverage_penalty * jnp.sum(jnp.where(real, covered, 0.0), axis=-1)
        end_here = jax.nn.one_hot(position[:, 0], state.tokens.shape[-1], dtype=bool)[:, None, :]
        ended = jnp.where(end_here, EOS_ID, state.tokens)
        scores = jnp.concatenate([state.done_scores, scores], axis=1)
        scores, keep = jax.lax.top_k(scores, self.num_hypotheses)
        log_probs = jnp.concatenate([state.done_log_probs, ends], axis=1)
        tokens = jnp.concatenate([state.done_tokens, ended], axis=1)
        return (
            scores,
            jnp.take_along_axis(log_probs, keep, axis=1),
            jnp.take_along_axis(tokens, keep[:, :, None], axis=1),
        )


def last_tokens(tokens: Array, position: Array) -> Array:
    """The token to feed next, int32[B, K]: the last one of tokens[B, K, T] at position int32[B], BOS at
    first.
    """
    previous = jnp.take_along_axis(tokens, jnp.maximum(position - 1, 0)[:, None, None], axis=2)[..., 0]
    return jnp.where(position[:, None] == 0, BOS_ID, previous)


def forced_tokens(prefix: Array, position: Array) -> Array:
    """The token that prefix int32[B, P] prescribes at position int32[B]; PAD where it prescribes none."""
    P = prefix.shape[1]
    token = jnp.take_along_axis(prefix, jnp.minimum(position, P - 1)[:, None], axis=1)[:, 0]
    return jnp.where(position < P, token, PAD_ID)


def log_prob_of(logits: Array, tokens: Array) -> Array:
    """log softmax(logits[..., V])[tokens]."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def best_continuations(logits: Array, before: Array) -> tuple[Array, Array, Array, Array]:
    """Scores every continuation of hypotheses with log-probability before[B, K] by logits float32[B, K, V].

    Returns: the log-probability [B, K] of each hypothesis followed by EOS; and of the K best other
    continuations, over all K·V, best first: log-probability [B, K], hypothesis int32[B, K] and token
    int32[B, K].

    The K best lie in the K blocks with the largest maxima, so only those are searched: two passes over the
    logits, one for block maxima and one for the normaliser, instead of a sort.
    """
    B, K, V = logits.shape
    size = block_size(V)
    logits = jnp.pad(logits, ((0, 0), (0, 0), (0, -V % size)), constant_values=-jnp.inf)
    V, num_blocks = logits.shape[-1], logits.shape[-1] // size
    blocks = logits.reshape(B, K, num_blocks, size)
    # Else XLA takes the peak from all logits once more.
    maxima = jax.lax.optimization_barrier(blocks.max(axis=-1))
    peak = maxima.max(axis=-1, keepdims=True)
    normaliser = peak[..., 0] + jnp.log(jnp.sum(jnp.exp(logits - peak), axis=-1))
    offset = before - normaliser
    ends = logits[:, :, EOS_ID] + offset

    excluded = np.zeros((num_blocks, size), np.float32)
    excluded.ravel()[[EOS_ID, *NEVER_GENERATED]] = -np.inf
    for i in np.flatnonzero(excluded.min(axis=1)):
        allowed = (blocks[:, :, i] + excluded[i]).max(axis=-1, keepdims=True)
        maxima = jnp.where(np.arange(num_blocks) == i, allowed, maxima)

    _, best = jax.lax.top_k((maxima + offset[..., None]).reshape(B, -1), K)
    inside = jnp.take_along_axis(blocks.reshape(B, -1, size), best[:, :, None], axis=1)
    inside = inside + jnp.asarray(excluded)[best % num_blocks]
    inside = inside + jnp.take_along_axis(offset, best // num_blocks, axis=1)[:, :, None]
    scores, index = jax.lax.top_k(inside.reshape(B, -1), K)
    flat = jnp.take_along_axis(best, index // size, axis=1) * size + index % size
    return ends, scores, flat // V, flat % V


def block_size(vocab_size: int) -> int:
    """Long enough to vectorise, short enough to search: a divisor of the vocabulary near 128, or 128 and
    padding.
    """
    divisors = [size for size in range(64, 257) if vocab_size % size == 0]
    return min(divisors, key=lambda size: abs(size - 128), default=128)


def search(searcher: Search, params: Params, requests: Requests, length: int) -> Hypotheses:
    """Runs a `Search` on one batch until every row has finished: the plain form, for tests and small uses."""
    state = jax.lax.while_loop(
        lambda state: jnp.any(searcher.active(state)),
        lambda state: searcher.step(params, state),
        searcher.start(params, requests, length),
    )
    return searcher.result(state)
