"""`long_range/TASK`: generated pairs in which something depends on something else a known distance away.

Each task has distances that are trained on and distances that are tested, some of them longer than any in training:

- copy: a string of letters, as it is. Distance: its length.
- reverse: a string of letters, backwards. Distance: its length.
- recall: pairs of a letter and a digit, then one of the letters; the answer is its digit. Distance: how many pairs
  ago it stood.
- agreement: a sentence whose main verb is given as an infinitive; the answer is the form that agrees with its subject.
  Distance: how many attractors, nouns of the other number, stand between subject and verb.
- dependency: two digits among letters; the answer is their sum modulo 10. Distance: how many tokens apart they are.

Words are separated by spaces. Everything follows from the task's name; no source stands in two splits.
"""

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer_jax.data.storage import TEXT, Example, PairsBuilder
from transformer_jax.errors import UserError

SIZES = {"train": 20_000, "validation": 1_000}
TESTED_AT_EACH = 200
"""Test pairs of each distance."""
PREFIX = "long_range/"
LETTERS, DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
NOUNS = ["dog", "cat", "boy", "girl", "king", "horse", "bird", "pilot", "nurse", "farmer", "clerk", "singer"]
VERBS = ["run", "sleep", "sing", "wait", "laugh", "fall", "work", "travel", "speak", "return"]
SEEN = ["saw", "heard", "liked", "met", "knew", "helped"]  # past forms, which say nothing of number
PREPOSITIONS = ["near", "behind", "beside", "under", "above", "with"]


class Draw:
    """Random choices that are the same on every Python."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def pick(self, items: Any) -> Any:
        return items[int(self._random.random() * len(items))]

    def number(self, low: int, high: int) -> int:
        """From low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def shuffled(self, items: Any) -> list[Any]:
        return sorted(items, key=lambda _: self._random.random())


def copied(draw: Draw, distance: int) -> tuple[list[str], list[str]]:
    letters = [draw.pick(LETTERS) for _ in range(distance)]
    return letters, letters


def reversed_(draw: Draw, distance: int) -> tuple[list[str], list[str]]:
    letters, _ = copied(draw, distance)
    return letters, letters[::-1]


def recalled(draw: Draw, distance: int) -> tuple[list[str], list[str]]:
    # Some pairs come before the one that is asked for, or its place alone would tell which it is.
    keys = draw.shuffled(LETTERS)[: distance + draw.number(0, 5)]
    values = [draw.pick(DIGITS) for _ in keys]
    words = [word for pair in zip(keys, values, strict=True) for word in pair]
    return [*words, "?", keys[-distance]], [values[-distance]]


def agreeing(draw: Draw, distance: int) -> tuple[list[str], list[str]]:
    plural = draw.pick((False, True))
    noun = lambda many: draw.pick(NOUNS) + ("s" if many else "")
    others = [not plural] * distance + [plural] * draw.number(0, 1)
    words = [draw.pick(PREPOSITIONS), "the", noun(draw.pick((False, True))), ","] if draw.pick((False, True)) else []
    words += ["the", noun(plural)]
    for many in draw.shuffled(others):
        clause = draw.pick((False, True))
        words += (
            ["that", "the", noun(many), draw.pick(SEEN)] if clause else [draw.pick(PREPOSITIONS), "the", noun(many)]
        )
    verb = draw.pick(VERBS)
    return [*words, "to", verb], [verb if plural else f"{verb}s"]


def summed(draw: Draw, distance: int) -> tuple[list[str], list[str]]:
    letters = lambda count: [draw.pick(LETTERS) for _ in range(count)]
    first, second = draw.pick(DIGITS), draw.pick(DIGITS)
    words = [*letters(draw.number(0, 5)), first, *letters(distance - 1), second, *letters(draw.number(0, 5))]
    return words, [str((int(first) + int(second)) % 10)]


@dataclass(frozen=True)
class Task:
    """One task: what a distance counts, the distances trained on and those tested, and how a pair is drawn."""

    counts: str
    trained: range
    tested: tuple[int, ...]
    draw: Callable[[Draw, int], tuple[list[str], list[str]]]


STRINGS = (4, 8, 12, 16, 20, 24, 28, 32, 40)
TASKS = {
    "copy": Task("letters", range(4, 21), STRINGS, copied),
    "reverse": Task("letters", range(4, 21), STRINGS, reversed_),
    "recall": Task("pairs back", range(1, 9), (1, 2, 4, 6, 8, 10, 12, 16), recalled),
    "agreement": Task("attractors", range(0, 4), (0, 1, 2, 3, 4, 5, 6), agreeing),
    "dependency": Task("tokens apart", range(1, 21), (1, 5, 10, 15, 20, 25, 30, 40), summed),
}


class LongRange(PairsBuilder):
    """TFDS builder of one task, whose examples have their distance. A change of what is generated raises VERSION."""

    VERSION = tfds.core.Version("1.0.0")


def open_long_range(name: str) -> LongRange:
    """The builder of "long_range/TASK". Raises: UserError for a task that there is not, naming those there are."""
    task = name.removeprefix(PREFIX)
    if task not in TASKS:
        raise UserError(
            f"dataset.name is {name!r}: there is no such task; choose {PREFIX} and one of {', '.join(TASKS)}"
        )
    generated = functools.cache(lambda: generate(task))
    return LongRange(
        variant=f"long_range-{task}",
        splits={split: functools.partial(lambda split: iter(generated()[split]), split) for split in (*SIZES, "test")},
        features={**TEXT, "distance": tfds.features.Scalar(dtype=np.int32)},
    )


def generate(name: str, sizes: Mapping[str, int] = SIZES, tested: int = TESTED_AT_EACH) -> dict[str, list[Example]]:
    """The examples ``source``, ``target``, ``distance`` of all splits; the test split ordered by distance.

    Args:
      sizes: pairs of the splits with trained distances.
      tested: test pairs of each distance.
    """
    task, draw = TASKS[name], Draw(name)
    seen: set[str] = set()

    def example(distance: int) -> Example:
        while True:
            source, target = (" ".join(words) for words in task.draw(draw, distance))
            if source not in seen:
                seen.add(source)
                return {"source": source, "target": target, "distance": distance}

    splits = {"test": [example(distance) for distance in task.tested for _ in range(tested)]}
    return splits | {split: [example(draw.pick(task.trained)) for _ in range(size)] for split, size in sizes.items()}
