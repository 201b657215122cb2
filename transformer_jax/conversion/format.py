"""What a format is: how a run becomes the files of another toolkit, and such files a run."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.conversion.mapping import Flat, leaves_of
from transformer_jax.conversion.tensors import Tensors
from transformer_jax.errors import UserError

OWN = "transformer_jax"
"""A folder beside the exported files: the run's config and tokenizers, with which an import is the same run again."""


class Bundle(NamedTuple):
    """What is written.

    Attributes:
      files: contents by name, config.json among them.
      tensors: by their names there.
      notes: what a person should know of the difference that remains.
    """

    files: dict[str, bytes]
    tensors: Tensors
    notes: tuple[str, ...] = ()


class Imported(NamedTuple):
    """What is read.

    Attributes:
      model: the hyperparameters.
      params: by path.
      tokenizer: the config's section on it, as what `save_tokenizer` writes into a folder is.
      settings: further values of the config by dotted key.
    """

    model: Any
    params: Flat
    tokenizer: dict[str, Any]
    save_tokenizer: Callable[[Path], None]
    settings: dict[str, Any]


class Format(NamedTuple):
    """One format.

    Attributes:
      family: of the runs that it is for.
      suits: whether it is what one would want for a model's hyperparameters, where no format is named.
      export: raises UserError for a run that it cannot express, naming the switch and what would do.
      load: ``load(folder, config.json)``; None where nothing is read. Raises UserError for what this project's model
        cannot be.
      model_type: of config.json there.
    """

    name: str
    family: str
    suits: Callable[[Any], bool]
    export: Callable[[Any], Bundle]
    load: Callable[[Path, Mapping[str, Any]], Imported] | None = None
    model_type: str = ""


def require(what: str, values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises: UserError for the first value that is not among those allowed; absent ones are not looked at."""
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            choice = " or ".join(map(repr, choices))
            raise UserError(f"{name} is {values[name]!r}; {what} can only express {choice}.")


def switches(model: Any) -> dict[str, Any]:
    """A model's hyperparameters under the names they have in a config."""
    values = {f"model.{name}": value for name, value in dataclasses.asdict(model).items()}
    return values | {"model.num_kv_heads": None if model.kv_heads == model.num_heads else model.num_kv_heads}


def trimmed(flat: Flat, whole: Any, wanted: Any, make: Callable[[Any], dict[str, Any]]) -> tuple[Any, Flat]:
    """The model without the parameters that ``wanted`` does not have, if all of them are zero; else the whole one.

    Args: make: the leaves of a model's hyperparameters.
    """
    dropped = flat.keys() - make(wanted).keys()
    if any(np.any(flat[path]) for path in dropped):
        return whole, flat
    return wanted, {path: value for path, value in flat.items() if path not in dropped}


__all__ = ["OWN", "Bundle", "Format", "Imported", "leaves_of", "require", "switches", "trimmed"]
