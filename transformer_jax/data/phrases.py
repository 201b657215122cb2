"""`phrases`: an embedded translation dataset for any two locales, generated from CLDR and num2words.

Dates and times, spelled-out numbers, amounts of money, quantities, lists of countries and languages, relative
times, and sentences that combine them. Source determines target, no sentence of either language stands in two
splits, and half of the validation and test phrases hold a combination of values that never meets in training.
"""

import datetime
import functools
import random
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from importlib.metadata import version
from itertools import combinations
from typing import Any

import babel
import numpy as np
import tensorflow_datasets as tfds

from transformer_jax.data.aligned_text import Part, Value, align, fill, segments, text_of
from transformer_jax.data.phrase_frames import FRAMES, PIECES
from transformer_jax.data.phrase_parts import (
    CENTS,
    FIRST_YEAR,
    LAST_YEAR,
    LENGTHS,
    MASSES,
    Lexicon,
    parse_locale,
)
from transformer_jax.data.storage import TEXT, Example, PairsBuilder
from transformer_jax.errors import UserError

SIZES = {"train": 110_000, "validation": 2_000, "test": 2_000}
FEATURES = {
    **TEXT,
    "category": tfds.features.Text(),
    "held_out": tfds.features.Text(),  # the combination that never meets in training, "" if none
    "alignment": tfds.features.Tensor(shape=(None, 4), dtype=np.int32),  # see aligned_text.align
}

WEIGHTS = {"date": 18, "date and time": 12, "time": 1, "number": 18, "currency": 10, "quantity": 10,
           "countries": 11, "languages": 8, "relative": 3, "mixed": 8, "sentence": 10}  # fmt: skip

MAX_REPEATS = 200  # so many repeated phrases in a row, and a category is taken to be used up
HELD_OUT_PER_MILLE = 15  # of all combinations of two values, for test, and as many again for validation


class Phrases(PairsBuilder):
    """TFDS builder of generated phrases. A change of what is generated raises VERSION."""

    VERSION = tfds.core.Version("1.0.0")


def open_phrases(source_locale: str, target_locale: str, sizes: Mapping[str, int] = SIZES) -> Phrases:
    """The builder for two locales, such as "en" and "pt_BR".

    Raises:
      UserError: Babel or num2words does not know a locale.
    """
    names = [str(parse_locale(code)[0]) for code in (source_locale, target_locale)]
    versions = f"babel{babel.__version__}-num2words{version('num2words')}"
    size = "-".join(str(sizes[split]) for split in SIZES)
    generated = functools.cache(lambda: generate(source_locale, target_locale, sizes))
    return Phrases(
        variant=f"{names[0]}-{names[1]}-{size}-{versions}",
        splits={split: functools.partial(lambda split: iter(generated()[split]), split) for split in SIZES},
        features=FEATURES,
    )


class Phrasebook:
    """Draws random phrases for two locales."""

    def __init__(self, source_locale: str, target_locale: str):
        self.words = Lexicon(source_locale, target_locale)
        self._random = random.Random(f"{source_locale} {target_locale}")
        single: dict[str, Callable[[], Part]] = {
            "date": lambda: self._date(self.words.date_styles),
            "time": self._time,
            "number": lambda: self._number(self._pick(self._pick(self._kinds))),
            "currency": lambda: self.words.currency(*self._pick(self.words.currencies), self._cents()),
            "quantity": lambda: self._quantity(self.words.units),
            "country": lambda: self._pick(self.words.countries),
            "language": lambda: self._pick(self.words.languages),
            "relative": lambda: self._relative(self.words.relatives),
        }
        # Small numbers are the common ones: half of the cardinals are under a hundred.
        numbers = self.words.numbers
        self._kinds = [k for k in (numbers["cardinal"][:100], *numbers.values()) if k]
        self._draws: dict[str, Callable[[], Part]] = {
            "date": single["date"],
            "date and time": self._date_time,
            "time": single["time"],
            "number": lambda: self._list(single["number"], (1, 2, 2, 2)),
            "currency": lambda: self._list(single["currency"], (1, 1, 2)),
            "quantity": lambda: self._list(single["quantity"], (1, 2)),
            "countries": lambda: self._list(single["country"], (2, 2, 3)),
            "languages": lambda: self._list(single["language"], (2, 2, 3)),
            "relative": lambda: self._list(single["relative"], (1, 2, 2)),
            "mixed": lambda: self._mixed(list(single.values())),
        }
        days = [style for style in self.words.date_styles if style[0] in ("full", "long")]
        self._slots: dict[str, Callable[[], Part]] = {
            "time": self._time,
            "currency": single["currency"],
            "mass": lambda: self._quantity([unit for unit in self.words.units if unit[0] in MASSES]),
            "length": lambda: self._quantity([unit for unit in self.words.units if unit[0] in LENGTHS]),
            "day": lambda: self._date(days),
            "past": lambda: self._relative([item for item in self.words.relatives if item[1] < 0]),
            "future": lambda: self._relative([item for item in self.words.relatives if item[1] > 0]),
            "cardinal": lambda: self._number(self._pick(numbers["cardinal"])),
            "year": lambda: self._number(self._pick(numbers["year"])),
            "countries": self._draws["countries"],
            "languages": self._draws["languages"],
        }
        languages = [side.locale.language for side in (self.words.source, self.words.target)]
        if all(language in FRAMES for language in languages):
            self._frames = [[PIECES.split(frame) for frame in FRAMES[language]] for language in languages]
            self._draws["sentence"] = self._sentence
        self.categories = tuple(self._draws)

    def draw(self, category: str) -> Part:
        return self._draws[category]()

    def draw_category(self, categories: Sequence[str]) -> str:
        """One of `categories`, in proportion to WEIGHTS."""
        return self._weighted({category: WEIGHTS[category] for category in categories})

    def draw_split(self, left: Mapping[str, int]) -> str:
        """One of the splits, in proportion to how many phrases each still takes."""
        return self._weighted(left)

    def _weighted(self, weights: Mapping[str, int]) -> str:
        position = self._random.random() * sum(weights.values())
        for item, weight in weights.items():
            position -= weight
            if position < 0:
                return item
        return item

    def _pick(self, items: Sequence[Any]) -> Any:
        return items[int(self._random.random() * len(items))]  # random.choice may change between Pythons

    def _cents(self) -> int:
        return 100 * (1 + self._pick(range(99))) + self._pick(CENTS)

    def _date(self, styles: Sequence[tuple[str, int]]) -> Part:
        name, month = self._pick(styles)
        year, day = self._pick(range(FIRST_YEAR, LAST_YEAR + 1)), self._pick(range(1, 32))
        try:
            return self.words.date(name, datetime.date(year, month, day))
        except ValueError:  # no 30 February
            return self._date(styles)

    def _time(self) -> Part:
        return self.words.time(datetime.time(self._pick(range(24)), self._pick(range(0, 60, 5))))

    def _date_time(self) -> Part:
        patterns = self.words.source.date_time_pattern, self.words.target.date_time_pattern
        return _join(patterns, [self._time(), self._date(self.words.date_styles)])

    def _number(self, item: tuple[str, int]) -> Part:
        return self.words.number(*item)

    def _quantity(self, units: Sequence[tuple[str, str]]) -> Part:
        return self.words.quantity(*self._pick(units), 2 + self._pick(range(199)))

    def _relative(self, items: Sequence[tuple[str, int]]) -> Part:
        unit, sign = self._pick(items)
        return self.words.relative(unit, sign * (2 + self._pick(range(58))))

    def _list(self, draw: Callable[[], Part], lengths: Sequence[int]) -> Part:
        return self._listed([draw() for _ in range(self._pick(lengths))])

    def _mixed(self, draws: list[Callable[[], Part]]) -> Part:
        first = self._pick(range(len(draws)))
        second = (first + 1 + self._pick(range(len(draws) - 1))) % len(draws)
        return self._listed([draws[first](), draws[second]()])

    def _listed(self, parts: list[Part]) -> Part:
        style = self._pick(("standard", "standard", "or"))
        sides = (self.words.source, self.words.target)
        return _join([side.list_pattern(style, len(parts)) for side in sides], parts)

    def _sentence(self) -> Part:
        index = self._pick(range(len(self._frames[0])))
        frames = [side[index] for side in self._frames]
        slots = {name: self._slots[name]() for name in frames[0][3::4] if name}
        texts = []
        for side, pieces in zip(("source", "target"), frames, strict=True):
            text: list[tuple[str, Hashable]] = []
            # re.split yields literal, words, their number, slot, literal, …
            for literal, words, number, slot in zip(*(pieces[i::4] for i in range(4)), strict=False):
                text.append((literal, None))
                if slot:
                    text += [(t, None if key is None else (slot, key)) for t, key in getattr(slots[slot], side)]
                else:
                    text.append((words, ("word", number)))
            texts.append(segments([*text, (pieces[-1], None)]))
        frame = ("frame", index)
        inner = [(frame, part.head) for part in slots.values()]
        return Part(texts[0], texts[1], frame, (*inner, *_combined(list(slots.values()))))


def _join(patterns: Sequence[str], parts: list[Part]) -> Part:
    """The parts put into the two patterns."""
    source = fill(patterns[0], [part.source for part in parts])
    target = fill(patterns[1], [part.target for part in parts])
    return Part(source, target, parts[0].head, _combined(parts))


def _combined(parts: list[Part]) -> tuple[tuple[Value, Value], ...]:
    """All combinations of values in the parts and between them."""
    within = [pair for part in parts for pair in part.inner]
    return (*within, *combinations([part.head for part in parts], 2))


def holder(combination: tuple[Value, Value]) -> str:
    """The split that keeps a combination of two values, in any order: "train", "validation" or "test"."""
    place = zlib.crc32(" ".join(sorted(map(repr, combination))).encode()) % 1000
    return "test" if place < HELD_OUT_PER_MILLE else "validation" if place < 2 * HELD_OUT_PER_MILLE else "train"


def generate(source_locale: str, target_locale: str, sizes: Mapping[str, int]) -> dict[str, list[Example]]:
    """The examples of all splits; the same for the same arguments and library versions.

    Raises:
      UserError: a locale is unknown, or the pair has too few different phrases.
    """
    book = Phrasebook(source_locale, target_locale)
    splits: dict[str, list[Example]] = {split: [] for split in sizes}
    half = {split: 0 if split == "train" else size // 2 for split, size in sizes.items()}
    left = {
        True: half,
        False: {split: size - half[split] for split, size in sizes.items()},
    }  # by held out or not
    seen: tuple[set[str], set[str]] = (set(), set())
    categories, repeats = list(book.categories), Counter[str]()
    while any(left[True].values()) or any(left[False].values()):
        if not categories:
            raise UserError(
                f"phrases: {source_locale} and {target_locale} have only {len(seen[0])} different phrases, "
                f"{sum(sizes.values())} are wanted: choose another pair of locales"
            )
        category = book.draw_category(categories)
        part = book.draw(category)
        source, target = text_of(part.source), text_of(part.target)
        if source in seen[0] or target in seen[1]:
            repeats[category] += 1
            if repeats[category] == MAX_REPEATS:
                categories.remove(category)
            continue
        repeats[category] = 0
        kept_for = {holder(combination): combination for combination in part.inner}
        kept_for.pop("train", None)
        if len(kept_for) > 1:
            continue
        held_out = "".join(" + ".join(" ".join(map(str, value)) for value in pair) for pair in kept_for.values())
        split = next(iter(kept_for)) if kept_for else book.draw_split(left[False])
        if not left[bool(kept_for)].get(split):
            continue
        left[bool(kept_for)][split] -= 1
        seen[0].add(source)
        seen[1].add(target)
        alignment = np.array(align(part.source, part.target), np.int32).reshape(-1, 4)
        splits[split].append(
            {
                "source": source,
                "target": target,
                "category": category,
                "held_out": held_out,
                "alignment": alignment,
            }
        )
    return splits
