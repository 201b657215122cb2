"""Trains the tiny models of images on meshes of eight devices, and reports; run as a module, in a process of its own.

    JAX_NUM_CPU_DEVICES=8 python -m tests.families.image_meshes

prints JSON: for each task and mesh its losses and how a kernel lies, and of text to image the tokens that it draws.
"""

import json
from typing import Any

import jax
import numpy as np

from tests.training.tiny_training import ADAM, GUARD
from transformer_jax.decoding.images import ImageDecodingConfig, ImageGenerator
from transformer_jax.decoding.sampling import SamplingConfig
from transformer_jax.models.discrete_vae import DiscreteVae, DiscreteVaeConfig
from transformer_jax.models.text_to_image import TextToImage, TextToImageConfig
from transformer_jax.models.vision import VisionTransformer, VisionTransformerConfig
from transformer_jax.sharding import AXES, place_batch
from transformer_jax.training.discrete_vae import DiscreteVaeTask, DiscreteVaeTaskConfig
from transformer_jax.training.image_classification import ImageClassificationTask, ImageClassificationTaskConfig
from transformer_jax.training.optimizers import learning_rate, make_optimizer
from transformer_jax.training.step import abstract_state, make_train_step
from transformer_jax.training.text_to_image import TextToImageTask, TextToImageTaskConfig

STEPS = 4
MESHES = {"one": (1, 1, 1), "fsdp 8": (1, 8, 1), "2 2 2": (2, 2, 2)}
BLOCKS: dict[str, Any] = dict(d_model=16, d_ff=16, num_heads=4, num_layers=2, norm_placement="pre", positions="learned")
WEIGHTS = np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)


def make_vae() -> tuple[Any, dict[str, np.ndarray], tuple[str, ...]]:
    sizes = dict(image_size=8, channels=1, vocab_size=8, code_width=8, patch_size=2, width=32, halvings=1, num_blocks=1)
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)
    task = DiscreteVaeTask(DiscreteVae(DiscreteVaeConfig(**sizes)), DiscreteVaeTaskConfig(1.0, 0.5, 4, 1.0, 0.5, 4))
    return task, {"images": images, "weights": WEIGHTS}, ("codebook", "embedding")


def make_text_to_image() -> tuple[Any, dict[str, np.ndarray], tuple[str, ...]]:
    rest = dict(text_vocab_size=8, text_length=4, image_vocab_size=8, grid=3, image_attention="sparse", kernel=3)
    model = TextToImage(TextToImageConfig(**BLOCKS, dropout_rate=0.2, **rest))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.integers(4, 12, (8, 4)), rng.integers(12, 20, (8, 9))], axis=1).astype(np.int32)
    task = TextToImageTask(model, TextToImageTaskConfig(1 / 8, 0.3, 0.1, 8))
    return task, {"tokens": tokens, "weights": WEIGHTS}, ("decoder", "layer_0", "self_attention", "query", "kernel")


def make_classifier() -> tuple[Any, dict[str, np.ndarray], tuple[str, ...]]:
    rest = dict(image_size=8, channels=1, num_classes=3, patch_size=4)
    model = VisionTransformer(VisionTransformerConfig(**BLOCKS, **rest))  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 8, 8, 1)).astype(np.uint8), rng.integers(0, 3, 8).astype(np.int32)
    task = ImageClassificationTask(model, ImageClassificationTaskConfig(0.1, 10.0, 0.1, 0.1, 1.0))
    batch = {"images": images, "labels": labels, "weights": WEIGHTS}
    return task, batch, ("encoder", "layer_0", "self_attention", "query", "kernel")


TASKS = {"discrete_vae": make_vae, "text_to_image": make_text_to_image, "image_classification": make_classifier}


def train(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    (task, batch, path), optimizer = TASKS[name](), make_optimizer(ADAM, STEPS)
    shapes, create = abstract_state(task, optimizer, mesh, seed=0, ema=False)
    rate = learning_rate(ADAM, STEPS)
    step = make_train_step(task, optimizer, rate, mesh, shapes, seed=0, accumulation=1, ema_decay=0.0, guard=GUARD)
    state, losses = create(), []
    for _ in range(STEPS):
        state, metrics = step(state, place_batch(mesh, batch))
        losses.append(float(metrics["loss"]))
    kernel = state.params
    for key in path:
        kernel = kernel[key]
    found = {"losses": losses, "held": list(kernel.addressable_shards[0].data.shape)}
    if name == "text_to_image":
        sampling = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        config = ImageDecodingConfig("sample", 1, 2, 2, 1.5, "none", 8, 0, sampling)
        side_by_side = jax.make_mesh((len(devices), 1, 1), AXES, axis_types=mesh.axis_types, devices=devices)
        drawn = ImageGenerator(task.model, config, side_by_side).generate(state.params, batch["tokens"][:, :4])
        found["drawn"] = [[hypothesis.tokens for hypothesis in best] for best in drawn]
    return found


if __name__ == "__main__":
    print(json.dumps({name: {mesh: train(name, MESHES[mesh]) for mesh in MESHES} for name in TASKS}))
