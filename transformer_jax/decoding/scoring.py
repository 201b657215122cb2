"""Log-probability of given translations: how likely a model finds references, or another system's output."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.decoding.batching import length_groups, pad_tokens
from transformer_jax.decoding.interface import EOS_ID, PAD_ID, Params
from transformer_jax.errors import UserError
from transformer_jax.sharding import BATCH, fetch, place

LogitsFunction = Callable[[Params, Array, Array], Array]
"""``logits(params, source int32[B, S], target int32[B, T]) -> float32[B, T, V]``: position t predicts
target[:, t].
"""


def token_log_probs(logits: Array, target: Array) -> Array:
    """float32[B, T] from logits float32[B, T, V] and target int32[B, T]; 0 on padding."""
    chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jnp.where(target == PAD_ID, 0.0, chosen - jax.nn.logsumexp(logits, axis=-1))


class ContinuationScorer:
    """Scores what a language model reads after a context, in batches of similar length and few shapes."""

    def __init__(self, logits: Callable[[Params, Array], Array], batch_size: int, max_length: int) -> None:
        """``logits(params, inputs int32[B, T]) -> float32[B, T, V]``; ``max_length``: most tokens it reads."""
        self.batch_size, self.max_length = batch_size, max_length
        self._score: Any = jax.jit(lambda params, x, y: token_log_probs(logits(params, x), y))

    def score(
        self, params: Params, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Per pair, float32[len(continuation)]: the natural log-probability of each of its tokens.

        Raises: UserError for an empty context, and for a pair that is longer than the model reads.
        """
        rows = [[*context, *continuation] for context, continuation in zip(contexts, continuations, strict=True)]
        for i, (context, row) in enumerate(zip(contexts, rows, strict=True), 1):
            if not len(context) or len(row) > self.max_length + 1:
                raise UserError(
                    f"scoring: context {i} has {len(context)} tokens and its continuation {len(row) - len(context)}; "
                    f"there must be a context, and together they may have {self.max_length + 1}. Shorten the context."
                )
        scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        for length, members in length_groups([len(row) - 1 for row in rows], self.max_length).items():
            for first in range(0, len(members), self.batch_size):
                chosen = members[first : first + self.batch_size]
                inputs = pad_tokens([rows[i][:-1] for i in chosen], self.batch_size, length)
                targets = pad_tokens([rows[i][1:] for i in chosen], self.batch_size, length)
                values = np.asarray(self._score(params, inputs, targets))
                for i, row in zip(chosen, values, strict=False):
                    scores[i] = row[len(contexts[i]) - 1 : len(rows[i]) - 1]
        return scores


class Scorer:
    """Scores pairs of token lists under a model, in batches of similar length and few shapes."""

    def __init__(self, logits: LogitsFunction, batch_size: int, max_length: int, mesh: Mesh | None = None) -> None:
        """``max_length``: most tokens of a source or a target, EOS included. ``mesh``: pairs are spread over it, over
        processes too; None for the default device."""
        parts = mesh.shape["data"] * mesh.shape["fsdp"] if mesh is not None else 1
        self.batch_size, self.max_length, self._mesh = batch_size + -batch_size % parts, max_length, mesh
        self._score: Any = jax.jit(lambda params, s, t: token_log_probs(logits(params, s, t), t))

    def score(
        self, params: Params, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Per pair, float32[len(target) + 1]: natural log-probability of each target token, then of EOS.

        Token lists come without EOS. ``scores[i].sum()`` is log P(target | source).

        Raises: UserError when the lists differ in number, or a side is longer than ``max_length``.
        """
        if len(sources) != len(targets):
            raise UserError(f"scoring: {len(sources)} sources and {len(targets)} targets; give one target a source.")
        pairs = [([*s, EOS_ID], [*t, EOS_ID]) for s, t in zip(sources, targets, strict=True)]
        for i, pair in enumerate(pairs, 1):
            if max(map(len, pair)) > self.max_length:
                raise UserError(
                    f"scoring: pair {i} has {len(pair[0])} source and {len(pair[1])} target tokens; the "
                    f"limit is {self.max_length}. Leave it out, or score with a model of a larger max_length."
                )
        if self._mesh is not None:
            params = place(params, NamedSharding(self._mesh, P()))
        scores: list[np.ndarray] = [np.zeros(0, np.float32)] * len(pairs)
        groups = length_groups([max(len(s), len(t)) for s, t in pairs], self.max_length)
        for length, members in groups.items():
            for first in range(0, len(members), self.batch_size):
                chosen = members[first : first + self.batch_size]
                source = pad_tokens([pairs[i][0] for i in chosen], self.batch_size, length)
                target = pad_tokens([pairs[i][1] for i in chosen], self.batch_size, length)
                if self._mesh is not None:
                    source, target = place((source, target), NamedSharding(self._mesh, BATCH))
                values = fetch(self._score(params, source, target))
                for i, row in zip(chosen, values, strict=False):
                    scores[i] = row[: len(pairs[i][1])]
        return scores
