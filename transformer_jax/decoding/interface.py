"""What decoding asks of a model and what it gives back: the seam between networks and search.

Notation: B sentences, S source length, K beams (or samples), N hypotheses kept, T target length, V
vocabulary.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax import Array

Params = Any
Cache = Any

PAD_ID, EOS_ID, UNK_ID, BOS_ID = 0, 1, 2, 3
NEVER_GENERATED = (PAD_ID, UNK_ID, BOS_ID)
"""Tokens that no search may choose. Scores stay those of the whole distribution: nothing is renormalised."""


class Decodable(Protocol):
    """A model that can be decoded one token at a time; all three are pure and jittable.

    The cache is a pytree whose every leaf has the leading axis B, so that rows can be gathered, and a finished one
    replaced by another, without knowing it: each row stands at a position of its own.
    """

    def start(self, params: Params, source: Array, beam_size: int, max_length: int) -> Cache:
        """The cache before the first token, for source int32[B, S] and room for max_length tokens of K
        beams.
        """

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """Feeds tokens int32[B, K] (BOS first) at each row's position; returns logits float32[B, K, V],
        cache.
        """

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        """The cache in which beam k continues beam parents[b, k], int32[B, K]."""


@runtime_checkable
class AttendingDecodable(Decodable, Protocol):
    """A `Decodable` that can also say where it looked, which the coverage penalty needs."""

    def step_with_attention(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache, Array]:
        """As `step`, and attention float32[B, K, S] over source positions, each row of which sums to one."""


@runtime_checkable
class SharingDecodable(Decodable, Protocol):
    """A `Decodable` whose beams share slots for what they have in common, so that a search may be started with fewer
    than each beam could fill.
    """

    def start(
        self, params: Params, source: Array, beam_size: int, max_length: int, num_slots: int | None = None
    ) -> Cache:
        """As `Decodable.start`, with ``num_slots`` for the tokens of all beams of a row; None: K · max_length."""

    def has_room(self, cache: Cache) -> Array:
        """bool[B]: whether there are slots for one more token of every beam."""


class Hypotheses(NamedTuple):
    """What a search found for each sentence, best first (samples: in order of drawing).

    ``tokens`` int32[B, N, T]: ended by EOS, then zeros. ``scores`` float32[B, N]: what the search ranked by;
    -inf where there are fewer than N. ``log_probs`` float32[B, N]: natural log-probability, EOS included.
    ``finished`` bool[B]: the search has ended by its own rules; where not, it needs more room than it was given.
    """

    tokens: Array
    scores: Array
    log_probs: Array
    finished: Array


class Requests(NamedTuple):
    """Sentences to decode, one a row.

    ``source`` int32[B, S]: right-padded, ended by EOS. ``max_length`` int32[B]: most tokens to generate, EOS
    included. ``prefix`` int32[B, P]: what the output must start with, zero-padded; P may be 0. ``seed``
    int32[B, 2]: what samples derive their randomness from.
    """

    source: Array
    max_length: Array
    prefix: Array
    seed: Array


class Search(Protocol):
    """A way of generating, as pure functions of a state whose every leaf has the leading axis B."""

    @property
    def num_hypotheses(self) -> int:
        """N: how many hypotheses a sentence has in the result."""

    def usual_slots(self, length: int) -> int | None:
        """How many slots nearly all rows can do with for outputs of ``length`` tokens; None for what any needs."""

    def start(self, params: Params, requests: Requests, length: int, num_slots: int | None = None) -> Any:
        """The state before the first token, with room for ``length`` tokens a hypothesis, and for
        ``num_slots`` in all; None for what any row needs.

        A request may allow more than that; the search of a row that uses up the room then stops unfinished.
        """

    def step(self, params: Params, state: Any) -> Any:
        """The state one token later; the result of a finished row stays as it is."""

    def active(self, state: Any) -> Array:
        """bool[B]: the rows whose result another step can still change, and that have room for one."""

    def result(self, state: Any) -> Hypotheses:
        """What has been found."""


def start_cache(
    model: Decodable, params: Params, source: Array, beam_size: int, max_length: int, num_slots: int | None
) -> Cache:
    """`Decodable.start`, with ``num_slots`` if the model's beams share slots."""
    if isinstance(model, SharingDecodable):
        return model.start(params, source, beam_size, max_length, num_slots)
    return model.start(params, source, beam_size, max_length)


def replace_rows(tree: Any, fresh: Any, rows: Array) -> Any:
    """Every leaf with its row rows[i] replaced by row i of ``fresh``; rows beyond the last are dropped."""
    return jax.tree.map(lambda leaf, new: leaf.at[rows].set(new, mode="drop"), tree, fresh)
