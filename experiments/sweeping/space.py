"""What a study varies: `search_space(trial)` of a config file, or ranges and lists of the command line.

A search space is a function of an Optuna trial that returns overrides, {"optimizer.peak_learning_rate": 1e-3, …}.
"""

import copy
import json
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FixedTrial

from experiments.command_line import load_config, where
from transformer_jax.errors import UserError

SearchSpace = Callable[[Any], Mapping[str, Any]]
MOST_POINTS = 100_000


def read_search_space(config_file: str) -> SearchSpace | None:
    """`search_space` of a config file FILE.py or FILE.py:ARGUMENT; None if it defines none.

    It raises UserError, which names the line, for whatever goes wrong in it.
    """
    name = config_file.partition(":")[0]
    space = runpy.run_path(name).get("search_space")
    if space is None:
        return None

    def told(trial: Any) -> Mapping[str, Any]:
        try:
            return space(trial)
        except (UserError, _Choice):
            raise
        except Exception as error:  # the user's own program, as get_config is
            raise UserError(f"search_space: {where(error, name)}: {type(error).__name__}: {error}") from error

    return told


def parse_dimensions(words: Sequence[str], spec: str) -> dict[str, BaseDistribution]:
    """What each KEY=A,B,C (a list) or KEY=LOW..HIGH or KEY=LOW..HIGH:log (a range) lets vary.

    Args:
      spec: the config, FILE.py or FILE.py:ARGUMENT, whose keys have the types that the values are read as.
    Raises: UserError for an unknown key, a value of the wrong type, an empty range, or a key given twice.
    """
    space: dict[str, BaseDistribution] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise UserError(f"{word!r} is no dimension; write KEY=A,B,C or KEY=LOW..HIGH or KEY=LOW..HIGH:log.")
        if key in space:
            raise UserError(f"{key} is given twice; list all of its values once, as {key}=A,B,C.")

        def read(value: str, key: str = key) -> Any:
            config: Any = load_config(spec, [f"{key}={value.strip()}"])
            for name in key.split("."):
                config = config[name]
            return config

        bounds, _, scale = text.partition(":")
        if ".." in bounds:
            low, high = (read(value) for value in bounds.split("..", 1))
            space[key] = _range(word, low, high, scale)
        else:
            space[key] = CategoricalDistribution([read(value) for value in text.split(",")])
    return space


def _range(word: str, low: Any, high: Any, scale: str) -> BaseDistribution:
    if type(low) not in (int, float) or scale not in ("", "log"):
        raise UserError(f"{word!r}: a range is of numbers, KEY=LOW..HIGH or KEY=LOW..HIGH:log.")
    if not low < high or (scale and low <= 0):
        raise UserError(f"{word!r}: LOW must be below HIGH{', and above 0 on a log scale' if scale else ''}.")
    kind = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=bool(scale))


def dimensions_to_json(space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    return {key: json.loads(distribution_to_json(dimension)) for key, dimension in space.items()}


def space_of_dimensions(stored: Mapping[str, Any]) -> SearchSpace:
    """The search space that `dimensions_to_json` wrote; in the order of keys, on which it depends what is drawn."""
    space = {key: json_to_distribution(json.dumps(dimension)) for key, dimension in sorted(stored.items())}

    def suggest(trial: Any) -> dict[str, Any]:
        return {key: _suggest(trial, key, dimension) for key, dimension in space.items()}

    return suggest


def _suggest(trial: Any, key: str, dimension: BaseDistribution) -> Any:
    if isinstance(dimension, CategoricalDistribution):
        return trial.suggest_categorical(key, dimension.choices)
    assert isinstance(dimension, (IntDistribution, FloatDistribution))
    suggest = trial.suggest_int if isinstance(dimension, IntDistribution) else trial.suggest_float
    return suggest(key, dimension.low, dimension.high, log=dimension.log)


def every_point(space: SearchSpace) -> list[dict[str, Any]]:
    """The parameters of every trial there can be, in order, also where one parameter depends on another.

    Raises: UserError for a parameter without a finite number of values.
    """
    points: list[dict[str, Any]] = []
    open_points: list[dict[str, Any]] = [{}]
    while open_points:
        fixed = open_points.pop()
        try:
            space(_Enumerating(fixed))
        except _Choice as choice:
            open_points += [{**fixed, choice.name: value} for value in reversed(choice.values)]
        else:
            points.append(fixed)
        if len(points) > MOST_POINTS:
            raise UserError(f"The grid has more than {MOST_POINTS} points; take --sampler=random or quasi_random.")
    return points


class _Choice(Exception):
    """A parameter was asked for that is not fixed yet."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name, self.values = name, values


class _Enumerating(FixedTrial):
    """A trial that has the fixed parameters, and stops at the first other one."""

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self._params:
            raise _Choice(name, _values(name, distribution))
        return super()._suggest(name, distribution)


def _values(name: str, distribution: BaseDistribution) -> Sequence[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, (IntDistribution, FloatDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log or step is None:
        reason = "a log scale" if distribution.log else "infinitely many values"
        raise UserError(f"{name} has {reason}, which is no grid; list its values or choose another sampler.")
    return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]


class _Lowest(FixedTrial):
    """A trial that has the first of all choices, and the lower end of all ranges."""

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        choices = isinstance(distribution, CategoricalDistribution)
        self._params.setdefault(name, distribution.choices[0] if choices else distribution.low)  # type: ignore[attr-defined]
        return super()._suggest(name, distribution)


def first_point(space: SearchSpace) -> Mapping[str, Any]:
    """The overrides of some trial, to try the space before any work."""
    return space(_Lowest({}))


def override(config: Mapping[str, Any] | ConfigDict, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config, data only, with dotted keys set; `parse_config` finds the keys that do not exist."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in overrides.items():
        *sections, name = key.split(".")
        node = changed
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return changed
