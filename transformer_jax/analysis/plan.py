"""What a training run would be, found out without training it: sizes, memory, arithmetic, placement, time."""

import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax.analysis.flops import model_flops
from transformer_jax.analysis.memory import shard_bytes, step_memory
from transformer_jax.analysis.targets import target_devices, target_memory
from transformer_jax.data.batches import START, Batches
from transformer_jax.distributed import main_first
from transformer_jax.experiment import RunConfig, parse_config, plain
from transformer_jax.families.registry import find_family
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import BATCH, make_mesh, own_blocks, place_batch
from transformer_jax.training import tracking
from transformer_jax.training.loop import check_rows, compile_shapes, enable_compilation_cache
from transformer_jax.training.program import make_program
from transformer_jax.training.resuming import safe_changes
from transformer_jax.training.saved_steps import SavedSteps
from transformer_jax.training.step import (
    TrainState,
    TrainStep,
    abstract_batch,
    batch_kind,
)

TIMED_STEPS = 3  # of each kind of batch, after one that warms up
SAMPLED_BATCHES = 1000  # of the first epoch, by which the kinds of batches are weighed


@dataclass(frozen=True)
class Shape:
    """One kind of batch, and the step on it.

    Attributes:
      name: the shapes of its arrays.
      share: of the batches of an epoch, 0 to 1.
      matmul_flops: of the step's matrix products, as `model_flops` counts them, over all devices.
      xla_flops: XLA's count for one device, elementwise work included. None where the backend gives none.
      xla_memory: bytes on one device that XLA reserves while the step runs: its arguments, results and temporaries,
        what is donated counted once. None where the backend gives none.
      seconds: median of timed steps; None if none were timed.
      tokens: that count in the loss of the batch that was timed, without padding; None likewise.
    """

    name: str
    share: float
    matmul_flops: float
    xla_flops: float | None
    xla_memory: int | None
    seconds: float | None
    tokens: float | None


@dataclass(frozen=True)
class Plan:
    """Everything `format_plan` shows.

    Attributes:
      workdir: what `train` would do there.
      data: what the family tells of its data.
      epoch_batches: of the first epoch.
      modules: parameters by module, in the order of the tree.
      state_bytes: of each part of the train state, and of the gradients, over all devices, by formula.
      device_bytes: of the train state on the device that holds most of it, by formula.
      device_room: bytes that a device has; None where it does not tell.
      placements: (PartitionSpec, arrays, parameters) of the model's parameters.
      timing: where the time per step is from, or why there is none.
    """

    config: dict[str, Any]
    workdir: str
    devices: str
    mesh: dict[str, int]
    data: str
    epoch_batches: int
    modules: list[tuple[str, int]]
    state_bytes: dict[str, int]
    device_bytes: int
    device_room: int | None
    placements: list[tuple[str, int, int]]
    batch_placement: str
    shapes: list[Shape]
    compile_seconds: float
    remaining_steps: int
    timing: str

    @property
    def parameters(self) -> int:
        return sum(count for _, count in self.modules)

    @property
    def step_seconds(self) -> float | None:
        """Mean over an epoch's batches; None if steps were not timed."""
        return self._mean([shape.seconds for shape in self.shapes])

    @property
    def step_tokens(self) -> float | None:
        """Likewise."""
        return self._mean([shape.tokens for shape in self.shapes])

    @property
    def step_flops(self) -> float:
        """Mean over an epoch's batches, as `Shape.matmul_flops`."""
        return self._mean([shape.matmul_flops for shape in self.shapes]) or 0.0

    def _mean(self, values: list[Any]) -> float | None:
        used = [(value, shape.share) for value, shape in zip(values, self.shapes, strict=True) if shape.share]
        if any(value is None for value, _ in used):
            return None
        return float(np.average([value for value, _ in used], weights=[share for _, share in used]))


def make_plan(mapping: Any, workdir: str | Path | None, target: str | None = None) -> Plan:
    """Prepares the data, compiles the step for every batch shape, and times a few steps from the initial weights.

    Nothing is written but the caches of data and compiled programs; ``workdir`` is only looked at.

    Args: target: devices that are not here, as for `target_devices`, to compile for and time nothing on.
    Raises: UserError for whatever `train` would refuse, and as `target_devices` does.
    """
    config = parse_config(mapping)
    tracking.check_installed(config.tracking)
    mesh = make_mesh(config.mesh, target_devices(target) if target else None)
    check_rows(config, mesh)
    there, done = look_at(workdir, config, plain(mapping))
    if not target:
        enable_compilation_cache()
    experiment = main_first(lambda: find_family(config.family).prepare(config, None))
    task, batches = experiment.task, experiment.batches
    program = make_program(config, task, mesh)
    shapes, create, step = program.shapes, program.create, program.step
    begin = time.monotonic()
    compiled = compile_shapes(step, shapes, mesh, batches.specs)
    compile_seconds = time.monotonic() - begin
    kinds = [abstract_batch(mesh, spec) for spec in batches.specs]
    memory = {batch_kind(kind): step_memory(compiled[batch_kind(kind)], shapes) for kind in kinds}
    examples, counts = _sample(batches, mesh)
    room = target_memory(target) if target else _memory_of_a_device()
    needed, times = max((m or 0 for m in memory.values()), default=0), dict[Any, tuple[float, float]]()
    if room is not None and needed > room:
        timing = f"not estimated: a step needs {needed / 2**30:.1f} GiB on a device that has {room / 2**30:.1f} GiB"
    elif target:
        timing = "not estimated: compiled for devices that are not here"
    else:
        times = _time_steps(compiled, create, mesh, examples)
        timing = f"from {TIMED_STEPS} timed steps of each kind of batch, without evaluating, saving and compiling"
    described = []
    for kind in kinds:
        key = batch_kind(kind)
        seconds, tokens = times.get(key, (None, None))
        share = 1.0 if tokens is None else tokens / math.prod(kind[batches.counted].shape)
        described.append(
            Shape(
                name=", ".join(f"{name} {' x '.join(map(str, leaf.shape))}" for name, leaf in kind.items()),
                share=counts[key] / counts.total(),
                matmul_flops=model_flops(config, task, mesh, kind, share),
                xla_flops=_xla_flops(compiled[key]),
                xla_memory=memory[key],
                seconds=seconds,
                tokens=tokens,
            )
        )
    return Plan(
        config=plain(mapping),
        workdir=there,
        devices=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        mesh=dict(mesh.shape),
        data=batches.describe(),
        epoch_batches=len(batches.epoch(0)),
        modules=_modules(shapes.params),
        state_bytes=_state_bytes(shapes),
        device_bytes=sum(shard_bytes(leaf) for leaf in jax.tree.leaves(shapes)),
        device_room=room,
        placements=_placements(shapes.params),
        batch_placement=", ".join(np.ravel(BATCH[0]).tolist()),
        shapes=described,
        compile_seconds=compile_seconds,
        remaining_steps=max(config.training.total_steps - done, 0),
        timing=timing,
    )


def look_at(workdir: str | Path | None, config: RunConfig, mapping: dict[str, Any]) -> tuple[str, int]:
    """What `train` would do with this folder, and the step from which it would go on.

    Raises: UserError where it holds a run of another config, or something that is no run.
    """
    if workdir is None:
        return "none given", 0
    path = Path(workdir).expanduser()
    if not path.exists() or not any(path.iterdir()):
        return f"{path}: a new run", 0
    run = RunDirectory.open(path)
    run.check_same_experiment(mapping, safe_changes(path, config))
    step, held = SavedSteps(run.checkpoints).latest_step() or 0, run.holder()
    now = f"; {held} is at it now, so it could not be started" if held else ""
    return f"{path}: a run of this config, continued from step {step:,}{now}", step


def _sample(batches: Batches, mesh: Mesh) -> tuple[dict[Any, Any], Counter[Any]]:
    """Of the first batches of epoch 0: this process's rows of one of each kind, and how many there are of each."""
    examples: dict[Any, Any] = {}
    counts: Counter[Any] = Counter()
    few = min(len(batches.epoch(0)), SAMPLED_BATCHES)
    blocks, count = own_blocks(mesh)
    for own in itertools.islice(batches.iterator(START, blocks, count), few):
        whole = {name: (len(rows) * count // len(blocks), *rows.shape[1:]) for name, rows in own.items()}
        kind = batch_kind({name: jax.ShapeDtypeStruct(shape, own[name].dtype) for name, shape in whole.items()})
        examples.setdefault(kind, own)
        counts[kind] += 1
    return examples, counts


def _xla_flops(program: TrainStep) -> float | None:
    counts = [(part.cost_analysis() or {}).get("flops") for part in (program.gradients, program.update)]
    return None if None in counts else float(sum(count or 0.0 for count in counts))


def _state_bytes(shapes: TrainState) -> dict[str, int]:
    size = lambda tree: sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    parts = {"parameters": shapes.params, "optimizer": shapes.opt_state, "moving average": shapes.ema_params}
    return {name: size(tree) for name, tree in parts.items()} | {"gradients": size(shapes.params)}


def _modules(params: Any) -> list[tuple[str, int]]:
    """Parameters by the first two parts of their paths: a whole embedding, a whole layer."""
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        name = "/".join(parts[: min(2, len(parts) - 1)])
        counts[name] = counts.get(name, 0) + int(np.prod(leaf.shape))
    return list(counts.items())


def _placements(params: Any) -> list[tuple[str, int, int]]:
    found: dict[str, list[int]] = {}
    for leaf in jax.tree.leaves(params):
        used = [axis if axis and leaf.sharding.mesh.shape[axis] > 1 else None for axis in leaf.sharding.spec]
        name = "(" + ", ".join(axis or "-" for axis in used) + ")" if any(used) else "whole on every device"
        found.setdefault(name, []).append(int(np.prod(leaf.shape)))
    return [(name, len(sizes), sum(sizes)) for name, sizes in found.items()]


def _time_steps(
    compiled: Mapping[Any, TrainStep], create: Any, mesh: Mesh, examples: Mapping[Any, Any]
) -> dict[Any, tuple[float, float]]:
    """Median seconds of a step and its tokens, by kind of batch, on real batches.

    Args: examples: this process's rows.
    """
    state, found = create(), dict[Any, tuple[float, float]]()
    for key, rows in examples.items():
        batch, seconds = place_batch(mesh, rows), []
        for _ in range(1 + TIMED_STEPS):
            begin = time.monotonic()
            state, measured = compiled[key](state, batch)
            jax.block_until_ready(measured)
            seconds.append(time.monotonic() - begin)
        found[key] = float(np.median(seconds[1:])), float(measured["tokens"])
    return found


def _memory_of_a_device() -> int | None:
    """Bytes that a device can hold, where it says so; of a CPU device, its share of the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if jax.local_devices()[0].platform == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return None
