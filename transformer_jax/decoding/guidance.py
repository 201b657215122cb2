"""Classifier-free guidance (Ho and Salimans 2022): a decodable model that is pushed away from what it would do
unasked.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from transformer_jax.decoding.interface import Cache, Decodable, Params


@dataclass(frozen=True)
class Guided:
    """A `Decodable` whose logits are u + scale · (c - u), c those of ``model`` given its source, u those given nothing.

    Attributes:
      scale: 1 is the model itself, more follows the source more closely, at twice the cost.
      nothing: the tokens of an empty source.
    """

    model: Decodable
    scale: float
    nothing: tuple[int, ...]

    def start(self, params: Params, source: Array, beam_size: int, max_length: int) -> Cache:
        nothing = jnp.zeros_like(source).at[:, : len(self.nothing)].set(jnp.asarray(self.nothing, source.dtype))
        return tuple(self.model.start(params, given, beam_size, max_length) for given in (source, nothing))

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        (asked, first), (unasked, second) = (self.model.step(params, part, tokens) for part in cache)
        return unasked + self.scale * (asked - unasked), (first, second)

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        return tuple(self.model.reorder(part, parents) for part in cache)
