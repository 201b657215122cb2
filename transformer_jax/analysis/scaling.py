"""Memory and communication of a training step on a mesh: the formulas of docs/scaling.md, and what XLA says of them.

Nothing is run: programs are compiled for devices that need not exist (on a CPU, JAX_NUM_CPU_DEVICES makes as many as
one likes), and their memory analysis and collectives are read.

Notation: D d_model, F d_ff, V vocabulary, E and L encoder and decoder layers; d, f, t sizes of the mesh axes; s and n
source and target positions of a device's rows; w bytes of a number in the compute dtype.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from transformer_jax.data.batches import ArraySpec
from transformer_jax.models.transformer import EncoderDecoder, TransformerConfig
from transformer_jax.sharding import BATCH
from transformer_jax.training.optimizers import OptimizerConfig, make_optimizer
from transformer_jax.training.step import abstract_batch, abstract_state, sums_and_gradients
from transformer_jax.training.tasks import TaskConfig, TranslationTask

FLOAT = 4  # bytes of parameters, moments and gradients
CHUNK = 1024
GATHERS = {"none": 1, "weights": 2, "dots": 2, "full": 2}
"""How often a step gathers a layer's weights, by rematerialisation policy."""
ADAM = OptimizerConfig("adam", "inverse_square_root", 1e-3, 100, 0.2, 0.9, 0.98, 1e-9, 0.0, 0.0)


SIZES = {
    "tiny": (2, 128, 512, 8, 1024),
    "base": (6, 512, 2048, 8, 32768),
    "big": (6, 1024, 4096, 16, 32768),
    "1B": (8, 2048, 8192, 16, 32768),
}
"""Layers in each stack, d_model, d_ff, heads, vocabulary. Base and big: Vaswani et al. 2017, table 3."""


def model(size: str, **changes: Any) -> TransformerConfig:
    """A model of `SIZES`, scanned, with the paper's own choices."""
    layers, d_model, d_ff, heads, vocabulary = SIZES[size]
    sizes = dict(
        source_vocab_size=vocabulary,
        target_vocab_size=vocabulary,
        d_model=d_model,
        d_ff=d_ff,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        scan_layers=True,
        remat="weights",
    )
    return TransformerConfig(**{**sizes, **changes})


@dataclass(frozen=True)
class Rows:
    """The rows of one device along data and fsdp: how many, and their lengths."""

    count: int
    source: int
    target: int


@dataclass(frozen=True)
class Cost:
    """Of one device and step; bytes. ``sent`` by mesh axis, as a ring algorithm sends them."""

    state: int
    gradients: int
    kept: float  # for the backward pass, with the largest of what the loss holds
    sent: dict[str, float]
    flops: float


def parameters(c: TransformerConfig) -> dict[tuple[bool, bool], int]:
    """Numbers of parameters by whether fsdp and tensor split them: weights; biases of d_model, of d_ff; norms."""
    E, L, D, F = c.num_encoder_layers, c.num_decoder_layers, c.d_model, c.d_ff
    return {
        (True, True): c.target_vocab_size * D + E * (4 * D * D + 2 * D * F) + L * (8 * D * D + 2 * D * F),
        (True, False): (E + L) * D,
        (False, True): (E + L) * F,
        (False, False): (2 * E + 3 * L) * 2 * D,
    }


def predict(c: TransformerConfig, d: int, f: int, t: int, rows: Rows) -> Cost:
    """The formulas of docs/scaling.md, for models with the paper's choices, one shared table, and Adam."""
    E, L, D = c.num_encoder_layers, c.num_decoder_layers, c.d_model
    w = np.dtype(c.activation_dtype).itemsize
    counts = parameters(c)
    held = sum(n // (f if fsdp else 1) // (t if tensor else 1) for (fsdp, tensor), n in counts.items())
    s, n = rows.count * rows.source, rows.count * rows.target

    table = c.target_vocab_size * D
    layers = (counts[True, True] - table) / t + counts[True, False]
    once = lambda size, axis: size * (axis - 1) / axis  # an all-gather or a reduce-scatter; an all-reduce is two
    gathered = w * GATHERS[c.remat] * layers + FLOAT * table / t
    scattered = FLOAT * (layers + table / t)
    whole = FLOAT * (counts[False, True] / t + counts[False, False])  # not split over fsdp, so added up over it
    activations = w * D * (E * 4 * s + L * (6 * n + s)) + FLOAT * D * (s + n + 2 * n)
    scores = 2 * FLOAT * rows.count * c.num_heads / t
    encoder = w * s * (4 * D + (4 * D + 2 * c.d_ff) / t) + scores * rows.source**2
    decoder = w * n * (6 * D + (6 * D + 2 * c.d_ff) / t) + w * s * 2 * D / t
    decoder += scores * rows.target * (rows.target + rows.source)
    loss = FLOAT * (2 * CHUNK * c.target_vocab_size / t + 3 * n * D)
    return Cost(
        state=FLOAT * 3 * held,
        gradients=FLOAT * held,
        kept=E * encoder + L * decoder + loss,
        sent={
            "data": 2 * once(FLOAT * held - whole, d) if f > 1 else 2 * once(FLOAT * held, d),
            "fsdp": once(gathered + scattered, f) + (2 * once(whole, f) if d == 1 else 0),
            "data+fsdp": 2 * once(whole, d * f) if d > 1 and f > 1 else 0.0,
            "tensor": 2 * once(activations, t),
        },
        flops=6 * (E * (4 * D * D + 2 * D * c.d_ff) * s + L * ((8 * D * D + 2 * D * c.d_ff) * n) + table * n) / t,
    )


@dataclass(frozen=True)
class Collective:
    """One that a program holds. ``axes``: along which mesh axes, joined by +; ``sent``: bytes of a device each time."""

    kind: str
    axes: str
    sent: float
    times: int


_NAMES = "all-gather|reduce-scatter|all-reduce|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (.*?) ({_NAMES})(?:-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "f64": 8, "s8": 1, "u8": 1, "s64": 8}


def collectives(text: str, mesh: Mesh, unknown_trips: int) -> list[Collective]:
    """What a compiled program (its HLO ``text``) sends.

    Args: unknown_trips: how often loops run whose number of trips depends on data.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if line and not line.startswith((" ", "}")) and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY ").split()[0]
            entry = name if line.startswith("ENTRY") else entry
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    found: Counter[tuple[str, str, float]] = Counter()

    def visit(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                kind, groups = match[2], _groups(line, mesh)
                found[kind, _axes(groups, mesh), _sent(kind, match[1], groups.shape[1])] += times
            trips = times
            if " while(" in line:
                known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                trips *= int(known[1]) if known else unknown_trips
            for called in re.findall(r"(?:body|calls|to_apply|condition)=(%[\w.\-]+)", line):
                visit(called, trips)

    visit(entry, 1)
    return [Collective(*key, times) for key, times in found.items()]


def _sent(kind: str, result: str, group: int) -> float:
    count = lambda dims: math.prod(map(int, filter(None, dims.split(","))))
    size = sum(_BYTES[dtype] * count(dims) for dtype, dims in _ARRAY.findall(result))
    share = (group - 1) / group
    return {"all-gather": share, "reduce-scatter": group * share, "all-reduce": 2 * share}.get(kind, 1.0) * size


def _groups(line: str, mesh: Mesh) -> np.ndarray:
    """The groups of devices that a collective joins, one a row; all devices where none are written."""
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        dims = [int(n) for n in match[3].split(",")]
        ids = np.arange(math.prod(dims)).reshape(dims)
        ids = ids.transpose([int(n) for n in match[4].split(",")]) if match[4] else ids
        return ids.reshape(int(match[1]), int(match[2]))
    if match := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])])
    return np.arange(mesh.size)[None]


def _axes(groups: np.ndarray, mesh: Mesh) -> str:
    places = np.array(np.unravel_index(groups[0], tuple(mesh.shape.values())))
    return "+".join(axis for axis, row in zip(mesh.shape, places, strict=True) if len(set(row)) > 1)


@dataclass(frozen=True)
class Measured:
    """What XLA says of one device: bytes of the state, of what the gradients program gives and needs besides, and
    the collectives of that program."""

    state: int
    gradients: int
    temporary: int
    collectives: list[Collective]

    def sent(self) -> dict[str, float]:
        """Bytes by mesh axes."""
        total: Counter[str] = Counter()
        for one in self.collectives:
            total[one.axes] += one.sent * one.times  # type: ignore[assignment]
        return dict(total)


def measure(c: TransformerConfig, mesh: Mesh, rows: Rows) -> Measured:
    """Compiles the step of a model for a mesh."""
    task = TranslationTask(EncoderDecoder(c), TaskConfig(0.1, "none", 0.0, 0.0, CHUNK))
    optimizer = make_optimizer(ADAM, 1000)
    shapes, _ = abstract_state(task, optimizer, mesh, 0, ema=False)
    whole = rows.count * mesh.shape["data"] * mesh.shape["fsdp"]
    lengths = {"source": rows.source, "target": rows.target}
    batch = abstract_batch(mesh, {side: ArraySpec((whole, length), "int32") for side, length in lengths.items()})
    seeds = jax.ShapeDtypeStruct((whole,), np.uint32, sharding=NamedSharding(mesh, BATCH))
    lies = (shapes.step.sharding, jax.tree.map(lambda leaf: leaf.sharding, shapes.params))
    gradients: Any = jax.jit(sums_and_gradients(task, mesh, 1), out_shardings=lies)
    program = gradients.lower(shapes.params, batch, seeds).compile()
    held = program.memory_analysis()
    trips = -(-rows.count * rows.target // CHUNK)
    return Measured(
        state=sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(shapes)),
        gradients=held.output_size_in_bytes,
        temporary=held.temp_size_in_bytes,
        collectives=collectives(program.as_text(), mesh, trips),
    )


def format_comparison(size: str, mesh: Mesh, rows: Rows) -> str:
    """Formula beside XLA for a terminal; float32, since XLA sends no bfloat16 between CPUs."""
    c = model(size)
    d, f, t = mesh.shape.values()
    cost, found = predict(c, d, f, t, rows), measure(c, mesh, rows)
    sent = found.sent()
    table: list[tuple[str, float, float]] = [
        ("state held", cost.state, found.state),
        ("gradients", cost.gradients, found.gradients),
    ]
    table += [(f"sent over {axis}", cost.sent.get(axis, 0.0), sent.get(axis, 0.0)) for axis in {**cost.sent, **sent}]
    return "\n".join(
        [
            f"{size}: {sum(parameters(c).values()):,} parameters, {dict(mesh.shape)}",
            f"  {'MB of a device':<32} {'formula':>10} {'XLA':>10}",
            *(f"  {name:<32} {want / 1e6:>10,.1f} {got / 1e6:>10,.1f}" for name, want, got in table if want or got),
            f"  {'activations and scratch':<32} {cost.kept / 1e6:>10,.1f} {found.temporary / 1e6:>10,.1f}",
            f"  {'GFLOP computed':<32} {cost.flops / 1e9:>10,.1f}",
        ]
    )
