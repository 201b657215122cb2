"""What surviving costs in a config's training: the guard in every step, and a checkpoint with digests now and then.

Both are measured in pairs, the one with beside the one without, in turn on the same batches, since a machine's speed
drifts by more than what is to be found.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.experiment import parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.sharding import make_mesh, place_batch
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.guard import GuardConfig
from transformer_jax.training.loop import compile_shapes
from transformer_jax.training.program import make_program
from transformer_jax.training.step import TrainStep, batch_kind

Result = dict[str, Any]


class Unguarded(GuardConfig):
    """Takes every update without looking; the compiler then drops the choice."""

    def examine(self, guard: Any, step: Any, loss: Any, norm: Any) -> Any:
        return jnp.bool_(True), guard


def measure(mapping: Any, rounds: int, steps: int) -> Result:
    """Trains a config for 2 * 2 * rounds * steps steps.

    Args:
      rounds: pairs of windows, for the guard and then for the checkpoints.
      steps: in a window.
    Returns: seconds of a step, and the medians over rounds of the shares of step time, with every round's.
    """
    config = parse_config(mapping)
    mesh = make_mesh(config.mesh)
    experiment = find_family(config.family).prepare(config, None)
    program = make_program(config, experiment.task, mesh)

    def compiled(guard: GuardConfig) -> dict[Any, TrainStep]:
        step = make_program(replace(config, guard=guard), experiment.task, mesh).step
        return compile_shapes(step, program.shapes, mesh, experiment.batches.specs)

    guarded, unguarded = compiled(config.guard), compiled(Unguarded(**vars(config.guard)))
    iterator = experiment.batches.iterator()
    window = [next(iterator) for _ in range(steps)]

    def run(programs: dict[Any, TrainStep], save: Callable[[Any], None] | None = None) -> float:
        """Seconds for the window's steps, metrics fetched a step late; saves after the first of them."""
        state, before = program.create(), None
        jax.block_until_ready(state)
        begin = time.monotonic()
        for index, batch in enumerate(window):
            state, metrics = programs[batch_kind(batch)](state, place_batch(mesh, batch))
            if before is not None:
                jax.device_get(before)
            before = metrics
            if index == 0 and save is not None:
                save(state)
        jax.block_until_ready((state, before))
        return time.monotonic() - begin

    run(guarded)
    run(unguarded)
    guard_shares = [
        (with_ - without) / without for with_, without in _pairs(lambda: run(guarded), lambda: run(unguarded), rounds)
    ]
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / "checkpoints") as checkpoints:
        numbers = iter(range(1, 10 * rounds + 10))

        def save(state: Any) -> None:
            checkpoints.save(next(numbers), vars(state), {}, {})

        run(guarded, save)
        checkpoints.wait()

        def with_save() -> float:
            seconds = run(guarded, save)
            begin = time.monotonic()
            checkpoints.wait()  # what a window too short for it left over is its cost too
            return seconds + time.monotonic() - begin

        pairs = _pairs(with_save, lambda: run(guarded), rounds)
    step_seconds = statistics.median(without for _, without in pairs) / steps
    between = config.checkpoints.every_steps * step_seconds
    save_seconds = [with_ - without for with_, without in pairs]
    return {
        "config": config.name,
        "step_seconds": step_seconds,
        "guard_share": {"median": statistics.median(guard_shares), "rounds": guard_shares},
        "save_seconds": {"median": statistics.median(save_seconds), "rounds": save_seconds},
        "save_share": statistics.median(save_seconds) / between,
        "every_steps": config.checkpoints.every_steps,
        "share": statistics.median(guard_shares) + statistics.median(save_seconds) / between,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.shapes)),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }


def format_result(result: Result) -> str:
    percent = lambda values: " ".join(f"{value:+.2%}" for value in values)
    guard, save = result["guard_share"], result["save_seconds"]
    return "\n".join(
        [
            f"step             {1000 * result['step_seconds']:.1f} ms on {result['devices']}",
            f"guard            {guard['median']:+.2%} of step time (rounds: {percent(guard['rounds'])})",
            f"one checkpoint   {save['median']:.2f} s of {result['state_bytes'] / 1e6:.1f} MB, digests included "
            f"(rounds: {' '.join(f'{value:.2f}' for value in save['rounds'])})",
            f"checkpoints      {result['save_share']:+.2%} of step time, one every {result['every_steps']} steps",
            f"together         {result['share']:+.2%}",
        ]
    )


def _pairs(one: Callable[[], float], other: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """(one, other) a round, by turns first."""
    pairs = []
    for index in range(rounds):
        if index % 2:
            second = other()
            pairs.append((one(), second))
        else:
            pairs.append((one(), other()))
    return pairs
