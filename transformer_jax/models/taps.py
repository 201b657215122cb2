"""Named points of the networks, where activations can be read and replaced from outside.

A module passes a value through ``value = tap(self, "weights", value)``. Its name is the module's path and the point's,
such as ``encoder/layer_0/self_attention/weights``. Points are read by applying a model with
``mutable=["intermediates"]``, and replaced by a model that has `Interventions`. Otherwise `tap` gives back what it is
given and leaves no trace in the compiled program.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

COLLECTION = "intermediates"
"""Flax's collection of what is sown: taken only when ``apply`` is told that it is mutable."""

Edit = Callable[[Array, str], Array]
"""``edit(value, name)`` gives what takes the place of an activation; pure, of the same shape and dtype."""


class Interventions:
    """What to replace: edits by patterns of names, as `fnmatch` has them, after those of ``after``.

    Where several patterns match a name, their edits follow each other in the order given. Two objects are never equal,
    so programs that are compiled for one are not used for another.
    """

    def __init__(self, edits: Mapping[str, Edit], after: "Interventions | None" = None) -> None:
        before = after.edits if after is not None else ()
        self.edits: tuple[tuple[str, Edit], ...] = (*before, *edits.items())

    def __call__(self, name: str, value: Array) -> Array:
        """The value, edited. Raises: ValueError when an edit changes its shape or dtype."""
        for pattern, edit in self.edits:
            if fnmatchcase(name, pattern):
                edited = edit(value, name)
                if edited.shape != value.shape or edited.dtype != value.dtype:
                    raise ValueError(
                        f"interventions: {name} is {value.dtype}{list(value.shape)}, but the edit for {pattern!r} "
                        f"gives {edited.dtype}{list(edited.shape)}; it must keep both."
                    )
                value = edited
        return value


_ACTIVE: ContextVar[Interventions | None] = ContextVar("interventions", default=None)


@contextmanager
def _intervening(interventions: Interventions) -> Iterator[None]:
    token = _ACTIVE.set(interventions)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def tap(module: nn.Module, point: str, value: Array) -> Array:
    """A point of the module by which ``value`` passes. Its name must not be that of a submodule.

    Inside a lifted ``nn.scan``, reading needs ``variable_axes={"intermediates": 0}``, which stacks what the steps saw.
    """
    interventions = _ACTIVE.get()
    if interventions is not None:
        value = interventions("/".join((*module.path, point)), value)
    module.sow(COLLECTION, point, value)
    return value


def edit_step(module: nn.Module, point: str, value: Array, step: Array | int, steps: int) -> Array:
    """What `tap` gives back, for what a recurrence computes at one of its steps; reads nothing.

    Edits are given all steps on the last axis but one, as elsewhere. There value [..., n, X] stands from ``step`` on,
    and zeros elsewhere: what comes later is not known yet.
    """
    interventions = _ACTIVE.get()
    if interventions is None:
        return value
    whole = jnp.zeros((*value.shape[:-2], steps, value.shape[-1]), value.dtype)
    whole = jax.lax.dynamic_update_slice_in_dim(whole, value, step, axis=-2)
    whole = interventions("/".join((*module.path, point)), whole)
    return jax.lax.dynamic_slice_in_dim(whole, step, value.shape[-2], axis=-2)


def tapped(module: nn.Module) -> bool:
    """Whether points of the module may be read or replaced in this pass, so that all of them have to exist."""
    return _ACTIVE.get() is not None or module.is_mutable_collection(COLLECTION)


class Network(nn.Module, kw_only=True):
    """A whole network, whose ``apply`` lets its interventions, if it has any, edit what passes its points.

    ``num_inputs``: with how many arrays int32[B, positions] it is called. ``last_stack``: the stack whose output its
    ``logits`` method reads.
    """

    num_inputs: ClassVar[int] = 1
    last_stack: ClassVar[str] = "decoder"
    interventions: Interventions | None = None

    @nn.nowrap
    def example(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Of what it is called with: two positions of one sentence."""
        return (jax.ShapeDtypeStruct((1, 2), jnp.int32),) * self.num_inputs

    @nn.nowrap
    def apply(self, *args: Any, **kwargs: Any) -> Any:
        if self.interventions is None:
            return super().apply(*args, **kwargs)
        with _intervening(self.interventions):
            return super().apply(*args, **kwargs)
