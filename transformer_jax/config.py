"""Checked configurations: from nested mappings to frozen dataclasses, with errors that name the key.

Imports nothing slow: the command line finds a misspelt key before jax is loaded.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union

from transformer_jax.errors import UserError

T = TypeVar("T")


def build(cls: type[T], mapping: Any, path: str = "") -> T:
    """Makes the dataclass `cls`, and the dataclasses nested in it, from a mapping.

    Values must have the annotated type: a bool is no int, an int will do for a float, a list for a tuple,
    None only where the annotation allows it, and a Literal lists all that is allowed.

    Args:
      cls: a dataclass with resolvable annotations. Fields without a default must be in the mapping.
      mapping: a dict, an ml_collections ConfigDict, or what json.load returns.
      path: dotted address of the mapping in the whole config, for messages.

    Raises:
      UserError: a key is unknown, missing, or has a value of the wrong type. The message has its full path.
    """
    values = _items(mapping)
    if values is None:
        raise _wrong(path or "the config", mapping, "a section with keys of its own")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in fields:
            raise UserError(f"Unknown config key {prefix}{key}. {suggest(key, fields)}")
    annotations = typing.get_type_hints(cls)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(annotations[name], values[name], f"{prefix}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            wanted = _describe(annotations[name])
            raise UserError(f"The config lacks the key {prefix}{name}. Add it; its type is {wanted}.")
    return cls(**arguments)


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Lists the dotted keys in which two nested mappings differ, as "key: value in a -> value in b"."""
    first, second = flatten(a), flatten(b)
    absent = object()
    lines = []
    for key in sorted({*first, *second}):
        x, y = first.get(key, absent), second.get(key, absent)
        if x != y or isinstance(x, bool) != isinstance(y, bool):
            show = ["(absent)" if value is absent else repr(value) for value in (x, y)]
            lines.append(f"{key}: {show[0]} -> {show[1]}")
    return lines


def flatten(mapping: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Turns a nested mapping into one level of dotted keys; lists become tuples, empty sections stay."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        inner = _items(value)
        if inner:
            flat.update(flatten(inner, f"{path}{key}."))
        else:
            flat[f"{path}{key}"] = _hashable(value) if inner is None else {}
    return flat


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that helps after a misspelling: the nearest known name, or all of them if none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(names) or 'none'}."


def _convert(annotation: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [argument for argument in arguments if argument is not type(None)]
        if len(options) == 1 and value is not None:
            return _convert(options[0], value, path)
        for option in options:
            if isinstance(option, type) and type(value) is option:
                return value
    elif origin is Literal:
        if any(value == allowed and type(value) is type(allowed) for allowed in arguments):
            return value
        hint = suggest(value, map(str, arguments)) if isinstance(value, str) else ""
        hint = f" {hint}" if hint.startswith("Did") else ""
        raise UserError(f"{_wrong(path, value, _describe(annotation))}{hint}")
    elif origin is tuple and isinstance(value, (tuple, list)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) == len(value):
            pairs = zip(arguments, value, strict=True)
            return tuple(_convert(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(pairs))
    elif origin in (dict, Mapping) and (items := _items(value)) is not None:
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in items.items()}
    elif dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return build(annotation, value, path)
    elif annotation is float and type(value) is int:
        return float(value)
    elif annotation in (bool, int, float, str) and type(value) is annotation:
        return value
    raise _wrong(path, value, _describe(annotation))


def _items(value: Any) -> dict[str, Any] | None:
    """The entries of a mapping, None for all else. A ConfigDict is no Mapping, but has items()."""
    return dict(value.items()) if hasattr(value, "items") else None


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _describe(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(annotation)))}"
    return (
        annotation.__name__
        if isinstance(annotation, type) and annotation.__module__ == "builtins" and not typing.get_args(annotation)
        else str(annotation).replace("typing.", "")
    )


def _wrong(path: str, value: Any, wanted: str) -> UserError:
    return UserError(f"Config key {path} is {value!r} ({type(value).__name__}); {wanted} is wanted.")
