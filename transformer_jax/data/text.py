"""Datasets of text: what a config asks for in, documents by split out."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from transformer_jax.data.cache import cache_directory
from transformer_jax.data.storage import prepare, progress
from transformer_jax.data.text_sources import (
    OWN,
    open_python_text,
    open_text_files,
    open_tfds_text,
    open_tiny_shakespeare,
    read_text,
)
from transformer_jax.data.tfds_translation import check_readable
from transformer_jax.errors import UserError

SPLITS = ("train", "validation", "test")
BLOCK = 1024  # records read at a time
BREAKS = {"lines": re.compile(r"\n"), "paragraphs": re.compile(r"\n[ \t]*\n\s*")}


@dataclass(frozen=True)
class TextDatasetConfig:
    """Which text to train and test on.

    Attributes:
      name: `python_text` (the installed Python's reference and library), `tiny_shakespeare`, `text_files`, or the name
        of a TFDS dataset (`lm1b`, `wiki40b/en`).
      path: folder of the dataset's files; "" downloads them, or takes the current folder for `text_files`. For a TFDS
        dataset, the TFDS data_dir.
      train, validation, test: for `text_files` the files of each split ("books/*.txt,more.txt.gz"); for a TFDS dataset
        its split or a slice of it ("train[:99%]"); "" leaves a split out. "" for the others, which have their own.
      feature: of a TFDS dataset, the one that holds the text.
      documents: what of a file or record is a document: all of it ("whole"), each of its lines, or its paragraphs.
    """

    name: str
    path: str
    train: str
    validation: str
    test: str
    feature: str
    documents: Literal["whole", "lines", "paragraphs"]

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError(f"dataset.name is empty: give {', '.join(OWN)} or a TFDS dataset's name")
        for split in SPLITS:
            if getattr(self, split) and self.name in OWN and self.name != "text_files":
                raise UserError(
                    f"dataset.{split} is {getattr(self, split)!r}, but {self.name} has its own splits: set "
                    f'dataset.{split}="" or another dataset.name'
                )
        if self.name == "python_text" and self.path:
            raise UserError(f'dataset.path is {self.path!r}, but python_text reads no folder: set dataset.path=""')


@dataclass(frozen=True)
class Documents:
    """The documents of one split, in order; they are read anew each time."""

    data: Any
    part: str  # TFDS's name of it
    feature: str
    documents: str

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self.data), BLOCK):
            for record in self.data.__getitems__(list(range(start, min(start + BLOCK, len(self.data))))):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                yield from split_documents(feature[self.feature].bytes_list.value[0].decode(), self.documents)


def split_documents(text: str, documents: str) -> list[str]:
    """The documents of a text, without blank ones and the breaks between them."""
    parts = [text] if documents == "whole" else BREAKS[documents].split(text)
    return [part for part in parts if part.strip()]


@dataclass(frozen=True)
class TextDataset:
    """Text, ready to read.

    Attributes:
      splits: "train", "validation", "test"; a split that does not exist is absent.
      digest: SHA-256 of all documents, in order: the key of every cache made from them.
      report: for each split the number of "documents", "characters" and "bytes" (UTF-8).
    """

    splits: Mapping[str, Iterable[str]]
    digest: str
    report: Mapping[str, Mapping[str, int]]


def in_memory(documents: Sequence[str]) -> TextDataset:
    """Documents at hand as a training split."""
    digest = hashlib.sha256()
    for document in documents:
        content = document.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return TextDataset({"train": documents}, digest.hexdigest(), {})


def load_text(config: TextDatasetConfig) -> TextDataset:
    """Prepares the dataset on first use (atomically, once among concurrent processes) and opens it.

    Raises:
      UserError: the dataset, a file or its contents are not what they should be.
    """
    splits = _open(config)
    report, digest = {}, hashlib.sha256()
    for split, documents in splits.items():
        counts, content = _scan(documents, f"reading {config.name} {split}")
        digest.update(f"{split} {content}\n".encode())
        report[split] = counts
        if not counts["documents"]:
            raise UserError(f"{config.name}: the {split} split holds no text; check dataset.{split}")
    return TextDataset(splits, digest.hexdigest(), report)


def documents_of_files(files: list[Path], config: TextDatasetConfig) -> list[str]:
    """The documents of some files, cut as the dataset's are. Raises: UserError for one that is none, or not UTF-8."""
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: there is no such file. Give text files, plain or .gz.")
    return [document for file in files for document in split_documents(read_text(file), config.documents)]


def _open(config: TextDatasetConfig) -> dict[str, Documents]:
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    builder: tfds.core.DatasetBuilder
    if config.name in OWN:
        if config.name == "python_text":
            builder = open_python_text()
        elif config.name == "tiny_shakespeare":
            builder = open_tiny_shakespeare(config.path)
        else:
            builder = open_text_files(config.path, {split: getattr(config, split) for split in SPLITS})
        prepared, feature = prepare(builder), "text"
        wanted = {split: split for split in SPLITS if split in prepared.info.splits}
    else:
        builder = open_tfds_text(config.name, config.path, config.feature)
        try:
            prepared, feature = prepare(builder), config.feature
        except (OSError, AssertionError, ImportError) as error:  # no network, no such package
            raise UserError(
                f"{config.name} could not be downloaded and prepared in {builder.data_dir} ({error}). Prepare "
                "it where that is possible, with file_format=array_record, and set dataset.path to its data_dir"
            ) from error
        check_readable(prepared)
        wanted = {split: getattr(config, split) for split in SPLITS if getattr(config, split)}
        if "train" not in wanted:
            raise UserError(f"dataset.train is empty; {config.name} has the splits {', '.join(prepared.info.splits)}")
    try:
        return {
            split: Documents(prepared.as_data_source(part, deserialize_method=raw), part, feature, config.documents)
            for split, part in wanted.items()
        }
    except ValueError as error:
        known = ", ".join(prepared.info.splits)
        raise UserError(f"dataset: {config.name} has the splits {known}, and no other ({error})") from error


def _scan(documents: Documents, description: str) -> tuple[dict[str, int], str]:
    """Counts and hashes one split in one pass, which is remembered beside the prepared datasets."""
    folder = Path(documents.data.dataset_info.data_dir)
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())]
    cut = f"{documents.part} {documents.feature} {documents.documents}"
    key = hashlib.sha256(f"{folder} {files} {cut}".encode()).hexdigest()
    path = cache_directory() / "scans" / f"{key}.json"
    if path.is_file():
        stored = json.loads(path.read_text())
        return stored["counts"], stored["digest"]
    counts, digest = {"documents": 0, "characters": 0, "bytes": 0}, hashlib.sha256()
    for text in progress(iter(documents), description):
        content = text.encode()
        counts = {
            "documents": counts["documents"] + 1,
            "characters": counts["characters"] + len(text),
            "bytes": counts["bytes"] + len(content),
        }
        digest.update(len(content).to_bytes(8, "big") + content)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps({"counts": counts, "digest": digest.hexdigest()}))
    os.replace(partial, path)
    return counts, digest.hexdigest()
