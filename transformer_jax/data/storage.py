"""Sentence pairs on disk: TFDS builders that write ArrayRecord files, and random access to what they wrote.

TensorFlow is never imported. Text is stored as UTF-8 bytes, in the order of the files it came from.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.progress import counted

Example = Mapping[str, Any]
TEXT = {"source": tfds.features.Text(), "target": tfds.features.Text()}


class PairsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """TFDS builder of `source`/`target` pairs, given by one function a split. The base of the project's own.

    A dataset's identity is (variant, name, VERSION), which is also its folder in the cache: whatever changes
    the pairs must change one of them.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init_subclass__(cls, **options: Any):
        # Not in TFDS's list of names, where `mnist` is a dataset of its own.
        super().__init_subclass__(skip_registration=True, **options)

    def __init__(
        self,
        *,
        variant: str,
        splits: Mapping[str, Callable[[], Iterator[Example]]],
        features: Mapping[str, Any] = TEXT,
    ):
        self._examples = splits
        self._features = features
        super().__init__(
            data_dir=str(cache_directory() / "datasets" / variant),
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(self._features))
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Example]]]:
        del dl_manager  # the files are at hand by now
        return {split: self._generate_examples(split) for split in self._examples}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Example]]:
        yield from enumerate(progress(self._examples[split](), f"preparing {self.name} {split}"))


def progress(items: Iterator[Any], description: str, total: int | None = None) -> Iterator[Any]:
    """`items`, counted on stderr; where that is no terminal, a line says at once what is done."""
    if not sys.stderr.isatty():
        print(description, file=sys.stderr, flush=True)
    yield from counted(items, description, total, "examples")


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Writes the dataset unless it is there, and gives a builder that reads it from its folder alone.

    Two processes may ask at once, and one that is killed leaves no half-written dataset.

    TFDS writes into a temporary folder and renames it when all is written; the lock keeps a second process
    waiting for the first one's result.
    """
    written = Path(builder.data_dir) / "dataset_info.json"
    if not written.is_file():
        tfds.disable_progress_bar()  # it draws a bar a shard and file; ours is one a split
        with exclusive(str(builder.data_dir)), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(file_format="array_record")  # does nothing if it is there by now
    return tfds.builder_from_directory(builder.data_dir)


@dataclass(frozen=True)
class Records:
    """One split of a prepared dataset as a `PairSource`; reads one ArrayRecord record an access.

    Attributes:
      data: the split's serialised examples.
      source, target: the names of the two text features.
      clean: applied to every text.
    """

    data: Any
    source: str
    target: str
    clean: Callable[[str], str] = str

    @classmethod
    def open(
        cls,
        builder: tfds.core.DatasetBuilder,
        split: str,
        source: str = "source",
        target: str = "target",
        clean: Callable[[str], str] = str,
    ) -> "Records":
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return cls(builder.as_data_source(split, deserialize_method=raw), source, target, clean)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self._pair(self.data[self._checked(index)])

    def texts(self) -> tuple[list[str], list[str]]:
        pairs = list(self.pairs())
        return [source for source, _ in pairs], [target for _, target in pairs]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All pairs in order, read in blocks."""
        block = 4096
        for start in range(0, len(self), block):
            records = self.data.__getitems__(list(range(start, min(start + block, len(self)))))
            yield from map(self._pair, records)

    def record(self, index: int) -> dict[str, Any]:
        """One example with all its features, such as `category` and `alignment` of `phrases`; text as str."""
        features = self.data.dataset_info.features
        example = features.deserialize_example_np(self.data[self._checked(index)])
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in example.items()}

    def fingerprint(self) -> str:
        """What identifies the prepared files on this machine: folder, names, sizes and times of writing."""
        folder = Path(self.data.dataset_info.data_dir)
        files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.iterdir())]
        return f"{folder} {files}"

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return index

    def _pair(self, record: bytes) -> tuple[str, str]:
        # Parsed here: TFDS's own deserialisation takes ten times as long and cannot leave features out.
        feature = tf_example_pb2.Example.FromString(record).features.feature
        source, target = (feature[key].bytes_list.value[0].decode() for key in (self.source, self.target))
        return self.clean(source), self.clean(target)
