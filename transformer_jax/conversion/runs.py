"""A run as a folder of another toolkit, and such a folder as a run."""

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from transformer_jax.analysis.run import Run
from transformer_jax.conversion.format import Format
from transformer_jax.conversion.mapping import Flat, unflatten
from transformer_jax.conversion.registry import format_for_run, format_of_folder
from transformer_jax.conversion.tensors import SINGLE, read_json, write_tensors
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain
from transformer_jax.families.classification import LABELS
from transformer_jax.run_directory import RunDirectory, write_json
from transformer_jax.training.checkpoints import Checkpoints

OWN = "transformer_jax"
"""Folder beside the exported files: the run's config, tokenizers and labels, with which an import is the same run
again."""
IMPORTED = "imported.json"
"""In a run that was imported: of what."""


class Written(NamedTuple):
    """What has been written, and what a person should know of it."""

    format: str
    files: list[str]
    notes: tuple[str, ...]


def export_run(run: Run, folder: str | Path, name: str | None = None) -> Written:
    """Writes an opened run, with the parameters that it was opened with, into a new folder.

    Args: name: of the format; None: the one that suits the run.
    Raises: UserError for a run that the format cannot express, before anything is written, and for a folder that is
      not empty or cannot be written.
    """
    opened: Any = run
    found = format_for_run(name, run.config.family, opened.model.config)
    bundle = found.export(run)
    with _whole(Path(folder)) as made:
        for file, content in bundle.files.items():
            (made / file).write_bytes(content)
        if bundle.tensors:
            write_tensors(made / SINGLE, bundle.tensors)
            (made / SINGLE).chmod((made / "config.json").stat().st_mode)
        if found.describe is not None:
            (made / OWN).mkdir()
            write_json(made / OWN / "config.json", run.directory.config)
            shutil.copytree(run.directory.tokenizer, made / OWN / "tokenizer")
            if (run.directory.path / LABELS).exists():
                shutil.copy(run.directory.path / LABELS, made / OWN)
        files = sorted(str(file.relative_to(made)) for file in made.rglob("*") if file.is_file())
    return Written(found.name, files, bundle.notes)


def import_folder(folder: str | Path, workdir: str | Path, default: Callable[[str], Any]) -> str:
    """Makes a run directory of a checkpoint of another toolkit: config, tokenizers, and one checkpoint of step 0.

    Args:
      folder: as Transformers saves it, with its tokenizer.
      workdir: of the run; new or empty.
      default: ``default(family)`` gives a config for what the folder says nothing of.
    Returns: the name of the run's family.
    Raises: UserError for what this project's models are not, for tensors or files that are missing, surplus or of
      another shape, and for a workdir that is not empty; nothing is written then.
    """
    folder, workdir = Path(folder), Path(workdir)
    there = read_json(folder / "config.json")
    found = format_of_folder(there, folder)
    try:
        mapping, save, labels, params = (
            _own(found, folder, there)
            if (folder / OWN).is_dir()
            else _read(found, folder, there, default(found.family))
        )
    except KeyError as error:
        raise UserError(f"{folder}/config.json lacks the key {error}: download it again.") from error
    parse_config(mapping)
    with _whole(workdir) as made, RunDirectory.create_or_resume(made, mapping) as run:
        save(run.tokenizer)
        if labels:
            write_json(run.path / LABELS, labels)
        write_json(run.path / IMPORTED, {"folder": str(folder.absolute()), "format": found.name})
        with Checkpoints(run.checkpoints) as checkpoints:
            checkpoints.save(0, {"params": unflatten(params)}, {}, {})
    return found.family


Read = tuple[dict[str, Any], Callable[[Path], Any], list[str], Flat]
"""The config, what writes the tokenizers into a folder, the labels of a classifier, the parameters."""


def _own(found: Format, folder: Path, there: dict[str, Any]) -> Read:
    """A folder that `export_run` wrote, whose weights may have been trained since."""
    mapping = read_json(folder / OWN / "config.json")
    file = folder / OWN / LABELS
    labels = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    model = model_of(parse_config(mapping), folder / OWN / "tokenizer", len(labels))
    assert found.load is not None
    model, params = found.load(folder, there, model)
    mapping["model"] |= _section(model)
    return mapping, lambda directory: shutil.copytree(folder / OWN / "tokenizer", directory), labels, params


def _read(found: Format, folder: Path, there: dict[str, Any], default: Any) -> Read:
    """A folder that another toolkit wrote."""
    assert found.describe is not None
    assert found.load is not None
    described = found.describe(folder, there)
    model, params = found.load(folder, there, described.model)
    mapping = plain(default)
    mapping["name"] = folder.resolve().name
    mapping["model"] |= _section(model)
    mapping["tokenizer"] |= described.tokenizer
    for key, value in described.settings.items():
        section, name = key.split(".")
        mapping[section][name] = value
    return mapping, described.save_tokenizer, list(described.labels), params


def _section(model: Any) -> dict[str, Any]:
    """A model's hyperparameters as a config has them: without those that tokenizers and labels give."""
    given = ("vocab_size", "num_labels")
    return {name: value for name, value in dataclasses.asdict(model).items() if not name.endswith(given)}


def model_of(config: Any, tokenizer: Path, num_labels: int) -> Any:
    """The hyperparameters of a config's model with the tokenizers of a folder and, of a classifier, its labels."""
    if config.family == "translation":
        from transformer_jax.data.tokenizers import load_tokenizers
        from transformer_jax.families.translation import make_model

        return make_model(config, load_tokenizers(tokenizer)).config
    from transformer_jax.data.text_tokenizers import ids_with_mask, load_text_tokenizer

    if config.family == "masked_lm":
        from transformer_jax.families import masked_lm

        return masked_lm.model_config(config, ids_with_mask(load_text_tokenizer(tokenizer)))
    if config.family == "classification":
        from transformer_jax.families import classification

        return classification.model_config(config, ids_with_mask(load_text_tokenizer(tokenizer)), num_labels)
    from transformer_jax.families.language_model import model_config

    return model_config(config, load_text_tokenizer(tokenizer).vocab_size)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when all that is done in it has been; raises UserError unless it can."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there and not empty. Choose another folder, or remove it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as outer:
            made = Path(outer) / target.name
            made.mkdir()
            yield made
            if target.is_dir():
                target.rmdir()
            os.rename(made, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from error
