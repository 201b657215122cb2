"""The smallest experiments on images, for tests of whole runs."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from experiments.command_line import load_config
from tests.made_files import CHECKOUT

FEW = {"train": 64, "validation": 16, "test": 16, "unseen": 8}
"""In place of the sizes of `captioned_shapes`."""
LOOP = {
    "batching.rows": 8,
    "optimizer.warmup_steps": 5,
    "training.total_steps": 24,
    "training.log_every_steps": 5,
    "training.accumulation": 2,
    "training.ema_decay": 0.9,
    "checkpoints.every_steps": 8,
    "checkpoints.keep_latest": 3,
    "evaluation.every_steps": 8,
    "evaluation.weights": "average",
    "evaluation.average": 3,
}
TINY = {
    "discrete_vae": {
        "model.vocab_size": 16,
        "model.code_width": 8,
        "model.patch_size": 4,
        "model.width": 8,
    },
    "text_to_image": {
        "tokenizer.vocab_size": 352,
        "model.text_length": 24,
        "model.num_layers": 2,
        "model.d_model": 16,
        "model.d_ff": 16,
        "model.num_heads": 2,
        "model.dropout_rate": 0.1,
        "evaluation.images": 4,
        "evaluation.metric": "image_nll",
        "decoding.batch_size": 8,
        "decoding.guidance": 1.0,
    },
    "image_classification": {
        "optimizer.peak_learning_rate": 1e-2,
        "model.num_layers": 1,
        "model.patch_size": 8,
        "model.d_model": 8,
        "model.d_ff": 8,
        "model.num_heads": 2,
    },
}


def tiny_image_config(family: str, **changes: Any) -> Any:
    """The config that a command would be given. Changes have __ for dots."""
    values = {**LOOP, **TINY[family], **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_config(str(CHECKOUT / "configs" / f"{family}.py"), [f"{key}={value}" for key, value in values.items()])


def write_digits(folder: Path, count: int = 80) -> Path:
    """MNIST's test files with ``count`` images, of which digit d is a bar of d pixels; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = ((np.arange(count) + np.arange(count) // 10) % 10).astype(np.uint8)  # as many of each in every split
    images = np.zeros((count, 28, 28), np.uint8)
    for image, digit in zip(images, labels, strict=True):
        image[4:24, 4 : 5 + 2 * digit] = 255
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder
