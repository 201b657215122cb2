"""Localised phrase parts (dates, numbers, amounts, names) in two languages side by side, with alignment.

All words come from CLDR, through Babel, and from num2words.
"""

import datetime
import difflib
import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import num2words
from babel import Locale, UnknownLocaleError
from babel.core import get_locale_identifier
from babel.dates import DateTimeFormat, format_timedelta, get_datetime_format, tokenize_pattern
from babel.lists import format_list
from babel.localedata import locale_identifiers
from babel.numbers import format_currency, get_currency_precision
from babel.units import format_unit

from transformer_jax.data.aligned_text import Part, Segments, segments, text_of
from transformer_jax.errors import UserError

_NUMBER = re.compile(r"\d(?:[\d.,]*\d)?")
_NUM2WORDS_NAMES = {"nb": "no", "kk": "kz"}  # where it does not use the CLDR code
# fmt: off
_FIELDS = {"E": "weekday", "M": "month", "L": "month", "d": "day", "y": "year", "h": "hour", "H": "hour",
           "K": "hour", "k": "hour", "a": "hour", "m": "minute"}

DATE_FORMATS = ("full", "long", "medium", "short", "yMMMM", "yMMMEd", "MMMEd", "MMMMd")
FIRST_YEAR, LAST_YEAR = 2000, 2039  # within one century, so that a year of two digits stays determined
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CHF", "SEK", "NOK", "DKK", "PLN", "CZK", "HUF", "RON", "BGN",
    "RUB", "UAH", "TRY", "ILS", "EGP", "ZAR", "NGN", "KES", "INR", "PKR", "CNY", "KRW", "THB", "VND",
    "IDR", "PHP", "AUD", "NZD", "CAD", "MXN", "BRL", "ARS", "CLP", "COP")
LENGTHS = ("length-kilometer", "length-meter", "length-centimeter", "length-millimeter", "length-mile",
    "length-yard", "length-foot", "length-inch", "length-nautical-mile")
MASSES = ("mass-tonne", "mass-kilogram", "mass-gram", "mass-milligram", "mass-pound", "mass-ounce",
    "mass-carat")
UNITS = (*LENGTHS, *MASSES, "volume-liter", "volume-milliliter", "volume-gallon", "volume-pint",
    "volume-cup", "volume-tablespoon", "volume-teaspoon", "duration-century", "duration-decade",
    "duration-year", "duration-month", "duration-week", "duration-day", "duration-hour",
    "duration-minute", "duration-second", "digital-gigabyte", "digital-megabyte", "digital-kilobyte",
    "temperature-celsius", "energy-kilocalorie", "energy-kilowatt-hour", "power-kilowatt", "power-watt",
    "power-horsepower", "electric-volt", "frequency-megahertz", "speed-kilometer-per-hour",
    "speed-mile-per-hour", "speed-meter-per-second", "pressure-hectopascal", "angle-degree")
CENTS = (0, 25, 50, 75, 99)
RelativeUnit = Literal["year", "month", "week", "day", "hour", "minute", "second"]
RELATIVE_UNITS: dict[RelativeUnit, int] = {"year": 31536000, "month": 2592000, "week": 604800, "day": 86400,
                                           "hour": 3600, "minute": 60, "second": 1}
NUMBERS = {"cardinal": range(1000), "ordinal": range(1, 200), "year": range(1900, 2040)}
# fmt: on


def parse_locale(code: str) -> tuple[Locale, str]:
    """The Babel locale for `code` and num2words' name for its language.

    Raises:
      UserError: either library lacks it; the nearest that both have are named.
    """
    try:
        locale = Locale.parse(code.replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError) as error:
        raise UserError(f"phrases: Babel knows no locale {code!r}: {_suggestion(code)}") from error
    for name in (get_locale_identifier((locale.language, locale.territory)), locale.language):
        name = _NUM2WORDS_NAMES.get(name, name)
        if name in num2words.CONVERTER_CLASSES:
            return locale, name
    raise UserError(f"phrases: num2words cannot spell out numbers in {code!r}: {_suggestion(code)}")


def _suggestion(code: str) -> str:
    known = sorted(set(locale_identifiers()) & set(num2words.CONVERTER_CLASSES))
    names = {name: name for name in known} | {str(Locale.parse(n).english_name).lower(): n for n in known}
    near = difflib.get_close_matches(code.replace("-", "_").lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(names[name] for name in near)}? " if near else ""
    return f"{hint}Babel and num2words both know {', '.join(known)}"


class Renderer:
    """Words of one locale, as segments. The keys of the segments are the same in every locale."""

    def __init__(self, code: str):
        self.locale, self._num2words = parse_locale(code)
        named, skeletons = self.locale.date_formats, self.locale.datetime_skeletons
        self._date_patterns = {
            name: tokenize_pattern((named if name in named else skeletons)[name].pattern)
            for name in DATE_FORMATS
            if name in named or name in skeletons
        }
        self._time_pattern = tokenize_pattern(self.locale.time_formats["short"].pattern)
        self.date_time_pattern = str(get_datetime_format("medium", self.locale)).replace("'", "")

    @functools.cache  # noqa: B019  (a renderer lives as long as its cache)
    def list_pattern(self, style: Literal["standard", "or"], length: int) -> str:
        """ "{0}, {1} and {2}"; `style` is "standard" (and) or "or"."""
        return format_list([f"{{{i}}}" for i in range(length)], style, self.locale)

    def date(self, name: str, value: datetime.date) -> Segments:
        return self._fields(self._date_patterns[name], value)

    def has_date(self, name: str) -> bool:
        return name in self._date_patterns

    def time(self, value: datetime.time) -> Segments:
        return self._fields(self._time_pattern, value)

    def _fields(self, tokens: list[tuple], value: datetime.date | datetime.time) -> Segments:
        words = DateTimeFormat(value, self.locale)
        return segments(
            (content, None) if kind == "chars" else (words[content[0] * content[1]], _FIELDS.get(content[0]))
            for kind, content in tokens
        )

    def spelled(self, kind: str, number: int) -> Segments:
        """`number` in words. Raises LookupError if num2words has no words of this kind in the language."""
        try:
            return segments([(num2words.num2words(number, lang=self._num2words, to=kind), "number")])
        except (
            NotImplementedError,
            KeyError,
            AttributeError,
        ) as error:  # how its languages say that they lack one
            raise LookupError(f"{self._num2words}: {kind} {number}") from error

    def currency(self, name: str, style: Literal["name", "standard"], cents: int) -> Segments:
        return _around_number(format_currency(cents / 100, name, locale=self.locale, format_type=style))

    def quantity(self, unit: str, length: Literal["long", "short"], number: int) -> Segments:
        """`number` of the CLDR unit `unit`. Raises LookupError if the locale has no words for the unit."""
        text = format_unit(number, unit, length=length, locale=self.locale)
        if unit in text:  # Babel's way of saying so
            raise LookupError(f"{self.locale}: {unit}")
        return _around_number(text)

    def relative(self, unit: RelativeUnit, number: int) -> Segments:
        """`number` units from now, or ago if negative."""
        delta = datetime.timedelta(seconds=number * RELATIVE_UNITS[unit])
        return _around_number(
            format_timedelta(delta, granularity=unit, threshold=math.inf, add_direction=True, locale=self.locale)
        )


def _around_number(text: str) -> Segments:
    """The number in `text` apart from the words around it."""
    match = _NUMBER.search(text)
    if not match:  # some languages inflect instead of writing "2"
        return segments([(text, "unit")])
    return segments([(text[: match.start()], "before"), (match[0], "number"), (text[match.end() :], "after")])


def _matched(source: Segments, target: Segments) -> tuple[Segments, Segments]:
    """The sides of a number phrase, keyed so that they align.

    "in 5 days" and "in 5 Tagen" have words before and after the number, which answer one another; in
    "5 days ago" and "vor 5 Tagen" they do not, and all words are one unit.
    """
    if {key for _, key in source} == {key for _, key in target}:
        return source, target
    around = {"before": "unit", "after": "unit", "number": "number", "unit": "unit"}
    return tuple((t, around[str(k)]) for t, k in source), tuple((t, around[str(k)]) for t, k in target)


class Lexicon:
    """What two locales can both say: the parts that phrases are made of.

    A way of writing that another way already has on either side (English "May" is both the long and the
    abbreviated month) is left out, so that a source text never has two targets.
    """

    def __init__(self, source_code: str, target_code: str):
        self.source, self.target = Renderer(source_code), Renderer(target_code)
        months = itertools.product(DATE_FORMATS, range(1, 13))
        self.date_styles = self._distinct(
            [(name, month) for name, month in months if self.source.has_date(name) and self.target.has_date(name)],
            lambda side, item: side.date(item[0], datetime.date(2022, item[1], 17)),
        )
        self.numbers = {
            kind: self._distinct([(kind, number) for number in numbers], lambda side, item: side.spelled(*item))
            for kind, numbers in NUMBERS.items()
        }
        self.currencies = self._distinct(
            list(itertools.product(CURRENCIES, ("name", "standard"))),
            lambda side, item: side.currency(item[0], item[1], 500),
        )
        self.units = self._distinct(
            list(itertools.product(UNITS, ("long", "short"))),
            lambda side, item: side.quantity(item[0], item[1], 5),
        )
        self.relatives = self._distinct(
            list(itertools.product(RELATIVE_UNITS, (1, -1))),
            lambda side, item: side.relative(item[0], 5 * item[1]),
        )
        self.countries = self._names("country", "territories", re.compile("[A-Z]{2}"))
        self.languages = self._names("language", "languages", re.compile("[a-z]{2}"))

    def _distinct(self, items: list, render: Callable[[Renderer, Any], Segments]) -> list:
        """The items that both locales have, each with a text of its own in both."""
        seen: tuple[set[str], set[str]] = (set(), set())
        kept = []
        for item in items:
            try:
                texts = [text_of(render(side, item)) for side in (self.source, self.target)]
            except LookupError:
                continue
            if all(texts) and not any(text in side for text, side in zip(texts, seen, strict=True)):
                kept.append(item)
                for text, side in zip(texts, seen, strict=True):
                    side.add(text)
        return kept

    def _names(self, kind: str, attribute: str, code: re.Pattern) -> list[Part]:
        names = [getattr(side.locale, attribute) for side in (self.source, self.target)]
        codes = sorted(key for key in names[0] if code.fullmatch(key) and key not in ("ZZ", "XA", "XB", "EU", "EZ"))
        render = lambda side, item: segments([(getattr(side.locale, attribute)[item], "name")])
        return [
            Part(render(self.source, item), render(self.target, item), (kind, item))
            for item in self._distinct(codes, render)
        ]

    def date(self, name: str, value: datetime.date) -> Part:
        year, month, day = ("year", value.year), ("month", value.month), ("day", value.day)
        inner = {"yMMMM": ((year, month),), "MMMEd": ((month, day),), "MMMMd": ((month, day),)}
        return Part(
            self.source.date(name, value),
            self.target.date(name, value),
            month,
            inner.get(name, ((month, day), (year, month))),
        )

    def time(self, value: datetime.time) -> Part:
        hour, minute = ("hour", value.hour), ("minute", value.minute)
        return Part(self.source.time(value), self.target.time(value), hour, ((hour, minute),))

    @functools.cache  # noqa: B019
    def number(self, kind: str, number: int) -> Part:
        return Part(self.source.spelled(kind, number), self.target.spelled(kind, number), (kind, number))

    @functools.cache  # noqa: B019
    def currency(self, name: str, style: Literal["name", "standard"], cents: int) -> Part:
        if get_currency_precision(name) == 0:
            cents -= cents % 100  # else two amounts would read the same, one held out and one not
        sides = _matched(self.source.currency(name, style, cents), self.target.currency(name, style, cents))
        head = ("currency", name)
        return Part(*sides, head, ((("cents", cents), head),))

    @functools.cache  # noqa: B019
    def quantity(self, unit: str, length: Literal["long", "short"], number: int) -> Part:
        sides = _matched(self.source.quantity(unit, length, number), self.target.quantity(unit, length, number))
        head = ("unit", unit)
        return Part(*sides, head, ((("number", number), head),))

    @functools.cache  # noqa: B019
    def relative(self, unit: RelativeUnit, number: int) -> Part:
        sides = _matched(self.source.relative(unit, number), self.target.relative(unit, number))
        head = ("relative", unit, "future" if number > 0 else "past")
        return Part(*sides, head, ((("number", abs(number)), head),))
