"""A toy translation task in files, and the smallest experiment on it, for tests of whole runs."""

import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.command_line import load_config
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.metric_writer import read_metrics

CHECKOUT = Path(__file__).resolve().parents[1]
CONFIG = CHECKOUT / "configs" / "parallel_text.py"
WORDS = dict(
    zip(
        ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
        ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"],
        strict=True,
    )
)
TINY = {
    "dataset.train": "train.en,train.de",
    "dataset.validation": "validation.en,validation.de",
    "dataset.test": "test.en,test.de",
    "tokenizer.vocab_size": 64,
    "tokenizer.sampling": 0.0,
    "batching.tokens_per_batch": 256,
    "batching.num_shapes": 2,
    "batching.max_length": 32,
    "batching.rows_multiple": 4,
    "model.d_model": 16,
    "model.d_ff": 32,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 1,
    "model.num_heads": 2,
    "model.dropout_rate": 0.1,
    "model.embedding_dropout_rate": 0.1,
    "optimizer.peak_learning_rate": 1e-2,
    "optimizer.warmup_steps": 10,
    "training.total_steps": 60,
    "training.log_every_steps": 7,
    "checkpoints.every_steps": 20,
    "checkpoints.keep_latest": 3,
    "evaluation.every_steps": 20,
    "evaluation.average": 3,
    "evaluation.max_sentences": 20,
    "evaluation.patience": 0,
    "decoding.beam_size": 2,
    "decoding.batch_size": 16,
    "decoding.max_source_length": 32,
    "decoding.max_target_length": 32,
}
LEARNS = {
    "tokenizer__vocab_size": 96,
    "batching__num_shapes": 1,
    "batching__tokens_per_batch": 512,
    "batching__max_length": 16,
    "model__d_model": 32,
    "model__d_ff": 64,
    "model__dropout_rate": 0.0,
    "model__embedding_dropout_rate": 0.0,
    "task__label_smoothing": 0.0,
    "optimizer__schedule": "linear",
    "training__total_steps": 300,
    "training__log_every_steps": 50,
    "checkpoints__every_steps": 150,
    "evaluation__every_steps": 150,
    "evaluation__weights": "latest",
}
# Everything that resuming has to get right at once.
FULL = {
    "tokenizer__sampling": 0.1,
    "batching__packed_length": 10,
    "training__accumulation": 2,
    "training__ema_decay": 0.9,
}


def write_pairs(folder: Path, train: int = 400, most_words: int = 8) -> Path:
    """train, validation and test (24 pairs each) of counted words, English to German; returns the folder."""
    rng = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in {"train": train, "validation": 24, "test": 24}.items():
        rows = [rng.choices(list(WORDS), k=rng.randint(1, most_words)) for _ in range(count)]
        (folder / f"{split}.en").write_text("".join(" ".join(row) + "\n" for row in rows))
        (folder / f"{split}.de").write_text("".join(" ".join(WORDS[w] for w in row) + "\n" for row in rows))
    return folder


def overrides(folder: Path, **changes: Any) -> list[str]:
    """Command-line words without dashes: TINY on the files of a folder. Changes have __ for dots."""
    values = {"dataset.path": folder, **TINY, **{key.replace("__", "."): v for key, v in changes.items()}}
    return [f"{key}={value}" for key, value in values.items()]


def tiny_config(folder: Path, **changes: Any) -> Any:
    """The config that a command would be given."""
    return load_config(str(CONFIG), overrides(folder, **changes))


def recurrent_config(folder: Path, **changes: Any) -> Any:
    """As `tiny_config`, of LSTMs with every dropout."""
    own = {"dataset.name": "parallel_text", "model.num_layers": 2, "model.recurrent_dropout_rate": 0.1}
    tiny = {key: value for key, value in TINY.items() if not key.startswith("model.")}
    values = {"dataset.path": folder, **tiny, "model.d_model": 16, **own, "evaluation.weights": "average"}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(f"{CHECKOUT / 'configs' / 'multi30k.py'}:lstm", [f"{k}={v}" for k, v in values.items()])


TIMES = {"target_tokens_per_second", "step_seconds", "evaluation_seconds", "compile_count", "device_memory_bytes"}


def arrays(run: Path) -> dict[str, np.ndarray]:
    """Every array of every checkpoint of a run that was trained with FULL, by step and path."""
    found = {}
    with Checkpoints(run / "checkpoints") as checkpoints, ocp.PyTreeCheckpointer() as reader:
        for step in checkpoints.steps():
            folder = run / "checkpoints" / str(step) / "state"
            kinds = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), reader.metadata(folder).item_metadata.tree)
            state = reader.restore(folder, restore_args=kinds)
            assert {"step", "params", "ema_params", "opt_state", "evaluated"} <= state.keys()
            for path, leaf in jax.tree_util.tree_leaves_with_path(state):
                found[f"{step}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = np.asarray(leaf)
    return found


def timeless_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that do not depend on the clock, in order."""
    return [row for row in read_metrics(run / "metrics.jsonl") if row["name"] not in TIMES]


def assert_same_run(run: Path, reference: Path) -> None:
    """Bit for bit the same checkpoints, and the same metrics."""
    found, wanted = arrays(run), arrays(reference)
    assert found.keys() == wanted.keys()
    assert len(found) > 50
    assert not [name for name in wanted if found[name].tobytes() != wanted[name].tobytes()]
    assert timeless_metrics(run) == timeless_metrics(reference)
