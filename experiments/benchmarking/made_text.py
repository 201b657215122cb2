"""Text to measure speed on where none can be downloaded: random words, as frequent as Zipf's law has them.

A tokenizer of any size up to some fifty thousand pieces can be trained on it; there is nothing in it to learn.
"""

from pathlib import Path

import numpy as np

WORDS = 60_000
PAIRS = {"train": 40_000, "validation": 1000, "test": 3000}  # the test split is what beam search is measured on
DOCUMENTS = {"train": 2, "validation": 1}  # few: the peers know no rows with a boundary in them
DOCUMENT_WORDS = 500_000


def vocabulary(rng: np.random.Generator, count: int) -> np.ndarray:
    """Different words of 2 to 10 letters, str[count]."""
    words: dict[str, None] = {}
    while len(words) < count:
        letters = rng.integers(ord("a"), ord("z") + 1, (count, 10), np.uint8)
        lengths = rng.integers(2, 11, count)
        words |= dict.fromkeys(row[:length].tobytes().decode() for row, length in zip(letters, lengths, strict=True))
    return np.array(list(words)[:count])


def draw(rng: np.random.Generator, words: np.ndarray, count: int) -> np.ndarray:
    """So many words, the one of rank r drawn with a weight of 1/r."""
    weights = np.cumsum(1.0 / np.arange(1, len(words) + 1))
    return words[np.searchsorted(weights, rng.random(count) * weights[-1])]


def write_pairs(folder: Path, pairs: dict[str, int] = PAIRS, words: int = WORDS) -> None:
    """SPLIT.en and SPLIT.de: lines of 2 to 84 words, the two sides of a pair about as long."""
    rng = np.random.default_rng(0)
    known = {language: vocabulary(rng, words) for language in ("en", "de")}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in pairs.items():
        lengths = np.clip(rng.lognormal(2.9, 0.6, count), 2, 70).astype(int)
        for language, own in known.items():
            counts = lengths + rng.integers(0, 1 + lengths // 5)
            lines = np.split(draw(rng, own, int(counts.sum())), np.cumsum(counts)[:-1])
            (folder / f"{split}.{language}").write_text("".join(" ".join(line) + "\n" for line in lines))


def write_documents(folder: Path, documents: dict[str, int] = DOCUMENTS, length: int = DOCUMENT_WORDS) -> None:
    """SPLIT-NUMBER.txt: long documents, in lines of ten words."""
    rng = np.random.default_rng(0)
    known = vocabulary(rng, WORDS)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in documents.items():
        for number in range(count):
            rows = draw(rng, known, length).reshape(-1, 10)
            (folder / f"{split}-{number:02}.txt").write_text("".join(" ".join(row) + "\n" for row in rows))
