"""The guard of a run: which updates are taken, and when a run goes back instead of on.

A step whose loss or gradients are not finite, or whose gradients explode, moves nothing: that is decided on the
device, in the update itself, so the host never waits for it. The host reads the counts with the other metrics, a step
late. After ``rollback_after`` such steps in a row the device takes no update at all, until the host has noticed.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from transformer_jax.errors import UserError

WARMUP = 100
"""Accepted steps before a norm can be judged by the average of those before it."""
DECAY = 0.98
"""Of that average: it looks back some fifty steps."""


@struct.dataclass
class GuardState:
    """What the device remembers between steps; scalars."""

    average_norm: Array  # float32: running mean of the gradient norms of accepted steps
    skipped: Array  # int32: steps skipped so far
    in_a_row: Array  # int32: of these, the ones since the last accepted step

    @classmethod
    def start(cls) -> "GuardState":
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


@dataclass(frozen=True)
class GuardConfig:
    """When an update is skipped, a run rolled back, and a step repeated as a check."""

    explosion_factor: float  # gradients with a norm this many times the running mean are skipped; 0: any finite norm
    rollback_after: int  # skipped steps in a row after which the run goes back to its last good checkpoint
    max_rollbacks: int  # of a whole run; the next one stops it
    replay_every_steps: int  # a step run twice must agree bit for bit; 0: never

    def __post_init__(self) -> None:
        if self.explosion_factor and self.explosion_factor <= 1:
            raise UserError(
                f"guard.explosion_factor is {self.explosion_factor}; it must be above 1, or 0 to skip only what is "
                "not finite."
            )
        for name, least in (("rollback_after", 1), ("max_rollbacks", 0), ("replay_every_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(f"guard.{name} is {getattr(self, name)}; it must be at least {least}.")

    def examine(self, guard: GuardState, step: Array, loss: Array, norm: Array) -> tuple[Array, GuardState]:
        """Whether a step's update is to be taken (bool[]), and what is remembered of it.

        Args:
          step: int32[], steps made before this one.
          loss: float32[], of this step.
          norm: float32[], the global norm of its gradients before clipping.
        """
        accepted = step - guard.skipped
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & (guard.in_a_row < self.rollback_after)
        if self.explosion_factor:
            good &= (accepted < WARMUP) | (norm <= self.explosion_factor * guard.average_norm)
        # Early on the plain mean, so that the first step does not count for more than the others.
        weight = jnp.maximum(1.0 - DECAY, 1.0 / (accepted + 1.0))
        moved = guard.average_norm + weight * (norm - guard.average_norm)
        bad = 1 - good.astype(jnp.int32)
        return good, GuardState(
            jnp.where(good, moved, guard.average_norm), guard.skipped + bad, bad * (guard.in_a_row + 1)
        )


def differing(a: Any, b: Any) -> Any:
    """For each array of two like trees, the number of elements that differ in a bit (int32[]). NaN equals itself."""

    def one(x: Array, y: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            bits = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
            x, y = (jax.lax.bitcast_convert_type(z, bits) for z in (x, y))
        return jnp.sum(x != y, dtype=jnp.int32)

    return jax.tree.map(one, a, b)
