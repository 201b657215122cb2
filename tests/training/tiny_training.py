"""A tiny translation task for tests; run as a module, it trains on several meshes and compares.

    JAX_NUM_CPU_DEVICES=4 python -m tests.training.tiny_training

prints JSON: for each mesh how far parameters and losses are from one device's, and what a device holds.
"""

import json
from typing import Any

import jax
import numpy as np

from tests.models.tiny import tiny_config
from transformer_jax.models.transformer import EncoderDecoder
from transformer_jax.sharding import place_batch
from transformer_jax.training.guard import GuardConfig
from transformer_jax.training.optimizers import OptimizerConfig, learning_rate, make_optimizer
from transformer_jax.training.step import abstract_state, make_train_step
from transformer_jax.training.tasks import TaskConfig, TranslationTask

ADAM = OptimizerConfig(
    name="adam",
    schedule="inverse_square_root",
    peak_learning_rate=0.01,
    warmup_steps=2,
    decay_fraction=0.2,
    b1=0.9,
    b2=0.98,
    epsilon=1e-4,
    weight_decay=0.0,
    clip_norm=1.0,
)
GUARD = GuardConfig(explosion_factor=50.0, rollback_after=3, max_rollbacks=1, replay_every_steps=0)
MESHES = {
    "one device": (1, 1, 1),
    "data 4": (4, 1, 1),
    "data 2 fsdp 2": (2, 2, 1),
    "data 2 tensor 2": (2, 1, 2),
    "fsdp 2 tensor 2": (1, 2, 2),
}


def make_task(regularizer: Any = "none") -> TranslationTask:
    """One layer in each stack, vocabulary 14, dropout."""
    config = tiny_config(
        source_vocab_size=14,
        target_vocab_size=14,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.2,
        embedding_dropout_rate=0.1,
        attention_dropout_rate=0.1,
    )
    return TranslationTask(EncoderDecoder(config), TaskConfig(0.1, regularizer, 1.0, 0.2, 8))


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Eight rows of ever fewer tokens, the last of padding alone."""
    rng = np.random.default_rng(seed)
    batch = {name: rng.integers(4, 14, (8, length)).astype(np.int32) for name, length in (("source", 6), ("target", 7))}
    for row in range(8):
        for tokens in batch.values():
            tokens[row, 7 - row :] = 0
    return batch


def train(name: str, devices: int) -> dict[str, Any]:
    axes = ("data", "fsdp", "tensor")
    mesh = jax.make_mesh(
        MESHES[name], axes, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:devices]
    )
    task, optimizer = make_task(), make_optimizer(ADAM, 10)
    shapes, create = abstract_state(task, optimizer, mesh, seed=0, ema=True)
    accumulation = 2 if name == "data 2 fsdp 2" else 1
    step = make_train_step(
        task,
        optimizer,
        learning_rate(ADAM, 10),
        mesh,
        shapes,
        seed=0,
        accumulation=accumulation,
        ema_decay=0.5,
        guard=GUARD,
    )
    state, losses = create(), []
    for i in range(3):
        batch = place_batch(mesh, make_batch(seed=i % 2))
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    query = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state, state.ema_params))
        if "['decoder']['layer_0']['self_attention']['query']['kernel']" in jax.tree_util.keystr(path)
    ]
    return {
        "losses": losses,
        "params": jax.tree.map(np.asarray, (state.params, state.ema_params)),
        "held of a query kernel": [list(leaf.addressable_shards[0].data.shape) for leaf in query],
        "held of a batch": batch["source"].addressable_shards[0].data.shape[0],
    }


def main() -> None:
    assert jax.device_count() == 4, jax.devices()
    one = train("one device", 1)
    results = {}
    for name in list(MESHES)[1:]:
        many = train(name, 4)
        differences = jax.tree.map(
            lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()),
            (many["params"], many["losses"]),
            (one["params"], one["losses"]),
        )
        results[name] = {
            "difference": max(jax.tree.leaves(differences)),
            "loss moved": abs(many["losses"][2] - many["losses"][0]),
            **{key: many[key] for key in ("held of a query kernel", "held of a batch")},
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
