"""Trains a tiny task on several meshes of eight devices, and reports; run as a module, in a process of its own.

    JAX_NUM_CPU_DEVICES=8 python -m tests.training.meshes

prints JSON: for each case its losses, translations, how its arrays lie, and what the fullest device holds.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np

from tests.training.tiny_training import ADAM, GUARD, make_batch, make_recurrent_task, make_task
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.config import DecodingConfig, SamplingConfig
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


def mesh_of(shape: tuple[int, ...]) -> jax.sharding.Mesh:
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


def train(shape: tuple[int, ...], optimizer_name: str = "adamw", accumulation: int = 1, **model: Any) -> Any:
    mesh, config = mesh_of(shape), optimizer_config(optimizer_name)
    task = make_recurrent_task(**model) if "attention" in model else make_task(**model)
    optimizer = make_optimizer(config, STEPS)
    shapes, create = abstract_state(task, optimizer, mesh, seed=0, ema=True)
    rate = learning_rate(config, STEPS)
    step = make_train_step(
        task, optimizer, rate, mesh, shapes, seed=0, accumulation=accumulation, ema_decay=0.5, guard=GUARD
    )
    state, losses = create(), []
    for i in range(STEPS):
        state, metrics = step(state, place_batch(mesh, make_batch(seed=i % 4)))
        losses.append(float(metrics["loss"]))
    result = {
        "losses": losses,
        "specs": {
            jax.tree_util.keystr(path, simple=True, separator="/"): [str(a) for a in pad(leaf)]
            for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        },
    }
    if optimizer_name == "adamw":
        found = Decoder(task.model.incremental(), DECODING, mesh).decode(state.params, SOURCES)
        sums = fetch(make_evaluation_step(task, mesh)(state.params, place_batch(mesh, make_batch(seed=9))))
        result |= {
            "evaluated": float(sums["loss"]),
            "translations": [[h.tokens for h in best] for best in found],
            "scores": [h.score for best in found for h in best],
        }
    return result


def memory(shape: tuple[int, ...]) -> dict[str, Any]:
    """Bytes of live arrays on each device, and what XLA says that the making of them needs on one."""
    mesh, task = mesh_of(shape), make_task(d_model=64, d_ff=256, source_vocab_size=64, target_vocab_size=64)
    _, create = abstract_state(task, make_optimizer(ADAM, STEPS), mesh, seed=0, ema=True)
    program = create.lower().compile()
    state, born = program(), program.memory_analysis()
    parts = [part for leaf in jax.tree.leaves(state) for part in leaf.addressable_shards]
    return {
        "held": [sum(part.data.nbytes for part in parts if part.device == d) for d in mesh.devices.flat],
        "to be born": born.temp_size_in_bytes + born.output_size_in_bytes,
        "in all": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    }


def pad(leaf: jax.Array) -> list[Any]:
    """Names of the mesh axes along each axis of a live array, after checking that its parts are as small as that."""
    spec = list(leaf.sharding.spec) + [None] * (leaf.ndim - len(leaf.sharding.spec))  # type: ignore[attr-defined]
    parts = [leaf.sharding.mesh.shape[a] if a else 1 for a in spec]  # type: ignore[attr-defined]
    local = tuple(size // n for size, n in zip(leaf.shape, parts, strict=True))
    assert all(shard.data.shape == local for shard in leaf.addressable_shards), (leaf.shape, local)
    return spec


OTHER = {
    "muon": {"scan_layers": True, "attention_implementation": "xla", "attention_dropout_rate": 0.0},
    "schedule_free_adamw": {
        "scan_layers": True,
        "positions": "relative",
        "num_kv_heads": 2,
        "activation": "swiglu",
        "tie_embeddings": "none",
    },
}
ATTENTIONS = ("none", "luong", "bahdanau")
CASES: dict[str, tuple[Any, ...]] = {
    # name: mesh, optimizer, accumulation, model
    "one": (ONE, "adamw", 1, {}),
    "data 8": (DATA, "adamw", 1, {}),
    "fsdp 8": (FSDP, "adamw", 1, {"remat": "dots"}),
    "tensor 4 data 2": (TENSOR, "adamw", 2, {}),
    "2 2 2": (ALL, "adamw", 1, {"remat": "full"}),
    **{f"{kind} one": (ONE, "adamw", 1, {"attention": kind}) for kind in ATTENTIONS},
    **{f"{kind} 2 2 2": (ALL, "adamw", 2, {"attention": kind}) for kind in ATTENTIONS},
    "muon one": (ONE, "muon", 2, OTHER["muon"]),
    "muon 2 2 2": (ALL, "muon", 2, {**OTHER["muon"], "remat": "weights"}),
    "schedule_free_adamw one": (ONE, "schedule_free_adamw", 1, OTHER["schedule_free_adamw"]),
    "schedule_free_adamw 2 2 2": (ALL, "schedule_free_adamw", 1, OTHER["schedule_free_adamw"]),
}


def main() -> None:
    assert jax.device_count() == 8, jax.devices()
    results: dict[str, Any] = {"memory": {"one": memory(ONE), "fsdp 8": memory(FSDP)}}
    for name, (mesh, optimizer, accumulation, model) in CASES.items():
        results[name] = train(mesh, optimizer, accumulation, **model)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
