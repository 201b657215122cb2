"""Where a training step's time goes, by module: a trace of real steps, read by the names that modules give their
operations.
"""

import itertools
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from transformer_jax.analysis.tables import Table
from transformer_jax.data.batches import ArraySpec, BatchSpec
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.sharding import make_mesh, place_batch
from transformer_jax.training.loop import check_rows, compile_shapes
from transformer_jax.training.program import make_program
from transformer_jax.training.step import TrainStep, batch_kind

WARM_STEPS = 3
OUTSIDE = "outside the network"  # the loss after the last layer, seeds of dropout, sums over batches
UPDATE = "update"

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = \S.*? ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_MODULE = re.compile(r"HloModule ([\w.\-]+)")
_CONTAINERS = {"while", "call", "conditional"}  # their time is that of what they run
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_TRANSFORMED = re.compile(r"(?:jvp|transpose|vmap|checkpoint|remat\w*)\((.*)\)")
_CONTROL = re.compile(
    r"(?:p?jit|custom_\w+|closed_call)\b.*|shard_map|while|body|cond|branch_\w+|rematted_computation|"
)


@dataclass(frozen=True)
class Operation:
    """One instruction of a compiled program.

    Attributes:
      module: path of the module it is due to, layers of a stack as one: "encoder/layer/self_attention".
      phase: "forward", "backward" or "update".
      kind: "matrix products", "collectives", "copies" or "the rest".
    """

    module: str
    phase: str
    kind: str


@dataclass(frozen=True)
class Profile:
    """Seconds of a mean step.

    Attributes:
      step: by the clock.
      busy: of each kind of operation, averaged over devices. On an accelerator with several streams, and on a CPU
        whose operations are spread over threads, operations overlap, and the sum can exceed ``step``.
      devices: how many took part.
    """

    step: float
    busy: dict[Operation, float]
    devices: int

    def by(self, *fields: str) -> dict[tuple[str, ...], float]:
        """Busy seconds summed over all that agrees in the fields, the largest first."""
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for operation, seconds in self.busy.items():
            sums[tuple(getattr(operation, field) for field in fields)] += seconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def operations(hlo: str) -> Iterator[tuple[tuple[str, str], Operation]]:
    """((program, instruction), what it is) of every instruction of a compiled program's text."""
    named = _MODULE.match(hlo)
    program = named[1] if named else ""
    for instruction, opcode, rest in _INSTRUCTION.findall(hlo):
        if opcode in _CONTAINERS:
            continue
        found = _OP_NAME.search(rest)
        yield (program, instruction), operation(program, opcode, found[1] if found else "")


def operation(program: str, opcode: str, path: str) -> Operation:
    """What an instruction is, by its program, its opcode, and the path of names that tracing gave it."""
    *parts, primitive = path.split("/")
    modules: list[str] = []
    methods: list[str] = []
    for part in parts:
        while wrapped := _TRANSFORMED.fullmatch(part):
            part = wrapped[1]
        if _CONTROL.fullmatch(part) or "->" in part:  # the latter names an einsum
            continue
        owner, _, name = part.rpartition(".")
        if owner[:1].isupper():  # a method of the whole network, which has no path
            methods.append(name.lstrip("_"))
        elif not name.startswith("_"):
            modules.append(re.sub(r"^layer_\d+$", "layer", name))
    if opcode.startswith(_COLLECTIVES):
        kind = "collectives"
    elif primitive.startswith("dot_general") or opcode in ("dot", "convolution"):
        kind = "matrix products"
    elif opcode in ("copy", "transpose", "bitcast") or primitive in ("transpose", "copy"):
        kind = "copies"
    else:
        kind = "the rest"
    if "update" in program:
        return Operation(UPDATE, UPDATE, kind)
    where = "/".join(modules or methods[-1:]) or OUTSIDE
    return Operation(where, "backward" if "transpose(" in path else "forward", kind)


def read_trace(folder: Path, known: dict[tuple[str, str], Operation]) -> tuple[dict[Operation, float], int]:
    """Seconds of each operation over all devices in the newest trace below a folder, and how many devices there are."""
    traces = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    if not traces:
        raise UserError(f"{folder}: the profiler has written no trace there.")
    seconds: dict[Operation, float] = defaultdict(float)
    devices: set[tuple[str, Any]] = set()
    planes = list(ProfileData.from_file(str(traces[-1])).planes)
    # Of a GPU the streams alone: what the host says of them, and what is derived from them, would count twice.
    of_devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in of_devices or planes:
        for line in plane.lines:
            if of_devices and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                stats = dict(event.stats)
                found = known.get((str(stats.get("hlo_module")), str(stats.get("hlo_op"))))
                if found is not None:
                    seconds[found] += 1e-9 * event.duration_ns
                    devices.add((plane.name, stats.get("device_ordinal")))
    return dict(seconds), max(1, len(devices))


def profile_training(mapping: Any, steps: int, folder: Path) -> Profile:
    """Traces steps of a config on the commonest kind of its batches, after the programs are compiled and warm.

    Args:
      folder: the trace is left there, for TensorBoard's profile page or Perfetto.
    Raises: UserError as `train` does, and for a trace in which no operation of the step can be found.
    """
    config = parse_config(mapping)
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    experiment = find_family(config.family).prepare(config, None)
    program, batches = make_program(config, experiment.task, mesh), experiment.batches
    kind, chosen = _commonest(batches.iterator(), steps * len(batches.specs))
    # One kind alone: programs for several have the same names, and so have operations in them that differ.
    (step,) = compile_shapes(program.step, program.shapes, mesh, [kind]).values()
    known = dict(_instructions(step))
    state = program.create()

    def run(batches: Iterable[Any]) -> float:
        nonlocal state
        begin = time.monotonic()
        for batch in batches:
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return time.monotonic() - begin

    placed = [place_batch(mesh, chosen[number % len(chosen)]) for number in range(steps)]
    run(placed[:1] * WARM_STEPS + placed)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    options.host_tracer_level = 3  # on a CPU, operations are events of the host
    with jax.profiler.trace(str(folder), profiler_options=options):
        elapsed = run(placed)
    seconds, devices = read_trace(folder, known)
    if not seconds:
        raise UserError(f"{folder}: the trace holds no operation of the step; this backend names them otherwise.")
    return Profile(elapsed / steps, {key: value / steps / devices for key, value in seconds.items()}, devices)


def _commonest(iterator: Iterator[Any], count: int) -> tuple[BatchSpec, list[Any]]:
    """Of the next batches, those of the commonest kind, and that kind."""
    kinds: dict[Any, list[Any]] = defaultdict(list)
    for batch in itertools.islice(iterator, count):
        kinds[batch_kind(batch)].append(batch)
    chosen = max(kinds.values(), key=len)
    return {name: ArraySpec(array.shape, str(array.dtype)) for name, array in chosen[0].items()}, chosen


def _instructions(step: TrainStep) -> Iterator[tuple[tuple[str, str], Operation]]:
    for part in (step.gradients, step.update):
        yield from operations(part.as_text())


def as_record(profile: Profile) -> dict[str, Any]:
    """The profile for JSON: seconds of a mean step, by module, phase and kind."""
    parts = [{**asdict(operation), "seconds": seconds} for operation, seconds in profile.busy.items()]
    return {"step_seconds": profile.step, "devices": profile.devices, "parts": parts}


def profile_table(profile: Profile, most: int = 30) -> Table:
    """Milliseconds of a device in a mean step: by module, at most ``most`` of them, then by kind of operation."""
    total = sum(profile.busy.values())
    modules = profile.by("module")
    phases = profile.by("module", "phase")

    def row(name: str, seconds: float, sides: tuple[str, str] = ("", "")) -> list[str]:
        return [name, *sides, f"{1e3 * seconds:.2f}", f"{seconds / total:.1%}"]

    rows = []
    for (module,), seconds in list(modules.items())[:most]:
        forward, backward = (f"{1e3 * phases.get((module, phase), 0.0):.2f}" for phase in ("forward", "backward"))
        rows.append(row(module, seconds, ("", "") if module == UPDATE else (forward, backward)))
    if len(modules) > most:
        rows.append(row(f"{len(modules) - most} others", sum(list(modules.values())[most:])))
    rows += [row(f"of all: {kind}", seconds) for (kind,), seconds in profile.by("kind").items()]
    notes = [f"busy {1e3 * total:.2f} ms, a step by the clock {1e3 * profile.step:.2f} ms"]
    title = f"ms a step, mean of {profile.devices} devices"
    return Table(title, ("module", "forward", "backward", "sum", "share"), rows, notes=notes)
