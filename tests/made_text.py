"""A toy text in files, and the smallest language model on it, for tests of whole runs."""

import random
from pathlib import Path
from typing import Any

from experiments.command_line import load_config
from tests.made_files import CHECKOUT

TEXT_CONFIG = CHECKOUT / "configs" / "language_model.py"
TINY_TEXT = {
    "dataset.train": "train.txt",
    "dataset.validation": "validation.txt",
    "dataset.test": "test.txt",
    "dataset.documents": "lines",
    "tokenizer.kind": "character",
    "tokenizer.vocab_size": 64,
    "batching.rows": 8,
    "batching.length": 32,
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.d_ff": 32,
    "model.num_heads": 2,
    "model.max_length": 48,
    "model.dropout_rate": 0.1,
    "model.embedding_dropout_rate": 0.1,
    "optimizer.peak_learning_rate": 1e-2,
    "optimizer.warmup_steps": 10,
    "training.total_steps": 60,
    "training.log_every_steps": 7,
    "checkpoints.every_steps": 20,
    "checkpoints.keep_latest": 3,
    "evaluation.every_steps": 20,
    "evaluation.stride": 32,
    "evaluation.weights": "average",
    "evaluation.average": 3,
    "decoding.max_tokens": 20,
    "decoding.batch_size": 4,
}
LEARNS_TEXT = {
    "model__d_model": 32,
    "model__d_ff": 64,
    "model__dropout_rate": 0.0,
    "model__embedding_dropout_rate": 0.0,
    "training__total_steps": 300,
    "checkpoints__every_steps": 150,
    "evaluation__every_steps": 150,
    "evaluation__weights": "latest",
}


def write_text(folder: Path, train: int = 300) -> Path:
    """train, validation and test (24 lines each) of words said twice, "one one.", and one long line; the folder."""
    rng = random.Random(1)
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in {"train": train, "validation": 24, "test": 24}.items():
        lines = [f"{word} {word}." for word in rng.choices(words, k=count)]
        lines.append(" ".join(rng.choices(words, k=20)))
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def text_overrides(folder: Path, **changes: Any) -> list[str]:
    """Command-line words without dashes: TINY_TEXT on the files of a folder. Changes have __ for dots."""
    values = {"dataset.path": folder, **TINY_TEXT, **{key.replace("__", "."): v for key, v in changes.items()}}
    return [f"{key}={value}" for key, value in values.items()]


def tiny_text_config(folder: Path, **changes: Any) -> Any:
    """The config that a command would be given."""
    return load_config(f"{TEXT_CONFIG}:files", text_overrides(folder, **changes))


MASKED_CONFIG = CHECKOUT / "configs" / "masked_lm.py"
TINY_MASKED = {
    **{key: value for key, value in TINY_TEXT.items() if not key.startswith(("decoding", "evaluation.stride"))},
    "tokenizer.kind": "wordpiece",
    "model.initializer": "xavier",
    "optimizer.peak_learning_rate": 3e-3,
}


def tiny_masked_config(folder: Path, **changes: Any) -> Any:
    """A masked language model on the files of a folder. Changes have __ for dots."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    values = {"dataset.path": folder, **TINY_MASKED, **changed}
    return load_config(f"{MASKED_CONFIG}:files", [f"{key}={value}" for key, value in values.items()])
