"""Texts in two languages that were put together from the same parts, and so know what translates what.

A text is kept as segments that carry keys; equal keys on the two sides mark translations of one another.
"""

import itertools
import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Segments = tuple[tuple[str, Hashable], ...]
"""A text in pieces: (characters, key). Pieces with a key of None translate nothing by themselves."""
Value = tuple[Any, ...]
"""A value that can be combined with others, such as ("country", "DE")."""

# Typography that says nothing about the words: no-break and thin spaces become spaces, direction marks go.
_SPACES = {0xA0: " ", 0x202F: " ", 0x2009: " ", 0x200E: None, 0x200F: None, 0x61C: None}


@dataclass(frozen=True)
class Part:
    """One meaning in two languages.

    Attributes:
      source, target: its text in each.
      head: the value that stands for the part when it is combined with others, such as ("country", "DE").
      inner: combinations of values within the part, such as (("amount", 5), ("currency", "EUR")).
    """

    source: Segments
    target: Segments
    head: Value
    inner: tuple[tuple[Value, Value], ...] = ()


def text_of(segments: Segments) -> str:
    return "".join(text for text, _ in segments)


def segments(pieces: Iterable[tuple[str, Hashable]]) -> Segments:
    """In NFC and cleaned of typography; empty pieces are left out."""
    cleaned = ((unicodedata.normalize("NFC", text.translate(_SPACES)), key) for text, key in pieces)
    return tuple((text, key) for text, key in cleaned if text)


def align(source: Segments, target: Segments) -> list[tuple[int, int, int, int]]:
    """Which characters translate which: (source start, source end, target start, target end), ends exclusive.

    Spaces around a piece belong to no span.
    """
    sides = []
    for side in (source, target):
        spans: dict[Hashable, list[tuple[int, int]]] = {}
        position = 0
        for text, key in side:
            stripped = text.strip()
            if key is not None and stripped:
                start = position + text.index(stripped)
                spans.setdefault(key, []).append((start, start + len(stripped)))
            position += len(text)
        sides.append(spans)
    return sorted(
        (*left, *right)
        for key in sides[0].keys() & sides[1].keys()
        for left, right in itertools.product(sides[0][key], sides[1][key])
    )


def fill(pattern: str, parts: Sequence[Segments]) -> Segments:
    """`pattern` with "{0}", "{1}" … replaced by `parts`.

    What stands between two parts ("and", a comma) is keyed by which two, so that it aligns with its like.
    """
    pieces: list[tuple[str, Hashable]] = []
    literals = re.split(r"\{(\d)\}", pattern)
    indices = [None, *map(int, literals[1::2]), None]
    for position, literal in enumerate(literals[::2]):
        left, right = indices[position], indices[position + 1]
        pieces.append((literal, None if left is None or right is None else ("between", *sorted((left, right)))))
        if right is not None:
            pieces += [(text, None if key is None else (right, key)) for text, key in parts[right]]
    return segments(pieces)
