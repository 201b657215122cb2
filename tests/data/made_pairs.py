"""Sentence pairs made up in memory, for tests of what comes after datasets."""

import gzip
import hashlib
import random
from pathlib import Path

from transformer_jax.data.datasets import Dataset


class MadePairs:
    """A PairSource of two lists."""

    def __init__(self, sources: list[str], targets: list[str]):
        self._sides = sources, targets

    def __len__(self) -> int:
        return len(self._sides[0])

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self._sides[0][index], self._sides[1][index]

    def texts(self) -> tuple[list[str], list[str]]:
        return self._sides


def dataset_of(**splits: MadePairs) -> Dataset:
    digest = hashlib.sha256(repr([(n, pairs.texts()) for n, pairs in splits.items()]).encode()).hexdigest()
    return Dataset(splits, digest, {n: {"pairs": len(pairs), "dropped": 0} for n, pairs in splits.items()})


def made_pairs(count: int, seed: int = 0, most_words: int = 20) -> MadePairs:
    """Pairs of different lengths; every source begins with its number, so that it can be recognised."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiouäöü"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    sentence = lambda length: " ".join(rng.choices(words, k=length))
    sources, targets = [], []
    for number in range(count):
        length = rng.randint(1, most_words)
        sources.append(f"{number} {sentence(length)}")
        targets.append(sentence(max(1, length + rng.randint(-2, 3))).capitalize() + ".")
    return MadePairs(sources, targets)


def made_dataset(count: int = 1000) -> Dataset:
    return dataset_of(train=made_pairs(count), validation=made_pairs(150, seed=1))


def multi30k(folder: Path) -> Dataset:
    """English to German, training and validation split."""
    read = lambda name: gzip.decompress((folder / name).read_bytes()).decode().splitlines()
    return dataset_of(
        train=MadePairs(read("train.en.gz"), read("train.de.gz")),
        validation=MadePairs(read("val.en.gz"), read("val.de.gz")),
    )
