"""Bytes that a training step holds on a device, as XLA plans them: nothing is run, and no data is read."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from transformer_jax.analysis.tables import Table
from transformer_jax.analysis.targets import target_devices
from transformer_jax.data.batches import ArraySpec, BatchSpec
from transformer_jax.data.bucketing import make_shape
from transformer_jax.data.packing import ARRAYS
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain
from transformer_jax.families import language_model, masked_lm, translation
from transformer_jax.models.transformer import REMAT_POLICIES
from transformer_jax.sharding import make_mesh
from transformer_jax.training.loop import check_rows, compile_shapes
from transformer_jax.training.program import make_program
from transformer_jax.training.step import TrainState, TrainStep
from transformer_jax.training.tasks import TranslationTask

Result = dict[str, Any]
REMAT = ("none", *REMAT_POLICIES)


def step_memory(program: TrainStep, shapes: TrainState) -> int | None:
    """Bytes on one device: arguments, results and temporaries of the compiled step, what is donated counted once.

    None where the backend does not tell.
    """
    gradients, update = _reserved(program.gradients), _reserved(program.update)
    return None if gradients is None or update is None else max(gradients + _optimizer_bytes(shapes), update)


def _reserved(program: Any) -> int | None:
    """Of one program, less the results that take an argument's place."""
    found = program.memory_analysis()
    if found is None:
        return None
    whole = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return int(whole - found.alias_size_in_bytes)


def _optimizer_bytes(shapes: TrainState) -> int:
    """What lies on a device while gradients are made, though their program does not take it: all but parameters."""
    parts = (shapes.opt_state, shapes.ema_params)
    return sum(shard_bytes(leaf) for leaf in jax.tree.leaves(parts))


def shard_bytes(leaf: Any) -> int:
    """Of an array, or its shape with a sharding: what one device holds."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize


def tabulate_memory(
    mapping: Any,
    vocabularies: Sequence[int],
    lengths: Sequence[int],
    remat: Sequence[str] = REMAT,
    target: str | None = None,
) -> Result:
    """Compiles a config's step for vocabularies at its own length and for lengths at its own vocabulary.

    Each with its logits in chunks of ``task.loss_chunk`` and all at once, and with each policy of ``model.remat``. A
    longer length has fewer rows of the same tokens. Positions reach as far as the length asks.

    Args:
      mapping: the config of a translation, language or masked language model made of Transformer layers.
      target: devices that are not here, as for `target_devices`.
    Returns: "rows", each with its vocabulary, length, "chunk" ("all" the second time), remat, and "bytes" on a device.
    Raises: UserError for another config, and as `train` and `target_devices` do.
    """
    config = parse_config(mapping)
    devices = target_devices(target) if target else jax.devices()
    if "remat" not in getattr(config, "model", {}) or config.family not in FAMILIES:
        raise UserError(
            f"{config.name} has no vocabulary, or no model.remat; memory is tabled for Transformers of the families "
            f"{', '.join(FAMILIES)}."
        )
    for policy in remat:
        if policy not in REMAT:
            raise UserError(f"remat {policy!r} is no policy; known: {', '.join(REMAT)}.")
    batching = config.batching
    own = config.tokenizer.vocab_size, batching.length if hasattr(batching, "length") else batching.max_length
    sizes = dict.fromkeys([*((v, own[1]) for v in vocabularies), *((own[0], length) for length in lengths)])
    points = [
        (vocabulary, length, chunk, policy)
        for vocabulary, length in sizes
        for chunk in (config.task.loss_chunk, "all")
        for policy in remat
    ]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(pool.map(lambda point: _peak(mapping, devices, *point), points))
    names = ("vocabulary", "length", "chunk", "remat", "bytes")
    return {
        "measured": "memory",
        "config": config.name,
        "devices": f"{len(devices)} {devices[0].device_kind}",
        "rows": [dict(zip(names, (*point, size), strict=True)) for point, size in zip(points, found, strict=True)],
    }


def memory_table(result: Result) -> Table:
    """A row for each size, a column for each remat policy with and without chunks; MiB on a device."""
    columns = list(dict.fromkeys((row["remat"], row["chunk"]) for row in result["rows"]))
    sizes = dict.fromkeys((row["vocabulary"], row["length"]) for row in result["rows"])
    found = {(row["vocabulary"], row["length"], row["remat"], row["chunk"]): row["bytes"] for row in result["rows"]}
    rows = []
    for vocabulary, length in sizes:
        cells = [found[vocabulary, length, *column] for column in columns]
        shown = ["-" if size is None else f"{size / 2**20:,.0f}" for size in cells]
        rows.append([f"{vocabulary:,}", f"{length:,}", *shown])
    title = f"{result['config']}: MiB of a training step on one of {result['devices']}, as XLA plans it"
    names = [f"remat {policy}, logits {'at once' if chunk == 'all' else f'by {chunk}'}" for policy, chunk in columns]
    return Table(title, ["vocabulary", "length", *names], rows)


def _peak(mapping: Any, devices: Sequence[Any], vocabulary: int, length: int, chunk: Any, remat: str) -> int | None:
    config = parse_config(_changed(plain(mapping), vocabulary, length, remat))
    mesh = make_mesh(config.mesh, devices)
    check_rows(config, mesh)
    task, spec = FAMILIES[config.family](config)
    if chunk == "all":
        parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.training.accumulation
        rows = next(iter(spec.values())).shape[0] // parts
        task = replace(task, config=replace(task.config, loss_chunk=rows * length))
    program = make_program(config, task, mesh)
    batches: Any = SimpleNamespace(specs=[spec])  # all that compiling asks of data
    compiled = compile_shapes(program.step, program.shapes, mesh, batches.specs)
    return step_memory(next(iter(compiled.values())), program.shapes)


def _changed(values: dict[str, Any], vocabulary: int, length: int, remat: str) -> dict[str, Any]:
    batching = values["batching"]
    values["tokenizer"]["vocab_size"] = vocabulary
    values["model"] |= {"remat": remat, "max_length": max(length, values["model"]["max_length"])}
    if "rows" in batching:
        batching |= {"rows": batching["rows"] * batching["length"] // length, "length": length}
        if "stride" in values["evaluation"]:
            values["evaluation"]["stride"] = length
    else:
        batching["max_length"] = length
    return values


def _translation(config: translation.TranslationConfig) -> tuple[Any, BatchSpec]:
    vocabulary, length = config.tokenizer.vocab_size, config.batching.max_length
    shape = make_shape(length, length, config.batching)
    model = translation.ARCHITECTURES[translation.TransformerConfig.architecture][1]
    task = TranslationTask(model(config=translation.model_config(config, vocabulary, vocabulary)), config.task)
    return task, {side: ArraySpec((shape.rows, length), "int32") for side in ("source", "target")}


def _packed(task: Any, config: Any) -> tuple[Any, BatchSpec]:
    return task, {name: ArraySpec((config.batching.rows, config.batching.length), "int32") for name in ARRAYS}


FAMILIES: dict[str, Callable[[Any], tuple[Any, BatchSpec]]] = {
    "translation": _translation,
    "language_model": lambda config: _packed(language_model.make_task(config, config.tokenizer.vocab_size), config),
    "masked_lm": lambda config: _packed(masked_lm.make_task(config, config.tokenizer.vocab_size), config),
}
"""Of each family the task and the largest batch of a config, from its sizes alone."""
