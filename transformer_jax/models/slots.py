"""The slots of a decoding cache that the beams of a sentence share.

Notation: B sentences, K beams, M slots, G key/value heads.
"""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array


class Slots(NamedTuple):
    """Who sees which slot. Keys and values stay where they were written: beams that change places do not move them.

    What no beam sees any more is free. Beams have most of their history in common, so a sentence needs about as many
    slots as its output has tokens, and some for each beam; K times as many suffice whatever the beams do.

    Attributes:
      seen: bool[B, K, M]: the slots of each beam's history.
      position: int32[B, M]: the position that a slot was written at.
    """

    seen: Array
    position: Array

    @classmethod
    def after(cls, lengths: Array, num_beams: int, num_slots: int) -> Self:
        """Those of K beams that have all read the first lengths int32[B] positions, which lie in the first slots."""
        position = jnp.broadcast_to(jnp.arange(num_slots), (len(lengths), num_slots))
        seen = position < lengths[:, None]
        return cls(jnp.broadcast_to(seen[:, None], (len(lengths), num_beams, num_slots)), position)

    def take(self, position: Array) -> tuple[Self, Array]:
        """Gives every beam a free slot for position int32[B]: the slots after that, and which ones, int32[B, K].

        Where too few are free (`has_room`), the beams that go without are given numbers from M on.
        """
        (_, K, M), rows = self.seen.shape, jnp.arange(len(self.seen))[:, None]
        # Of floats, as XLA sorts integers as a whole.
        left, _ = jax.lax.top_k(jnp.where(self.seen.any(axis=1), 0.0, M - jnp.arange(M, dtype=jnp.float32)), K)
        chosen = jnp.where(left > 0, M - left.astype(jnp.int32), M + jnp.arange(K))
        seen = self.seen | (chosen[:, :, None] == jnp.arange(M))
        written = self.position.at[rows, chosen].set(position[:, None], mode="drop", unique_indices=True)
        return type(self)(seen, written), chosen

    def reorder(self, parents: Array) -> Self:
        """Beam k goes on from beam parents[b, k]."""
        return self._replace(seen=jnp.take_along_axis(self.seen, parents[:, :, None], axis=1))

    def has_room(self) -> Array:
        """bool[B]: whether every beam can be given a slot."""
        return jnp.sum(~self.seen.any(axis=1), axis=1) >= self.seen.shape[1]


def write(keys: Array, values: Array, chosen: Array, new_keys: Array, new_values: Array) -> tuple[Array, Array]:
    """keys [B, G, head_dim, M] and values [B, G, M, head_dim] with what each beam adds, [B, G, K, head_dim], in the
    slots int32[B, K] that were chosen for it; from M on nowhere.

    Keys lie as the product with queries reads them, or XLA copies the whole cache at every step.
    """
    rows = jnp.arange(len(chosen))[:, None]
    by_beam = lambda new: jnp.swapaxes(new, 1, 2)
    keys = keys.at[rows, :, :, chosen].set(by_beam(new_keys), mode="drop", unique_indices=True)
    values = values.at[rows, :, chosen].set(by_beam(new_values), mode="drop", unique_indices=True)
    return keys, values
