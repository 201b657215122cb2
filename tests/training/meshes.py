"""Trains a tiny task on several meshes of eight devices, and reports; run as a module, in a process of its own.

    JAX_NUM_CPU_DEVICES=8 python -m tests.training.meshes

prints JSON: for each case its losses, translations, how its arrays lie, and what the fullest device holds.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from tests.training.tiny_training import ADAM, GUARD, make_batch, make_task
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.config import DecodingConfig, SamplingConfig
from transformer_jax.models.transformer import IncrementalDecoder
from transformer_jax.sharding import AXES, fetch, place_batch
from transformer_jax.training.optimizers import OptimizerConfig, learning_rate, make_optimizer
from transformer_jax.training.step import abstract_state, make_evaluation_step, make_train_step

STEPS = 20
ONE, DATA, FSDP, TENSOR, ALL = (1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 1, 4), (2, 2, 2)
DECODING = DecodingConfig(
    method="beam",
    beam_size=3,
    n_best=2,
    length_penalty=0.6,
    coverage_penalty=0.0,
    patience=1.0,
    min_length=1,
    max_length_factor=1.0,
    max_length_offset=5,
    max_target_length=12,
    max_source_length=8,
    long_lines="split",
    batch_size=8,
    seed=0,
    sampling=SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
)
SOURCES = [[4 + (3 * i + j) % 12 for j in range(1 + i % 6)] for i in range(20)]


def optimizer_config(name: str) -> OptimizerConfig:
    changes = {"schedule": "constant"} if name == "schedule_free_adamw" else {}
    return dataclasses.replace(ADAM, name=name, **changes)  # type: ignore[arg-type]


def train(mesh_shape: tuple[int, ...], optimizer_name: str = "adam", accumulation: int = 1, **model: Any) -> Any:
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    mesh = jax.make_mesh(mesh_shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    task, config = make_task(**model), optimizer_config(optimizer_name)
    optimizer = make_optimizer(config, STEPS)
    shapes, create = abstract_state(task, optimizer, mesh, seed=0, ema=True)
    rate = learning_rate(config, STEPS)
    step = make_train_step(
        task, optimizer, rate, mesh, shapes, seed=0, accumulation=accumulation, ema_decay=0.5, guard=GUARD
    )
    born = create.lower().compile().memory_analysis()
    state, losses = create(), []
    held = [
        sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device == d)
        for d in devices
    ]
    for i in range(STEPS):
        state, metrics = step(state, place_batch(mesh, make_batch(seed=i % 4)))
        losses.append(float(metrics["loss"]))
    found: list[list[Any]] = []
    if optimizer_name == "adam":
        found = Decoder(IncrementalDecoder(task.model), DECODING, mesh).decode(state.params, SOURCES)
    evaluate = make_evaluation_step(task, mesh)
    sums = fetch(evaluate(state.params, place_batch(mesh, make_batch(seed=9))))
    return {
        "losses": losses,
        "evaluated": float(sums["loss"]),
        "translations": [[h.tokens for h in best] for best in found],
        "scores": [h.score for best in found for h in best],
        "specs": {
            jax.tree_util.keystr(path, simple=True, separator="/"): [str(a) for a in pad(leaf)]
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        },
        "bytes held": held,
        "bytes to be born": born.temp_size_in_bytes + born.output_size_in_bytes,
        "bytes in all": sum(x.nbytes for x in jax.tree.leaves(state)),
    }


def pad(leaf: jax.Array) -> list[Any]:
    """Names of the mesh axes along each axis of a live array, after checking that its parts are as small as that."""
    spec = list(leaf.sharding.spec) + [None] * (leaf.ndim - len(leaf.sharding.spec))  # type: ignore[attr-defined]
    parts = [leaf.sharding.mesh.shape[a] if a else 1 for a in spec]  # type: ignore[attr-defined]
    local = tuple(size // n for size, n in zip(leaf.shape, parts, strict=True))
    assert all(shard.data.shape == local for shard in leaf.addressable_shards), (leaf.shape, local)
    return spec


CASES: dict[str, tuple[Any, ...]] = {
    # name: mesh, optimizer, accumulation, model
    "one": (ONE,),
    "data 8": (DATA,),
    "fsdp 8": (FSDP,),
    "tensor 4 data 2": (TENSOR,),
    "2 2 2": (ALL,),
    "muon one": (ONE, "muon", 2, {"scan_layers": True}),
    "muon 2 2 2": (ALL, "muon", 2, {"scan_layers": True, "remat": "weights"}),
    "adamw one": (ONE, "adamw", 1, {"num_kv_heads": 2, "activation": "swiglu", "tie_embeddings": "none"}),
    "adamw 2 2 2": (
        ALL,
        "adamw",
        1,
        {"num_kv_heads": 2, "activation": "swiglu", "tie_embeddings": "none", "remat": "full"},
    ),
    "schedule_free_adamw one": (ONE, "schedule_free_adamw", 1, {"scan_layers": True, "positions": "relative"}),
    "schedule_free_adamw 2 2 2": (
        ALL,
        "schedule_free_adamw",
        1,
        {"scan_layers": True, "positions": "relative", "remat": "dots"},
    ),
}


def main() -> None:
    assert jax.device_count() == 8, jax.devices()
    results = {}
    for name, (mesh, optimizer, accumulation, model) in (
        (name, (*case, *("adam", 1, {})[len(case) - 1 :])) for name, case in CASES.items()
    ):
        results[name] = train(mesh, optimizer, accumulation, **model)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
