"""Datasets of sentence pairs: what a config asks for in, the same small interface out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from transformer_jax.errors import UserError


@dataclass(frozen=True)
class DatasetConfig:
    """Which sentence pairs to train and test on.

    Attributes:
      name: `phrases`, `multi30k`, `parallel_text`, or the name of a TFDS translation dataset
        (`wmt14_translate/de-en`).
      source_language: what is translated from, for example `en`.
      target_language: what is translated to, for example `de`.
      path: folder of the dataset's files; "" downloads them, or takes the current folder for `parallel_text`.
        For a TFDS dataset, the TFDS data_dir.
      train, validation, test: `parallel_text` only, "" elsewhere. Two line-aligned files "a.en,a.de" or one
        TSV file "pairs.tsv", plain or .gz, within `path`; "" leaves the split out.
      max_length_ratio: training pairs with one side more than this many times longer than the other, in
        characters, are left out.
      max_characters: training pairs with a side longer than this are left out.
    """

    name: str
    source_language: str
    target_language: str
    path: str
    train: str
    validation: str
    test: str
    max_length_ratio: float
    max_characters: int

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError(
                "dataset.name is empty: give phrases, multi30k, parallel_text or a TFDS dataset's name"
            )
        for key in ("source_language", "target_language"):
            if not getattr(self, key):
                raise UserError(f"dataset.{key} is empty: give a language code such as en")
        if self.source_language == self.target_language:
            raise UserError(
                f"dataset.source_language and dataset.target_language are both {self.source_language!r}: "
                "they must differ"
            )
        if not self.max_length_ratio > 1:
            raise UserError(f"dataset.max_length_ratio is {self.max_length_ratio}: it must be more than 1")
        if self.max_characters < 1:
            raise UserError(f"dataset.max_characters is {self.max_characters}: it must be at least 1")


class PairSource(Protocol):
    """Random access to the sentence pairs of one split; cheap to make, and picklable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, str]:
        """The (source, target) text of one example."""

    def texts(self) -> tuple[list[str], list[str]]:
        """All sources and all targets, in order, read at once."""


@dataclass(frozen=True)
class Dataset:
    """Sentence pairs, ready to read.

    Attributes:
      splits: "train", "validation", "test"; a split that does not exist is absent.
      digest: SHA-256 of all the text in `splits`, in order: the key of every cache made from it.
      report: for each split, "pairs" (what `splits` holds), "dropped" (what the filters took out, training only)
        and how many pairs each filter matched: "empty", "length_ratio", "max_characters".
    """

    splits: Mapping[str, PairSource]
    digest: str
    report: Mapping[str, Mapping[str, int]]


def load_dataset(config: DatasetConfig) -> Dataset:
    """Prepares the dataset on first use (atomically, once among concurrent processes) and opens it.

    Raises:
      UserError: the dataset, a language, a file or its contents are not what they should be.
    """
    raise UserError(f"dataset.name is {config.name!r}: not yet available")
