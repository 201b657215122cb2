"""Several models that decode as one: their probabilities are averaged token by token."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.decoding.interface import Cache, Decodable, Params, SharingDecodable, start_cache


def mean_log_probs(logits: Sequence[Array]) -> Array:
    """log of the mean of the distributions softmax(logits[m]), each float32[..., V].

    Elementwise over the models, so that one loop does it all: stacked, they take three times as long on a CPU.
    """
    logs = [jax.nn.log_softmax(one) for one in logits]
    largest = functools.reduce(jnp.maximum, logs)
    finite = jnp.maximum(largest, jnp.finfo(largest.dtype).min)  # where all are -inf, their mean is
    return finite + jnp.log(sum(jnp.exp(one - finite) for one in logs) / len(logs))


@dataclass(frozen=True)
class EnsembleDecoder:
    """A `SharingDecodable` of models with one vocabulary; parameters and caches are tuples, one for each.

    Its logits are log 1/M Σ_m p_m(y | y_<, x), in natural logarithms: a mixture at every token.
    """

    models: tuple[Decodable, ...]

    def start(
        self, params: Params, source: Array, beam_size: int, max_length: int, num_slots: int | None = None
    ) -> Cache:
        return tuple(
            start_cache(model, own, source, beam_size, max_length, num_slots)
            for model, own in zip(self.models, params, strict=True)
        )

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        found = [model.step(own, part, tokens) for model, own, part in zip(self.models, params, cache, strict=True)]
        return mean_log_probs([logits for logits, _ in found]), tuple(part for _, part in found)

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        return tuple(model.reorder(part, parents) for model, part in zip(self.models, cache, strict=True))

    def has_room(self, cache: Cache) -> Array:
        """bool[B]: whether all models that share slots have some for one more token of every beam."""
        enough = jnp.ones(len(jax.tree.leaves(cache)[0]), bool)
        for model, part in zip(self.models, cache, strict=True):
            enough &= model.has_room(part) if isinstance(model, SharingDecodable) else True
        return enough
