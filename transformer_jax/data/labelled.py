"""Texts with labels: what a config asks for in; texts, or words, and their labels by split out.

A sentence or a pair of them has one label; of a text of words each word has one.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from transformer_jax.data.storage import prepare
from transformer_jax.data.text_sources import find_files, open_tfds, read_text
from transformer_jax.data.tfds_translation import check_readable
from transformer_jax.errors import UserError

SPLITS = ("train", "validation", "test")
OWN = ("labelled_files", "column_files", "movie_reviews")
REVIEWS = {"rt-polarity.pos": "positive", "rt-polarity.neg": "negative"}
REVIEWS_SOURCE = "the sentence polarity dataset v1.0 of Pang and Lee 2005"
HELD_OUT = {0: "test", 1: "validation"}  # tenths of the reviews, by a hash of the text

Text = tuple[str, ...]
"""One text or two, or the words of one."""


@dataclass(frozen=True)
class LabelledDatasetConfig:
    """Which texts to learn from.

    Attributes:
      name: `labelled_files` (a line is LABEL, TAB, TEXT, and of pairs TAB and the second TEXT), `column_files` (a word
        and, last on its line, its label; an empty line ends a text, as in CoNLL 2003), `movie_reviews` (sentences,
        positive or negative), or the name of a TFDS dataset (`imdb_reviews`, `glue/mrpc`).
      path: folder of the files; "" is the current one. For a TFDS dataset, the TFDS data_dir.
      train, validation, test: the files of each split, UTF-8, plain or .gz, or TFDS's splits; "" leaves one out.
      texts, label: of a TFDS dataset, the features that hold the text, or both texts, and the label.
      share: of the training examples, how many are used; which they are follows from the seed.
    """

    name: str
    path: str
    train: str
    validation: str
    test: str
    texts: tuple[str, ...]
    label: str
    share: float

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError(f"dataset.name is empty: give {', '.join(OWN)} or a TFDS dataset's name")
        if not 0 < self.share <= 1:
            raise UserError(f"dataset.share is {self.share}: it must be above 0 and at most 1")
        if self.name not in OWN and not 1 <= len(self.texts) <= 2:
            raise UserError(f"dataset.texts is {self.texts}: name the one feature, or the two, that hold the text")
        for split in SPLITS:
            if getattr(self, split) and self.name == "movie_reviews":
                raise UserError(f'movie_reviews has its own splits: set dataset.{split}=""')


@dataclass(frozen=True)
class Labelled:
    """One split. ``labels[i]`` has one label for ``texts[i]``, or one for each of its words."""

    texts: Sequence[Text]
    labels: Sequence[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.texts)

    def some(self, share: float, seed: int) -> "Labelled":
        """So many of the examples, drawn by the seed, at least one."""
        count = max(1, round(share * len(self)))
        chosen = sorted(np.random.default_rng((seed, len(self))).permutation(len(self))[:count])
        return self if share == 1 else Labelled([self.texts[i] for i in chosen], [self.labels[i] for i in chosen])

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.texts, self.labels)).encode()).hexdigest()


@dataclass(frozen=True)
class LabelledDataset:
    """Labelled texts.

    Attributes:
      splits: by name.
      labels: all that there are in training, in order.
      training_texts: those of all training examples, whether their labels are used or not.
    """

    splits: Mapping[str, Labelled]
    labels: tuple[str, ...]
    training_texts: Sequence[Text]

    @property
    def digest(self) -> str:
        """SHA-256 of all texts and labels."""
        parts = [f"{split} {self.splits[split].digest}" for split in sorted(self.splits)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def load_labelled(config: LabelledDatasetConfig, level: Literal["sentence", "token"], seed: int) -> LabelledDataset:
    """Reads all splits. Raises: UserError for files or contents that are not what they should be."""
    if (config.name == "column_files") != (level == "token"):
        wanted = "column_files" if level == "token" else "labelled_files, movie_reviews or a TFDS dataset"
        raise UserError(f"dataset.name is {config.name!r}, but model.level is {level!r}, which is learnt from {wanted}")
    if config.name == "movie_reviews":
        splits = read_movie_reviews(Path(config.path).expanduser())
    elif config.name in OWN:
        splits = {}
        for split in SPLITS:
            if getattr(config, split):
                files = find_files(config.path, split, getattr(config, split))
                splits[split] = read_labelled_files(files, level)
    else:
        splits = _read_tfds(config)
    if "train" not in splits:
        raise UserError("dataset.train is empty: name the training data")
    texts = splits["train"].texts
    splits["train"] = splits["train"].some(config.share, seed)
    labels = tuple(sorted({label for labels in splits["train"].labels for label in labels}))
    for split, labelled in splits.items():
        if not len(labelled):
            raise UserError(f"{config.name}: the {split} split has no examples; check dataset.{split}")
    return LabelledDataset(splits, labels, texts)


def label_ids(labelled: Labelled, known: Sequence[str], where: str) -> list[list[int]]:
    """The labels as their places in ``known``. Raises: UserError for one that is not there."""
    numbers = {label: i for i, label in enumerate(known)}
    try:
        return [[numbers[label] for label in labels] for labels in labelled.labels]
    except KeyError as error:
        raise UserError(
            f"{where} has the label {error.args[0]!r}, which the training examples lack; theirs are "
            f"{', '.join(known[:20])}. Correct it, or add examples of it."
        ) from None


def read_labelled_files(files: Sequence[Path], level: Literal["sentence", "token"]) -> Labelled:
    """Examples of some files, in order. Raises: UserError for a line that is none, naming file and line."""
    read = _columns if level == "token" else _lines
    found = [example for file in files for example in read(file)]
    return Labelled([text for text, _ in found], [labels for _, labels in found])


def _lines(file: Path) -> Iterator[tuple[Text, tuple[str, ...]]]:
    for number, line in enumerate(read_text(file).splitlines(), 1):
        label, *texts = line.split("\t")
        if not label.strip() or not 1 <= len(texts) <= 2 or not all(text.strip() for text in texts):
            raise UserError(
                f"{file}: line {number} is {line[:80]!r}; it must be LABEL, TAB, TEXT, and of pairs TAB, TEXT"
            )
        yield tuple(text.strip() for text in texts), (label.strip(),)


def _columns(file: Path) -> Iterator[tuple[Text, tuple[str, ...]]]:
    words: list[tuple[str, str]] = []
    for number, line in enumerate([*read_text(file).splitlines(), ""], 1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            if words:
                yield tuple(word for word, _ in words), tuple(label for _, label in words)
            words = []
        elif len(columns) < 2:
            raise UserError(f"{file}: line {number} is {line[:80]!r}; it must have a word first and its label last")
        else:
            words.append((columns[0], columns[-1]))


def read_movie_reviews(folder: Path) -> dict[str, Labelled]:
    """Sentences by split: a tenth is the test, another validation, by a fixed hash of the text."""
    found: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for name, label in REVIEWS.items():
        file = next((folder / n for n in (name, f"{name}.gz") if (folder / n).is_file()), None)
        if file is None:
            raise UserError(
                f"dataset.path is {str(folder)!r}, which lacks {name} or {name}.gz: give the folder that has "
                f"{REVIEWS_SOURCE}, converted to UTF-8"
            )
        for line in filter(None, map(str.strip, read_text(file).split("\n"))):
            tenth = int(hashlib.sha256(line.encode()).hexdigest(), 16) % 10
            found[HELD_OUT.get(tenth, "train")].append((line, label))
    return {s: Labelled([(text,) for text, _ in rows], [(label,) for _, label in rows]) for s, rows in found.items()}


def _read_tfds(config: LabelledDatasetConfig) -> dict[str, Labelled]:
    builder = open_tfds(config.name, config.path, OWN)
    features: dict[str, Any] = dict((builder.info.features or {}).items())  # TFDS's own has no get
    for name in (*config.texts, config.label):
        wanted = tfds.features.ClassLabel if name == config.label else tfds.features.Text
        if not isinstance(features.get(name), wanted):
            named = "dataset.label" if name == config.label else "dataset.texts"
            known = [key for key, value in features.items() if isinstance(value, wanted)]
            raise UserError(f"{named} names {name!r}, but {config.name} has {', '.join(known) or 'none such'}")
    prepared = prepare(builder)
    check_readable(prepared)
    names, raw = features[config.label].names, tfds.decode.DeserializeMethod.RAW_BYTES
    splits = {}
    for split in filter(lambda split: getattr(config, split), SPLITS):
        texts: list[Text] = []
        labels: list[tuple[str, ...]] = []
        for record in prepared.as_data_source(getattr(config, split), deserialize_method=raw):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            texts.append(tuple(feature[name].bytes_list.value[0].decode() for name in config.texts))
            labels.append((names[feature[config.label].int64_list.value[0]],))
        splits[split] = Labelled(texts, labels)
    return splits
