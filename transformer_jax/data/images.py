"""Datasets of captioned images: what a config asks for in, arrays by split and batches of them out."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from transformer_jax.data import captioned_shapes, mnist
from transformer_jax.data.batches import ArraySpec, Batch, Batches, BatchSpec, EvaluationBatch
from transformer_jax.data.captioned_shapes import SIDE, open_captioned_shapes
from transformer_jax.data.mnist import open_mnist
from transformer_jax.data.storage import prepare
from transformer_jax.data.text import TextDataset
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class ImageDatasetConfig:
    """Which images to train and test on.

    Attributes:
      name: `captioned_shapes` (generated) or `mnist`.
      path: folder of the dataset's files; "" downloads or generates them.
    """

    name: Literal["captioned_shapes", "mnist"]
    path: str

    def __post_init__(self) -> None:
        if self.name == "captioned_shapes" and self.path:
            raise UserError(f'dataset.path is {self.path!r}, but captioned_shapes reads no files: set dataset.path=""')

    @property
    def channels(self) -> int:
        return captioned_shapes.CHANNELS if self.name == "captioned_shapes" else mnist.CHANNELS

    @property
    def classes(self) -> int:
        """How many kinds of images there are; 0 where they are not told apart."""
        return mnist.CLASSES if self.name == "mnist" else 0


@dataclass(frozen=True)
class ImageSplit:
    """Images uint8[N, 32, 32, C], the caption of each, and its class int32[N], -1 where there are none."""

    images: np.ndarray
    captions: list[str]
    labels: np.ndarray


@dataclass(frozen=True)
class ImageDataset:
    """Captioned images, ready to use.

    Attributes:
      splits: "train", "validation", "test", and others that the dataset has.
      digest: SHA-256 of all that is in them, in order: the key of every cache made from it.
    """

    name: str
    splits: Mapping[str, ImageSplit]
    digest: str

    def captions(self) -> TextDataset:
        """The captions as text, from which a tokenizer can be trained."""
        report = {name: {"documents": len(split.captions)} for name, split in self.splits.items()}
        return TextDataset({name: split.captions for name, split in self.splits.items()}, self.digest, report)

    def split(self, name: str) -> ImageSplit:
        """Raises: UserError, with the names of those that there are."""
        if name not in self.splits:
            raise UserError(f"--split={name}: {self.name} has only {', '.join(self.splits)}.")
        return self.splits[name]


def load_images(config: ImageDatasetConfig) -> ImageDataset:
    """Prepares the dataset on first use (atomically, once among concurrent processes) and reads it into memory.

    Raises: UserError where files are missing or not what they should be.
    """
    if config.name == "captioned_shapes":
        builder = prepare(open_captioned_shapes(captioned_shapes.SPLITS))
    else:
        builder = prepare(open_mnist(config.path))
    splits = {name: _read(builder, name, config.channels) for name in builder.info.splits}
    digest = hashlib.sha256()
    for name, split in splits.items():
        digest.update(f"{name} {split.images.shape} {json.dumps(split.captions)}\n".encode())
        digest.update(np.ascontiguousarray(split.images).data)
        digest.update(split.labels.tobytes())
    return ImageDataset(config.name, splits, digest.hexdigest())


def _read(builder: tfds.core.DatasetBuilder, name: str, channels: int) -> ImageSplit:
    source = builder.as_data_source(name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    images = np.zeros((len(source), SIDE, SIDE, channels), np.uint8)
    captions, labels = [], np.zeros(len(source), np.int32)
    for i, record in enumerate(source.__getitems__(list(range(len(source))))):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        packed = feature["image"].bytes_list.value[0]
        images[i] = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(images.shape[1:])
        captions.append(feature["caption"].bytes_list.value[0].decode())
        labels[i] = feature["label"].int64_list.value[0]
    return ImageSplit(images, captions, labels)


@dataclass(frozen=True)
class RowsConfig:
    """Batches of so many examples, all of one shape."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UserError(f"batching.rows is {self.rows}; it must be at least 1.")


class _Epoch:
    """The examples of some arrays in one order; the last batch ends in rows of weight 0."""

    def __init__(self, arrays: Mapping[str, np.ndarray], order: np.ndarray, rows: int) -> None:
        self._arrays, self._order, self._rows = arrays, order, rows

    def __len__(self) -> int:
        return -(-len(self._order) // self._rows)

    def batch(self, index: int, blocks: Sequence[int], count: int) -> Batch:
        """As `Epoch.batch`."""
        share = self._rows // count
        places = np.concatenate([index * self._rows + block * share + np.arange(share) for block in blocks])
        there = places < len(self._order)
        chosen = self._order[np.where(there, places, 0)]
        batch = {name: array[chosen] for name, array in self._arrays.items()}
        return batch | {"weights": there.astype(np.float32)}


class ArrayBatches(Batches):
    """Arrays in memory as batches of one shape, each example once an epoch; "weights" is 0 for rows of padding.

    Args:
      arrays: by name, each with the examples as leading axis.
      counted: the array whose positions are counted.
      report: what is said of the data at the start of a run.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], rows: int, seed: int, counted: str, report: str) -> None:
        super().__init__()
        self._arrays, self._rows, self._seed, self.counted, self._report = arrays, rows, seed, counted, report
        self._count = len(arrays[counted])

    @property
    def specs(self) -> list[BatchSpec]:
        spec = {name: ArraySpec((self._rows, *a.shape[1:]), str(a.dtype)) for name, a in self._arrays.items()}
        return [spec | {"weights": ArraySpec((self._rows,), "float32")}]

    def make_epoch(self, index: int) -> _Epoch:
        order = np.random.default_rng((self._seed, index)).permutation(self._count)
        return _Epoch(self._arrays, order, self._rows)

    def describe(self) -> str:
        return f"{self._report}\nbatches        {len(self.epoch(0)):,} an epoch, {self._rows} rows"


def array_batches(arrays: Mapping[str, np.ndarray], rows: int) -> list[EvaluationBatch]:
    """Every example once, in order, in batches of one shape."""
    count = len(next(iter(arrays.values())))
    epoch = _Epoch(arrays, np.arange(count), rows)
    places = [i * rows + np.arange(rows) for i in range(len(epoch))]
    return [EvaluationBatch(epoch.batch(i, (0,), 1), np.where(p < count, p, -1)) for i, p in enumerate(places)]


def describe_images(dataset: ImageDataset) -> str:
    """How many there are, for the start of a run."""
    return "\n".join(f"{name:<14} {len(split.images):,} images" for name, split in dataset.splits.items())
