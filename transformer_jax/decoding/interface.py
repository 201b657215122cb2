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

    The cache is a pytree whose every leaf has the leading axis B, so that rows can be gathered without
    knowing it.
    """

    def start(self, params: Params, source: Array, beam_size: int, max_length: int) -> Cache:
        """The cache before the first token, for source int32[B, S] and room for max_length tokens of K
        beams.
        """

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """Feeds tokens int32[B, K] (BOS first) at the cache's position; returns logits float32[B, K, V],
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
class RefillableDecodable(Decodable, Protocol):
    """A `Decodable` whose rows may stand at different positions, so that a finished one can make room for
    another.
    """

    def refill(self, cache: Cache, fresh: Cache, rows: Array) -> Cache:
        """The cache in which row rows[i] is row i of ``fresh``, at its first token; rows beyond the last are
        dropped.

        ``rows`` is int32[r]; ``fresh`` has r rows.
        """


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

    @property
    def can_refill(self) -> bool:
        """Whether rows of one state may stand at different positions."""

    def start(self, params: Params, requests: Requests, length: int) -> Any:
        """The state before the first token, with room for ``length`` tokens a hypothesis.

        A request may allow more than that; the search of a row that uses up the room then stops unfinished.
        """

    def step(self, params: Params, state: Any) -> Any:
        """The state one token later; the result of a finished row stays as it is."""

    def active(self, state: Any) -> Array:
        """bool[B]: the rows whose result another step can still change, and that have room for one."""

    def result(self, state: Any) -> Hypotheses:
        """What has been found."""

    def refill(self, state: Any, fresh: Any, rows: Array) -> Any:
        """The state in which row rows[i] is row i of ``fresh``; rows beyond the last are dropped."""


def replace_rows(tree: Any, fresh: Any, rows: Array) -> Any:
    """Every leaf with its row rows[i] replaced by row i of ``fresh``; rows beyond the last are dropped."""
    return jax.tree.map(lambda leaf, new: leaf.at[rows].set(new, mode="drop"), tree, fresh)


def replace_state(model: Decodable, state: Any, fresh: Any, rows: Array) -> Any:
    """`Search.refill` for a state that is a NamedTuple with a field ``cache``."""
    if isinstance(model, RefillableDecodable):
        cache = model.refill(state.cache, fresh.cache, rows)
    else:
        cache = replace_rows(state.cache, fresh.cache, rows)
    rest = replace_rows(state._replace(cache=None), fresh._replace(cache=None), rows)
    return rest._replace(cache=cache)
