"""Decoding many sentences at full speed: few compiled shapes, and finished sentences make room for waiting
ones.

The whole queue of sentences is handed to the device at once. A fixed number of rows search in step; when
enough of them have finished, their results are put aside and the next sentences take their places, without
the host. With several devices each runs such a loop on its share of the sentences and never waits for the
others.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.decoding.beam import BeamSearch
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.interface import (
    EOS_ID,
    NEVER_GENERATED,
    Decodable,
    Hypotheses,
    Params,
    Requests,
    Search,
    replace_rows,
)
from transformer_jax.decoding.sampling import Sampling
from transformer_jax.errors import UserError
from transformer_jax.sharding import fetch, place

QUEUE_BATCHES = 8
"""Sentences handed over in one call, in batches. More means less idling at the end of each call, later
output.
"""

SPARE = 4
"""Tokens that an output may have beyond the length of its source before it is set aside for longer ones."""

REFILL_FRACTION = 8
"""Rows wait until one in so many are free, so that encoding and filling in are worth their fixed cost."""

FEW = 8
"""Fewer rows than this on a device have all the slots at once: a step costs the same, and nothing is searched again."""

LEAST_TAIL = 4
"""Once nobody waits and half of the rows have finished, the others go on in a batch of their own; not one of fewer rows
than this, which would not be worth compiling the step for.
"""


@dataclass(frozen=True)
class Hypothesis:
    """One output: tokens without EOS, the score it was ranked by, and its natural log-probability, EOS
    included.
    """

    tokens: list[int]
    score: float
    log_prob: float


def pad_tokens(rows: Sequence[Sequence[int]], num_rows: int, length: int) -> np.ndarray:
    """int32[num_rows, length] with the rows first, zeros elsewhere."""
    padded = np.zeros((num_rows, length), np.int32)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def length_groups(lengths: Iterable[int], limit: int) -> dict[int, list[int]]:
    """Indices by padded length: 16, 32, 64 … up to the limit, so at most log2(limit / 16) + 2 different ones.

    Each group is ordered from long to short, so that the last to be decoded are the quickest.
    """
    groups: dict[int, list[int]] = {}
    for index, length in sorted(enumerate(lengths), key=lambda item: (-item[1], item[0])):
        groups.setdefault(min(limit, max(16, 1 << (length - 1).bit_length())), []).append(index)
    return groups


def drain(
    search: Search,
    params: Params,
    queue: Requests,
    count: Array,
    num_rows: int,
    length: int,
    num_slots: int | None,
) -> Hypotheses:
    """Decodes the first count[0] sentences of a queue of Q; pure and jittable.

    Args:
      queue: Q requests. The order is the order of decoding.
      count: int32[1].
      num_rows: sentences that search at a time.
      length: tokens an output may have.
      num_slots: as for `Search.start`.
    Returns: hypotheses with leading axis Q.
    """
    R, Q, total = num_rows, queue.seed.shape[0], count[0]
    refill = max(1, R // REFILL_FRACTION)
    tail = R // 2 if R >= 2 * LEAST_TAIL else 0

    def take(first: Array) -> tuple[Array, Any]:
        index = first + jnp.arange(refill, dtype=jnp.int32)
        chosen = jax.tree.map(lambda leaf: leaf[jnp.minimum(index, Q - 1)], queue)
        return jnp.where(index < total, index, Q), search.start(params, chosen, length, num_slots)

    def running(state: Any, owner: Array) -> Array:
        return search.active(state) & (owner < Q)

    def fill(carry: tuple) -> tuple:
        state, owner, head, results = carry
        free = ~running(state, owner)
        results = store(state, owner, results)
        taken, fresh = take(head)
        # Free rows first; those not needed, or not free, are given a row number that does not exist.
        rows = jnp.argsort(~free, stable=True)[:refill].astype(jnp.int32)
        rows = jnp.where(free[rows] & (taken < Q), rows, R)
        owner = jnp.where(free, Q, owner).at[rows].set(taken, mode="drop")
        return replace_rows(state, fresh, rows), owner, head + refill, results

    def advance(carry: tuple) -> tuple:
        state, owner, head, results = carry

        def go_on(state: Any) -> Array:
            busy = jnp.sum(running(state, owner))
            return jnp.where(head < total, (busy > 0) & (R - busy < refill), busy > tail)

        state = jax.lax.while_loop(go_on, lambda state: search.step(params, state), state)
        return state, owner, head, results

    def store(state: Any, owner: Array, results: Hypotheses) -> Hypotheses:
        return jax.tree.map(lambda kept, new: kept.at[owner].set(new, mode="drop"), results, search.result(state))

    def more(carry: tuple) -> Array:
        state, owner, head, _ = carry
        return (head < total) | (jnp.sum(running(state, owner)) > tail)

    first = jax.tree.map(lambda leaf: leaf[jnp.zeros(R, jnp.int32)], queue)
    shapes = jax.eval_shape(lambda params, first: search.start(params, first, length, num_slots), params, first)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    N = search.num_hypotheses
    nothing = jnp.full((Q, N), -jnp.inf)
    results = Hypotheses(jnp.zeros((Q, N, length), jnp.int32), nothing, nothing, jnp.zeros(Q, bool))
    carry = (empty, jnp.full(R, Q, jnp.int32), jnp.zeros((), jnp.int32), results)
    state, owner, _, results = jax.lax.while_loop(more, lambda carry: advance(fill(carry)), carry)
    if tail:
        results = store(state, owner, results)
        last = jnp.argsort(~running(state, owner), stable=True)[:tail]
        state, owner = jax.tree.map(lambda leaf: leaf[last], (state, owner))
        state = jax.lax.while_loop(
            lambda state: jnp.any(running(state, owner)), lambda state: search.step(params, state), state
        )
    return store(state, owner, results)


@partial(jax.jit, static_argnames=("search", "mesh", "axes", "num_rows", "length", "num_slots"))
def drain_on_mesh(
    search: Search,
    params: Params,
    queue: Requests,
    count: Array,
    *,
    mesh: Mesh | None,
    axes: tuple[str, ...],
    num_rows: int,
    length: int,
    num_slots: int | None,
) -> Hypotheses:
    """`drain` of each device's part of the queue, on that device; count int32[devices], num_rows on each."""
    run = partial(drain, search, num_rows=num_rows, length=length, num_slots=num_slots)
    if not axes:
        return run(params, queue, count)
    specs = {"in_specs": (P(), P(axes), P(axes)), "out_specs": P(axes)}
    return jax.shard_map(run, mesh=mesh, axis_names=set(axes), check_vma=False, **specs)(params, queue, count)


def make_search(model: Decodable, config: DecodingConfig) -> Search:
    """The search that the configuration names."""
    if config.method == "sample":
        return Sampling(model, config.sampling, config.num_hypotheses, config.min_length)
    greedy = config.method == "greedy"
    return BeamSearch(
        model,
        beam_size=1 if greedy else config.beam_size,
        num_hypotheses=config.num_hypotheses,
        length_penalty=0.0 if greedy else config.length_penalty,
        coverage_penalty=0.0 if greedy else config.coverage_penalty,
        min_length=config.min_length,
        patience=config.patience,
    )


@cache
def _gathering(everywhere: NamedSharding) -> Any:
    """One function for one mesh, so that the parameters of every evaluation are put together by the same program."""
    return jax.jit(lambda params: params, out_shardings=everywhere)


class Decoder:
    """Token lists in, hypotheses out, in the same order. Compiled functions outlive it.

    Args:
      mesh: sentences are spread over all its devices, of all processes, which call `decode` with the same sentences
        and are all given every result. Each device searches alone with whole parameters: searches end when they
        end, and what devices send each other would make all wait for the slowest. None for the default device.
    """

    def __init__(self, model: Decodable, config: DecodingConfig, mesh: Mesh | None = None) -> None:
        self.config, self.search, self.mesh = config, make_search(model, config), mesh
        self._axes = tuple(axis for axis in mesh.shape if mesh.shape[axis] > 1) if mesh is not None else ()
        self.num_devices = mesh.size if mesh is not None else 1
        if config.batch_size % self.num_devices:
            raise UserError(
                f"decoding.batch_size is {config.batch_size}, which {self.num_devices} devices cannot share "
                f"equally; use a multiple of {self.num_devices}."
            )
        self.shapes: set[tuple[int, ...]] = set()

    def place(self, params: Params) -> Params:
        """Parameters whole on every device that decodes, put together there if they lie in parts."""
        if self.mesh is None:
            return params
        leaves, devices = jax.tree.leaves(params), set(self.mesh.devices.flat)
        everywhere = NamedSharding(self.mesh, P())
        if not all(isinstance(leaf, Array) and leaf.sharding.device_set == devices for leaf in leaves):
            return place(params, everywhere)
        if all(leaf.is_fully_replicated for leaf in leaves):
            return params
        return _gathering(everywhere)(params)

    def decode(
        self,
        params: Params,
        sources: Sequence[Sequence[int]],
        prefixes: Sequence[Sequence[int]] | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """What is found for each source, best first (fewer where fewer exist): the n best, or candidates for reranking.

        Args:
          sources: tokens without EOS.
          prefixes: tokens that each output must start with; may be empty.
          rows: numbers that samples derive their randomness from; 0, 1, 2 … when None.
        Raises: UserError for a source over ``max_source_length``, and for a prefix that leaves no room or
          contains an end.
        """
        config, params = self.config, self.place(params)
        given = [list(prefix) for prefix in prefixes] if prefixes is not None else [[] for _ in sources]
        numbers = list(rows) if rows is not None else list(range(len(sources)))
        if not len(sources) == len(given) == len(numbers):
            raise UserError(f"decoding: {len(sources)} sources, {len(given)} prefixes, {len(numbers)} rows; one each.")
        ended = [[*source, EOS_ID] for source in sources]
        limits = []
        for i, (source, prefix) in enumerate(zip(ended, given, strict=True), 1):
            if len(source) > config.max_source_length:
                raise UserError(
                    f"decoding: sentence {i} has {len(source)} tokens with its end; "
                    f"decoding.max_source_length is {config.max_source_length}. Split it, or leave it out."
                )
            if len(prefix) >= config.max_target_length or {EOS_ID, *NEVER_GENERATED} & set(prefix):
                raise UserError(
                    f"decoding: the forced prefix of sentence {i} has {len(prefix)} tokens {prefix[:8]};"
                    f" it must be shorter than decoding.max_target_length, {config.max_target_length}, and"
                    " free of special tokens."
                )
            limits.append(max(config.output_limit(len(source)), len(prefix) + 1))

        prefix_length = max(map(len, given), default=0)
        prefix_length = 1 << (prefix_length - 1).bit_length() if prefix_length else 0
        values = list(
            zip(ended, ([limit] for limit in limits), given, ([config.seed, n] for n in numbers), strict=True)
        )
        found: list[list[Hypothesis]] = [[] for _ in sources]

        def search(source_length: int, members: list[int], length: int, num_slots: int | None) -> list[int]:
            """Fills in what is found for some sentences; returns those whose search had too little room."""
            widths = (source_length, 1, prefix_length, 2)
            results = self._search(params, [values[i] for i in members], widths, length, num_slots)
            unfinished = []
            for i, (result, row) in zip(members, results, strict=True):
                found[i] = hypotheses(result, row)
                if not result.finished[row]:
                    unfinished.append(i)
            return unfinished

        # Each step costs in proportion to the room of the whole batch, and most outputs need far less than they may
        # have, as do most beams. So all are tried in little room first, from short sources to long; those that it does
        # not hold join the next longer ones, and the last get all the room there is.
        room = lambda source_length: min(config.max_target_length, config.output_limit(source_length) + prefix_length)
        follows = config.max_length_factor > 0  # else the length of an output has nothing to do with its source's
        spare = SPARE + prefix_length if follows else config.max_target_length
        unfinished: list[int] = []
        for source_length, members in sorted(length_groups(map(len, ended), config.max_source_length).items()):
            little = min(room(source_length), source_length + spare)
            unfinished = search(source_length, members + unfinished, little, self.search.usual_slots(little))
            longest = source_length
        if unfinished:
            search(longest, unfinished, room(longest), None)
        return found

    def _search(
        self, params: Params, sentences: Sequence[tuple], widths: tuple[int, ...], length: int, num_slots: int | None
    ) -> Iterator[tuple[Hypotheses, int]]:
        """Yields for each sentence the result of its queue, and its place there; ``widths`` are those of `Requests`."""
        num_rows = self.config.batch_size
        while num_rows // 4 >= len(sentences) and num_rows % (4 * self.num_devices) == 0:
            num_rows //= 4
        if num_rows < FEW * self.num_devices:
            num_slots = None
        size = QUEUE_BATCHES * num_rows
        for first in range(0, len(sentences), size):
            chosen = sentences[first : first + size]
            places = self._places(len(chosen), size)
            # Unused places hold an empty sentence; counts keep the devices from decoding them.
            padded = [np.zeros((size, width), np.int32) for width in widths]
            for row, sentence in zip(places, chosen, strict=True):
                for array, value in zip(padded, sentence, strict=True):
                    array[row, : len(value)] = value
            per_device = size // self.num_devices
            count = np.bincount(places // per_device, minlength=self.num_devices).astype(np.int32)
            self._note_shape(num_rows, widths[0], length, widths[2], num_slots or 0)
            queue: Any = Requests(padded[0], padded[1][:, 0], padded[2], padded[3])  # type: ignore[arg-type]
            if self.mesh is not None:
                queue, count = place((queue, count), NamedSharding(self.mesh, P(self._axes)))
            found = drain_on_mesh(
                self.search,
                params,
                queue,
                count,
                mesh=self.mesh,
                axes=self._axes,
                num_rows=num_rows // self.num_devices,
                length=length,
                num_slots=num_slots,
            )
            result = fetch(found)
            yield from ((result, row) for row in places)

    def _places(self, count: int, size: int) -> np.ndarray:
        """Where in a queue of ``size`` each sentence goes: dealt out in turn, so that devices finish
        together.
        """
        turn = np.arange(count)
        return turn % self.num_devices * (size // self.num_devices) + turn // self.num_devices

    def _note_shape(self, *shape: int) -> None:
        if shape not in self.shapes:
            self.shapes.add(shape)
            logging.info(
                "decoding: shape %d: %d rows, %d source tokens, %d target tokens, prefix of %d, %d slots (0: all)",
                len(self.shapes),
                *shape,
            )


def hypotheses(result: Hypotheses, row: int) -> list[Hypothesis]:
    """Row ``row`` of NumPy results as a list, without what does not exist."""
    found = []
    for tokens, score, log_prob in zip(result.tokens[row], result.scores[row], result.log_probs[row], strict=True):
        if score > -math.inf:
            length = int(np.argmax(tokens == EOS_ID)) if EOS_ID in tokens else int(np.count_nonzero(tokens))
            found.append(Hypothesis(tokens[:length].tolist(), float(score), float(log_prob)))
    return found
