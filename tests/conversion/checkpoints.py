"""Checkpoints that others wrote, from the fixtures; and runs with drawn parameters, which nothing has trained."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sentencepiece

from tests.made_files import tiny_config, write_pairs
from tests.made_text import tiny_text_config, write_text
from tests.models.tiny import drawn_like
from transformer_jax.conversion.tensors import write_tensors
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.text import load_text
from transformer_jax.data.text_tokenizers import save_text_tokenizer, train_text_tokenizer
from transformer_jax.data.tokenizers import train_tokenizers
from transformer_jax.experiment import parse_config, plain
from transformer_jax.families.language_model import make_task
from transformer_jax.families.translation import make_model
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.tasks import TranslationTask

FIXTURES = Path(__file__).resolve().parents[1] / "models" / "fixtures"


def read_fixture(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """config.json, tensors by their names, and the other arrays."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    tensors = {k.removeprefix("theirs/"): v for k, v in arrays.items() if k.startswith("theirs/")}
    return json.loads(str(arrays.pop("config"))), tensors, arrays


def write_folder(name: str, folder: Path, **changes: Any) -> Path:
    """A fixture as Transformers would save it, without a tokenizer."""
    there, tensors, _ = read_fixture(name)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(there | changes))
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def piece_model(lines: list[str], size: int) -> bytes:
    """A SentencePiece model as Marian's checkpoints have them: its ids are its own affair."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=size, minloglevel=2, hard_vocab_limit=False
    )
    return model.getvalue()


def translation_run(folder: Path, **changes: Any) -> Path:
    """A run directory with one checkpoint."""
    mapping = tiny_config(write_pairs(folder / "data"), **changes)
    config = parse_config(mapping)
    tokenizers = train_tokenizers(load_dataset(config.dataset), config.tokenizer)
    task = TranslationTask(make_model(config, tokenizers), config.task)
    return _save(folder / "run", mapping, task, tokenizers.save)


def text_run(folder: Path, **changes: Any) -> Path:
    """The same of a language model."""
    mapping = tiny_text_config(write_text(folder / "data"), **changes)
    config = parse_config(mapping)
    tokenizer = train_text_tokenizer(load_text(config.dataset), config.tokenizer)
    task = make_task(config, tokenizer.vocab_size)
    return _save(folder / "run", mapping, task, lambda directory: save_text_tokenizer(tokenizer, directory))


def _save(path: Path, mapping: Any, task: Any, save_tokenizer: Any) -> Path:
    params = drawn_like(jax.eval_shape(task.init, jax.random.key(0)))
    with RunDirectory.create_or_resume(path, plain(mapping)) as run, Checkpoints(run.checkpoints) as checkpoints:
        save_tokenizer(run.tokenizer)
        checkpoints.save(1, {"params": params}, {}, {})
    return path


def assert_same_arrays(one: Any, other: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
