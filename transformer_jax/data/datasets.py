"""Datasets of sentence pairs: what a config asks for in, the same small interface out."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from transformer_jax.data.cache import cache_directory
from transformer_jax.errors import UserError

if TYPE_CHECKING:
    from transformer_jax.data.storage import PairsBuilder, Records

SPLITS = ("train", "validation", "test")
FILTERS = ("empty", "length_ratio", "max_characters")
TRANSLATED = ("distilled", "back_translated")
"""Keys of files with translations to learn from as well: of the training sources, and of the training targets."""


@dataclass(frozen=True)
class DatasetConfig:
    """Which sentence pairs to train and test on.

    Attributes:
      name: `phrases`, `multi30k`, `parallel_text`, `long_range/TASK`, or the name of a TFDS translation dataset
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
      bidirectional: each training pair is there the other way round too (Ding et al. 2021): for pretraining a run that
        another starts from. Needs one vocabulary for both languages.
      distilled: a file with a teacher's translation of the source of each training pair, in order, plain or .gz: each
        source is there with that too (sequence-level distillation, Kim and Rush 2016). `evaluate.py RUN --split=train`
        writes one. "" is none; the filters leave out translations as they do pairs.
      back_translated: the same for the other side, a file with a translation of the target of each training pair: each
        target is there with that as its source too (Sennrich et al. 2016; with `distilled`, Nguyen et al. 2020). A run
        from target to source writes one in the same way.
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
    bidirectional: bool = False
    distilled: str = ""
    back_translated: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("dataset.name is empty: give phrases, multi30k, parallel_text or a TFDS dataset's name")
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

    def each_once(self) -> "DatasetConfig":
        """The same with each training pair once, as it is there: what runs are measured on and compared by."""
        return replace(self, bidirectional=False, distilled="", back_translated="")


class PairSource(Protocol):
    """Random access to the sentence pairs of one split; cheap to make, and picklable."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, str]:
        """The (source, target) text of one example."""

    def record(self, index: int) -> dict[str, Any]:
        """One example with all that the dataset knows of it."""

    def texts(self) -> tuple[list[str], list[str]]:
        """All sources and all targets, in order, read at once."""


@dataclass(frozen=True)
class Dataset:
    """Sentence pairs, ready to read.

    Attributes:
      splits: "train", "validation", "test"; a split that does not exist is absent.
      digest: SHA-256 of all the text in `splits`, in order: the key of every cache made from it.
      report: for each split, "pairs" (what `splits` holds), "dropped" (what the filters took out: of training
        pairs only) and how many pairs met each filter: "empty", "length_ratio", "max_characters".
    """

    splits: Mapping[str, PairSource]
    digest: str
    report: Mapping[str, Mapping[str, int]]


def load_dataset(config: DatasetConfig) -> Dataset:
    """Prepares the dataset on first use (atomically, once among concurrent processes) and opens it.

    Raises:
      UserError: the dataset, a language, a file or its contents are not what they should be.
    """
    records = _open(config)
    if "train" not in records:
        raise UserError(f"{config.name} has no train split to learn from, only {', '.join(records)}")
    splits: dict[str, PairSource] = {}
    report: dict[str, dict[str, int]] = {}
    digest = hashlib.sha256()
    for split in SPLITS:
        if split in records:
            scan = _scan(records[split], split, config)
            digest.update(f"{split} {scan.digest}\n".encode())
            report[split] = scan.counts
            whole = scan.counts["dropped"] == 0
            splits[split] = records[split] if whole else Selected(records[split], scan.kept)
    if not len(splits["train"]):
        raise UserError(
            f"{config.name}: the filters leave no training pair of {report['train']['dropped']} "
            f"({report['train']}): check dataset.max_length_ratio and dataset.max_characters"
        )
    own = splits["train"]
    for side, key in enumerate(TRANSLATED):
        if file := getattr(config, key):
            texts = own.texts()[side]
            lines = _translations(key, file, texts)
            pairs = list(zip(*((lines, texts) if side else (texts, lines)), strict=True))
            reasons = [_filtered_by(*pair, config) for pair in pairs]
            kept = np.flatnonzero([not reason for reason in reasons])
            if not len(kept):
                raise UserError(f"dataset.{key}: the filters leave no translation of {file}")
            splits["train"] = Joined(splits["train"], Translated(Selected(own, kept), [pairs[i] for i in kept]))
            filtered = {reason: report["train"][reason] + reasons.count(reason) for reason in FILTERS}
            report["train"] = {**report["train"], "dropped": sum(filtered.values()), **filtered}
            digest.update("\n".join([key, *lines, ""]).encode())
    if config.bidirectional:
        splits["train"] = Joined(splits["train"], Swapped(splits["train"]))
        digest.update(b"bidirectional\n")
    report["train"] = report["train"] | {"pairs": len(splits["train"])}
    return Dataset(splits, digest.hexdigest(), report)


def _open(config: DatasetConfig) -> "dict[str, Records]":
    """The prepared dataset's splits, unfiltered."""
    # TFDS takes a third of a second to import, which who only translates need not wait for.
    from transformer_jax.data.long_range import PREFIX, open_long_range
    from transformer_jax.data.multi30k import open_multi30k
    from transformer_jax.data.parallel_text import open_parallel_text
    from transformer_jax.data.phrases import open_phrases
    from transformer_jax.data.storage import Records, prepare

    source, target = config.source_language, config.target_language
    builder: PairsBuilder
    if config.name == "parallel_text":
        files = {split: getattr(config, split) for split in SPLITS}
        builder = open_parallel_text(source, target, config.path, files)
    else:
        for split in SPLITS:
            if getattr(config, split):
                raise UserError(
                    f"dataset.{split} is {getattr(config, split)!r}, but only dataset.name=parallel_text "
                    f'reads files by name: set dataset.{split}="" or dataset.name=parallel_text'
                )
        if config.path and (config.name == "phrases" or config.name.startswith(PREFIX)):
            raise UserError(f'dataset.path is {config.path!r}, but {config.name} reads no files: set dataset.path=""')
        if config.name == "phrases":
            builder = open_phrases(source, target)
        elif config.name.startswith(PREFIX):
            builder = open_long_range(config.name)
        elif config.name == "multi30k":
            builder = open_multi30k(source, target, config.path)
        else:
            return _open_tfds(config)
    prepared = prepare(builder)
    return {split: Records.open(prepared, split) for split in prepared.info.splits}


def _open_tfds(config: DatasetConfig) -> "dict[str, Records]":
    from transformer_jax.data.storage import Records, prepare
    from transformer_jax.data.tfds_translation import check_readable, open_tfds, unescape

    source, target = config.source_language, config.target_language
    builder = open_tfds(config.name, source, target, config.path)
    try:
        prepared = prepare(builder)
    except (
        OSError,
        AssertionError,
        ImportError,
    ) as error:  # no network, files to fetch by hand, an optional package
        raise UserError(
            f"{config.name} could not be downloaded and prepared in {builder.data_dir} ({error}). Prepare "
            "it where that is possible, with file_format=array_record, and set dataset.path to its data_dir"
        ) from error
    check_readable(prepared)
    return {split: Records.open(prepared, split, source, target, unescape) for split in prepared.info.splits}


@dataclass(frozen=True)
class Selected:
    """The pairs of `records` at the positions `kept`: a `PairSource`."""

    records: PairSource
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> tuple[str, str]:
        if index < 0:
            raise IndexError(f"pair {index} of {len(self)}")
        return self.records[int(self.kept[index])]

    def record(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise IndexError(f"pair {index} of {len(self)}")
        return self.records.record(int(self.kept[index]))

    def texts(self) -> tuple[list[str], list[str]]:
        sources, targets = self.records.texts()
        return [sources[i] for i in self.kept], [targets[i] for i in self.kept]


@dataclass(frozen=True)
class Joined:
    """The pairs of one, then those of another: a `PairSource`."""

    first: PairSource
    then: PairSource

    def __len__(self) -> int:
        return len(self.first) + len(self.then)

    def _find(self, index: int) -> tuple[PairSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        before = len(self.first)
        return (self.first, index) if index < before else (self.then, index - before)

    def __getitem__(self, index: int) -> tuple[str, str]:
        pairs, own = self._find(index)
        return pairs[own]

    def record(self, index: int) -> dict[str, Any]:
        pairs, own = self._find(index)
        return pairs.record(own)

    def texts(self) -> tuple[list[str], list[str]]:
        sources, targets = self.first.texts()
        more_sources, more_targets = self.then.texts()
        return sources + more_sources, targets + more_targets


@dataclass(frozen=True)
class Swapped:
    """Pairs from target to source: a `PairSource`. Its records are as the dataset has them."""

    pairs: PairSource

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[str, str]:
        source, target = self.pairs[index]
        return target, source

    def record(self, index: int) -> dict[str, Any]:
        return self.pairs.record(index)

    def texts(self) -> tuple[list[str], list[str]]:
        sources, targets = self.pairs.texts()
        return targets, sources


@dataclass(frozen=True)
class Translated:
    """Pairs with a side that is a translation of the other: a `PairSource`. Its records are as the dataset has them."""

    pairs: PairSource
    translated: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.translated)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self.translated[index]

    def record(self, index: int) -> dict[str, Any]:
        return self.pairs.record(index)

    def texts(self) -> tuple[list[str], list[str]]:
        return [source for source, _ in self.translated], [target for _, target in self.translated]


def _translations(key: str, name: str, texts: Sequence[str]) -> list[str]:
    """The lines of the file that dataset.KEY names. Raises: UserError unless they may be translations of the texts."""
    from transformer_jax.data.parallel_text import read_lines

    file = Path(name).expanduser()
    if not file.is_file():
        raise UserError(f"dataset.{key} names {file}, which is not a file")
    lines = list(read_lines(file))
    if len(lines) != len(texts):
        problem = f"has {len(lines):,} lines, and there are {len(texts):,} training pairs"
    elif 2 * sum(map(str.__eq__, lines, texts)) > len(texts):
        problem = "has the text itself"
    else:
        return lines
    side, run = ("source", "run") if key == "distilled" else ("target", "run of the other direction")
    raise UserError(
        f"dataset.{key}: {file} {problem}. It must have a translation of each {side}, in order, as evaluate.py "
        f"--split=train writes for a {run} with the same dataset"
    )


@dataclass(frozen=True)
class _Scan:
    kept: np.ndarray  # int64 positions
    counts: dict[str, int]
    digest: str


def _scan(records: "Records", split: str, config: DatasetConfig) -> _Scan:
    """Filters and hashes one split in one pass, which is remembered beside the prepared datasets."""
    key = f"{records.fingerprint()} {split} {records.source} {records.target} "
    key += f"{config.max_length_ratio} {config.max_characters}"
    path = cache_directory() / "scans" / f"{hashlib.sha256(key.encode()).hexdigest()}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return _Scan(stored["kept"], json.loads(str(stored["counts"])), str(stored["digest"]))
    from transformer_jax.data.storage import progress

    scan = _scan_pairs(progress(records.pairs(), f"reading {config.name} {split}", len(records)), split, config)
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
        np.savez(file, kept=scan.kept, counts=json.dumps(scan.counts), digest=scan.digest)
    os.replace(file.name, path)
    return scan


def _scan_pairs(pairs: Iterable[tuple[str, str]], split: str, config: DatasetConfig) -> _Scan:
    counts = dict.fromkeys(FILTERS, 0)
    kept, total, digest = [], 0, hashlib.sha256()
    for source, target in pairs:
        reason = _filtered_by(source, target, config)
        if reason:
            counts[reason] += 1
        # Held-out data is judged whole: leaving out its hard sentences would flatter the score.
        if not reason or split != "train":
            kept.append(total)
            digest.update(f"{source}\n{target}\n".encode())
        total += 1
    counts = {"pairs": len(kept), "dropped": total - len(kept), **counts}
    return _Scan(np.array(kept, np.int64), counts, digest.hexdigest())


def _filtered_by(source: str, target: str, config: DatasetConfig) -> str:
    """The first filter that a pair meets, "" if none."""
    if not source.strip() or not target.strip():
        return "empty"
    shorter, longer = sorted((len(source), len(target)))
    if longer > config.max_length_ratio * shorter:
        return "length_ratio"
    if longer > config.max_characters:
        return "max_characters"
    return ""
