"""Trains a tiny masked language model and a tiny classifier on meshes of eight devices, and reports.

    JAX_NUM_CPU_DEVICES=8 python -m tests.families.encoder_meshes

prints JSON: for each mesh the losses of both, the predictions of the second, and how a kernel lies.
"""

import json
from typing import Any

import jax
import numpy as np

from tests.families.language_model_meshes import STEPS
from tests.training.tiny_training import ADAM, GUARD
from transformer_jax.data.label_batches import EncodedText, LabelledBatchingConfig
from transformer_jax.families.classification import Predictor
from transformer_jax.models.encoder import Classifier, ClassifierConfig, EncoderConfig, MaskedLanguageModel
from transformer_jax.sharding import AXES, place_batch
from transformer_jax.training.classification import ClassificationTask, ClassificationTaskConfig
from transformer_jax.training.language_modeling import LanguageModelTaskConfig
from transformer_jax.training.masked_language_modeling import MaskedLanguageModelTask
from transformer_jax.training.optimizers import learning_rate, make_optimizer
from transformer_jax.training.step import abstract_state, make_train_step

MESHES = {"one": (1, 1, 1), "fsdp 8": (1, 8, 1), "1 2 4": (1, 2, 4)}
SIZES: dict[str, Any] = dict(
    vocab_size=16, num_layers=2, d_model=16, d_ff=16, num_heads=4, max_length=16, positions="learned", num_types=2,
    embedding_norm=True, scale_embeddings=False, initializer="xavier", dropout_rate=0.2,
)  # fmt: skip


def make_batches(labels: bool) -> list[dict[str, np.ndarray]]:
    """Two batches of eight rows of unlike lengths, the last of padding alone."""
    made = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        here = np.arange(10) < rng.integers(4, 11, (8, 1))
        here[7] = False
        tokens = np.where(here, rng.integers(4, 15, (8, 10)), 0).astype(np.int32)
        if labels:
            wanted = np.where(here[:, 0], tokens[:, 1] % 3, -1).astype(np.int32)
            made.append({"inputs": tokens, "types": (tokens > 9).astype(np.int32), "labels": wanted})
        else:
            hidden = here & (rng.random((8, 10)) < 0.3)
            inputs = np.where(hidden, 15, tokens).astype(np.int32)
            made.append({"inputs": inputs, "targets": tokens * hidden, "segments": here.astype(np.int32)})
    return made


def train(shape: tuple[int, ...], task: Any) -> tuple[list[float], Any, Any]:
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)
    optimizer = make_optimizer(ADAM, STEPS)
    shapes, create = abstract_state(task, optimizer, mesh, seed=0, ema=False)
    rate = learning_rate(ADAM, STEPS)
    step = make_train_step(task, optimizer, rate, mesh, shapes, seed=0, accumulation=1, ema_decay=0.0, guard=GUARD)
    state, losses = create(), []
    batches = make_batches(isinstance(task, ClassificationTask))
    for i in range(STEPS):
        state, metrics = step(state, place_batch(mesh, batches[i % 2]))
        losses.append(float(metrics["loss"]) / float(metrics["tokens"]))
    return losses, state.params, mesh


def report(shape: tuple[int, ...]) -> dict[str, Any]:
    model = MaskedLanguageModel(EncoderConfig(**SIZES, pooler=False))
    masked, params, _ = train(shape, MaskedLanguageModelTask(model, LanguageModelTaskConfig(0.0, 8)))
    kernel = params["encoder"]["layer_0"]["self_attention"]["query"]["kernel"]
    classifier = Classifier(ClassifierConfig(**SIZES, pooler=True, num_labels=3, level="sentence", pooling="first"))
    task = ClassificationTask(classifier, ClassificationTaskConfig(0.0))
    labelled, params, mesh = train(shape, task)
    texts = [EncodedText([3, *range(4, 5 + i), 1], 0, []) for i in range(9)]
    found = Predictor(task, mesh)(params, texts, LabelledBatchingConfig(128, 1, 16, 8))
    return {
        "masked": masked,
        "labelled": labelled,
        "log_probs": np.asarray(found).tolist(),
        "held of a query kernel": list(kernel.addressable_shards[0].data.shape),
    }


if __name__ == "__main__":
    print(json.dumps({name: report(shape) for name, shape in MESHES.items()}))
