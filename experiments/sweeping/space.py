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

from experiments.command_line import load_config
from transformer_jax.errors import UserError

SearchSpace = Callable[[Any], Mapping[str, Any]]
MOST_POINTS = 100_000


def read_search_space(config_file: str) -> SearchSpace | None:
    """`search_space` of a config file FILE.py or FILE.py:ARGUMENT; None if it defines none."""
    return runpy.run_path(config_file.partition(":")[0]).get("search_space")


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
            space(_Fixed(fixed))
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


class _Fixed:
    """Stands in for a trial: gives the fixed parameters, and stops at the first other one."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def _give(self, name: str, values: Sequence[Any]) -> Any:
        if name not in self.params:
            raise _Choice(name, values)
        return self.params[name]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._give(name, choices)

    def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
        if log:
            raise UserError(f"{name} has a log scale, which is no grid; list its values or choose another sampler.")
        return self._give(name, range(low, high + 1, step))

    def suggest_float(self, name: str, low: float, high: float, step: float | None = None, log: bool = False) -> float:
        if step is None or log:
            raise UserError(
                f"{name} has infinitely many values, which is no grid; list its values or choose another sampler."
            )
        return self._give(name, [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)])


def first_point(space: SearchSpace) -> Mapping[str, Any]:
    """The overrides of some trial, to try the space before any work."""

    class Lowest:
        def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
            return choices[0]

        def suggest_int(self, name: str, low: int, high: int, step: int = 1, log: bool = False) -> int:
            return low

        def suggest_float(
            self, name: str, low: float, high: float, step: float | None = None, log: bool = False
        ) -> float:
            return low

    return space(Lowest())


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
