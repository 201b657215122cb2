"""What a format is: how a run becomes the files of another toolkit, and such files a run."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.conversion.mapping import Flat
from transformer_jax.conversion.tensors import Tensors
from transformer_jax.errors import UserError


class Bundle(NamedTuple):
    """What is written.

    Attributes:
      files: contents by name, config.json among them.
      tensors: for model.safetensors, by their names there.
      notes: what a person should know of the difference that remains.
    """

    files: dict[str, bytes]
    tensors: Tensors = {}  # noqa: RUF012 -- never changed
    notes: tuple[str, ...] = ()


class Described(NamedTuple):
    """What a folder of another toolkit is said to hold.

    Attributes:
      model: the hyperparameters.
      tokenizer: the config's section on it, as what `save_tokenizer` writes into a folder is.
      settings: further values of the config by dotted key.
      labels: of a classifier, in the order of its outputs.
    """

    model: Any
    tokenizer: dict[str, Any]
    save_tokenizer: Callable[[Path], None]
    settings: dict[str, Any]
    labels: tuple[str, ...] = ()


class Format(NamedTuple):
    """One format. What of a run it cannot express is a UserError that names the switch and what would do.

    Attributes:
      family, architecture: of the runs that it is for.
      suits: whether it is what one would want for a model's hyperparameters, where no format is named.
      export: what to write for an opened run.
      model_type, classes: of config.json there. A folder whose "architectures" name none of the classes that formats
        have is for the first format of its model_type.
      describe: ``describe(folder, config.json)``; None in a format that is only written. Raises UserError for what
        this project's models cannot be.
      load: ``load(folder, config.json, model)`` gives the parameters by path, and the hyperparameters: those given, or
        with biases that they lack. Raises UserError for tensors that are not the model's.
    """

    name: str
    family: str
    suits: Callable[[Any], bool]
    export: Callable[[Any], Bundle]
    model_type: str = ""
    describe: Callable[[Path, Mapping[str, Any]], Described] | None = None
    load: Callable[[Path, Mapping[str, Any], Any], tuple[Any, Flat]] | None = None
    architecture: str = "transformer"
    classes: tuple[str, ...] = ()


def require(what: str, values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises: UserError for the first value that is not among those allowed; absent ones are not looked at."""
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            choice = " or ".join(map(repr, choices))
            raise UserError(f"{name} is {values[name]!r}; {what} can only express {choice}.")


def switches(model: Any) -> dict[str, Any]:
    """A model's hyperparameters under the names they have in a config."""
    values = {f"model.{name}": value for name, value in dataclasses.asdict(model).items()}
    if values.get("model.num_kv_heads") == values.get("model.num_heads"):
        values["model.num_kv_heads"] = None
    return values


def trimmed(flat: Flat, whole: Any, wanted: Any, paths: Collection[str]) -> tuple[Any, Flat]:
    """The model that was wanted, if the parameters that it lacks are all zero; else the whole one.

    Args: paths: of the parameters of the model wanted.
    """
    dropped = flat.keys() - set(paths)
    if any(np.any(flat[path]) for path in dropped):
        return whole, flat
    return wanted, {path: value for path, value in flat.items() if path not in dropped}
