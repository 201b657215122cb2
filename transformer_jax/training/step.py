"""The train state and the one pure step that every family trains with: ``step(state, batch) -> (state, metrics)``."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.data.batches import BatchSpec
from transformer_jax.models.layers import row_seeds
from transformer_jax.sharding import (
    BATCH,
    at_use,
    manual_axes,
    manual_specs,
    parameter_shardings,
    parameter_specs,
    state_shardings,
)
from transformer_jax.training.guard import GuardConfig, GuardState
from transformer_jax.training.losses import Sums
from transformer_jax.training.tasks import Batch, Task

SQUARED_NORM = "squared_norm"


@struct.dataclass
class TrainState:
    """Arrays only. ``ema_params`` is None where no average is kept."""

    step: Array
    params: Any
    opt_state: Any
    ema_params: Any
    guard: GuardState


def abstract_state(task: Task, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int, ema: bool) -> Any:
    """The state's shapes with their shardings, and the function that makes it: ``(shapes, create)``.

    ``create()`` makes the state on the mesh where it will live; no device ever holds what is not its own.
    """
    boxed = parameter_boxes(task)

    def start(params: Any) -> TrainState:
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, GuardState.start())

    shapes = jax.eval_shape(start, nn.unbox(boxed))
    shardings = state_shardings(mesh, shapes, shapes.params, parameter_shardings(mesh, boxed))
    placed = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, shardings)
    # It runs once, so what a CPU's compiler would spend on making it fast is lost.
    once = {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else None
    create = lambda: start(nn.unbox(task.init(jax.random.key(seed))))
    return placed, jax.jit(create, out_shardings=shardings, compiler_options=once)


@functools.lru_cache(maxsize=8)
def parameter_boxes(task: Task) -> Any:
    """The shapes of a task's parameters, boxed with their logical axis names. Tracing a model takes a while: once."""
    return jax.eval_shape(task.init, jax.random.key(0))


def sums_and_gradients(task: Task, mesh: Mesh, accumulation: int) -> Callable[..., tuple[Sums, Any]]:
    """``f(params, batch, seeds) -> (sums, gradients)``, both summed over the global batch; where the gradients are one
    flat array on the way, the sums include its squared norm.

    The axes data and fsdp are explicit: each of their groups computes gradients of its rows, ``accumulation``
    microbatches one after the other. Parameters sharded over fsdp are gathered at their use and their gradients
    scattered back (`sharding.gather`); one all-reduce then adds up the rest. The tensor axis is left to the compiler.
    """
    axes, specs = manual_axes(mesh), parameter_specs(mesh, parameter_boxes(task))
    whole = mesh.shape["fsdp"] == mesh.shape["tensor"] == 1

    def local(params: Any, batch: Batch, seeds: Array) -> tuple[Sums, Any]:
        def one(batch: Batch, seeds: Array) -> tuple[Sums, Any]:
            loss = lambda parts: task.loss(at_use(parts, specs), batch, seeds)
            (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            return sums, gradients

        if accumulation == 1:
            total = one(batch, seeds)
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), (batch, seeds))
            shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            total, _ = jax.lax.scan(lambda t, x: (jax.tree.map(jnp.add, t, one(*x)), None), zeros, parts)
        if not axes:
            return total
        if whole:
            # One all-reduce of one flat array: on a CPU each reduction costs a rendezvous of all device threads.
            flat, unflatten = ravel_pytree(total)
            flat = jax.lax.psum(flat, axes)
            sums, gradients = unflatten(flat)
            return sums | {SQUARED_NORM: jnp.sum(jnp.square(flat[len(sums) :]))}, gradients
        sums, gradients = total
        others = lambda spec: tuple(axis for axis in axes if axis not in spec)
        gradients = jax.tree.map(lambda g, s: jax.lax.psum(g, others(s)) if others(s) else g, gradients, specs)
        return jax.lax.psum(sums, axes), gradients

    return over_rows(mesh, local, specs, (P(), manual_specs(specs)))


def over_rows(mesh: Mesh, local: Callable[..., Any], specs: Any, out_specs: Any) -> Callable[..., Any]:
    """``local(params, batch, seeds)`` as one program of the mesh, in which each device sees its own rows."""
    axes = manual_axes(mesh)
    if not axes:
        return local
    in_specs = (manual_specs(specs), P(axes), P(axes))
    return jax.shard_map(
        local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes), check_vma=False
    )


@dataclass(frozen=True)
class TrainStep:
    """``step(state, batch) -> (state, metrics)`` as two programs: gradients of a batch, and the update they make.

    The update knows no batch shape, so it is compiled once, not once a bucket. The state is donated; every random
    number follows from (seed, step, row of the batch).
    """

    gradients: Any
    update: Any

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        return self.update(state, *self.gradients(state.params, batch, state.step))


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    mesh: Mesh,
    shapes: TrainState,
    *,
    seed: int,
    accumulation: int,
    ema_decay: float,
    guard: GuardConfig,
) -> TrainStep:
    """The jitted step for states like ``shapes`` (`abstract_state`), which stay where they lie.

    Where the guard refuses a step, the state keeps all but its counters.
    """
    gradients_of = sums_and_gradients(task, mesh, accumulation)

    def gradients(params: Any, batch: Batch, step: Array) -> tuple[Sums, Any]:
        rows = jax.tree.leaves(batch)[0].shape[0]
        by_rows = NamedSharding(mesh, BATCH)
        seeds = row_seeds(seed, step, jnp.arange(rows, dtype=jnp.uint32))
        steps = jnp.broadcast_to(step, rows)  # for losses that change as training goes on
        seeds, steps = jax.lax.with_sharding_constraint((seeds, steps), by_rows)
        return gradients_of(params, {**batch, "step": steps}, seeds)

    def update(state: TrainState, sums: Sums, gradients: Any) -> tuple[TrainState, dict[str, Array]]:
        tokens = jnp.maximum(sums["tokens"], 1.0)
        gradients = jax.tree.map(lambda g: g * (1.0 / tokens), gradients)
        sums = dict(sums)
        norm = jnp.sqrt(sums.pop(SQUARED_NORM)) / tokens if SQUARED_NORM in sums else optax.global_norm(gradients)
        good, watched = guard.examine(state.guard, state.step, sums["loss"], norm)
        metrics = {
            **sums,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step - state.guard.skipped),  # the optimizer counts its own steps
            "skipped_steps": watched.skipped,
            "skipped_in_a_row": watched.in_a_row,
        }
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, norm=norm, mesh=mesh, good=good)
        # The barrier keeps XLA from computing them again for the average, which would cost a copy of the old ones.
        params = jax.lax.optimization_barrier(optax.apply_updates(state.params, updates))
        average = state.ema_params
        if average is not None:
            # The warm-up of the decay keeps the random start out of the average.
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            decay = jnp.where(good, decay, 1.0)
            average = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, average, params)
        return TrainState(state.step + 1, params, opt_state, average, watched), metrics

    stay, everywhere = jax.tree.map(lambda s: s.sharding, shapes), NamedSharding(mesh, P())
    return TrainStep(
        jax.jit(gradients, out_shardings=(everywhere, stay.params)),
        jax.jit(update, donate_argnums=0, out_shardings=(stay, everywhere)),
    )


def make_evaluation_step(task: Task, mesh: Mesh) -> Callable[[Any, Batch], Sums]:
    """Jitted ``f(params, batch) -> sums`` over the global batch, without dropout; on every device the same."""
    axes, specs = manual_axes(mesh), parameter_specs(mesh, parameter_boxes(task))

    def local(params: Any, batch: Batch, seeds: None) -> Sums:
        sums = task.loss(at_use(params, specs), batch, seeds)[1]
        return jax.lax.psum(sums, axes) if axes else sums

    run = over_rows(mesh, local, specs, P())
    return jax.jit(lambda params, batch: run(params, batch, None), out_shardings=NamedSharding(mesh, P()))


def abstract_batch(mesh: Mesh, spec: BatchSpec) -> Batch:
    """What a batch of this kind looks like to the compiler."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.ShapeDtypeStruct(*array, sharding=sharding) for name, array in spec.items()}


def batch_kind(batch: Mapping[str, Any]) -> tuple:
    """What tells apart the batches, or abstract batches, that need programs of their own."""
    return tuple((name, batch[name].shape) for name in sorted(batch))
