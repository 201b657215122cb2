"""Trains a tiny language model on meshes of eight devices, and reports; run as a module, in a process of its own.

    JAX_NUM_CPU_DEVICES=8 python -m tests.families.language_model_meshes

prints JSON: for each mesh its losses, continuations, and how a kernel lies.
"""

import json
from typing import Any

import jax
import numpy as np

from tests.training.tiny_training import ADAM, GUARD
from transformer_jax.decoding.generation import GenerationConfig, Generator
from transformer_jax.decoding.sampling import SamplingConfig
from transformer_jax.models.language_model import IncrementalLanguageModel, LanguageModel, LanguageModelConfig
from transformer_jax.sharding import AXES, place_batch
from transformer_jax.training.language_modeling import LanguageModelTask, LanguageModelTaskConfig
from transformer_jax.training.optimizers import learning_rate, make_optimizer
from transformer_jax.training.step import abstract_state, make_train_step

STEPS = 6
MESHES = {"one": (1, 1, 1), "data 8": (8, 1, 1), "fsdp 8": (1, 8, 1), "tensor 4 data 2": (2, 1, 4), "1 2 4": (1, 2, 4)}
PROMPTS = [[4 + (3 * i + j) % 12 for j in range(1 + i % 6)] for i in range(10)]


def make_task(**changes: Any) -> LanguageModelTask:
    sizes = dict(vocab_size=16, num_layers=2, d_model=16, d_ff=16, num_heads=4, max_length=16, norm_placement="pre")
    rest = dict(positions="learned", tie_embeddings=True, scale_embeddings=False, initializer="xavier")
    model = LanguageModelConfig(**{**sizes, **rest, **changes})  # type: ignore[arg-type]
    return LanguageModelTask(LanguageModel(model), LanguageModelTaskConfig(label_smoothing=0.0, loss_chunk=8))


def make_batch(seed: int) -> dict[str, np.ndarray]:
    """Eight rows of two documents of unlike lengths, the last of padding alone."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(4, 16, (8, 10)).astype(np.int32)
    segments = np.where(np.arange(10) < rng.integers(2, 6, (8, 1)), 1, 2).astype(np.int32)
    segments[3, 7:] = segments[7] = targets[3, 7:] = targets[7] = 0
    starts = np.diff(segments, axis=1, prepend=0) != 0
    inputs = np.where(starts, 3, np.roll(targets, 1, axis=1)).astype(np.int32)
    return {"inputs": inputs, "targets": targets, "segments": segments}


def generation(**changes: Any) -> GenerationConfig:
    settings = dict(
        method="beam", beam_size=3, n_best=2, length_penalty=0.6, patience=1.0, max_tokens=6,
        min_length=1, prompt_begins="document",
        batch_size=8, seed=0, sampling=SamplingConfig(1.0, 0, 1.0, 0.0),
    )  # fmt: skip
    return GenerationConfig(**{**settings, **changes})


def train(shape: tuple[int, ...]) -> dict[str, Any]:
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    task, optimizer = make_task(dropout_rate=0.2), make_optimizer(ADAM, STEPS)
    shapes, create = abstract_state(task, optimizer, mesh, seed=0, ema=True)
    rate = learning_rate(ADAM, STEPS)
    step = make_train_step(task, optimizer, rate, mesh, shapes, seed=0, accumulation=1, ema_decay=0.5, guard=GUARD)
    state, losses = create(), []
    for i in range(STEPS):
        state, metrics = step(state, place_batch(mesh, make_batch(i % 2)))
        losses.append(float(metrics["loss"]))
    # As a run that is opened does: whatever it was trained on, prompts are spread over all devices.
    side_by_side = jax.make_mesh((len(devices), 1, 1), AXES, axis_types=mesh.axis_types, devices=devices)
    generator = Generator(IncrementalLanguageModel(task.model), generation(), 16, side_by_side)
    continued = [[h.tokens for h in best] for best in generator.generate(state.params, PROMPTS)]
    kernel = state.params["decoder"]["layer_0"]["self_attention"]["query"]["kernel"]
    held = list(kernel.addressable_shards[0].data.shape)
    return {"losses": losses, "continued": continued, "held of a query kernel": held}


if __name__ == "__main__":
    print(json.dumps({name: train(shape) for name, shape in MESHES.items()}))
