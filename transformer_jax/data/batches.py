"""Endless training batches, a pure function of (seed, epoch, batch), resumable at any batch: what every family shares.

A family's data is a subclass of `Batches` that makes epochs; the order inside them, the thread that makes the next
one, and the iterator with its position are here.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import grain
import numpy as np

from transformer_jax.errors import UserError

Batch = dict[str, np.ndarray]
"""Arrays by name, each with the rows of the batch as its leading axis."""
START = {"epoch": 0, "batch": 0}


class ArraySpec(NamedTuple):
    """Shape and dtype of one array of a batch."""

    shape: tuple[int, ...]
    dtype: str


BatchSpec = dict[str, ArraySpec]
"""What the compiler must know of a kind of batch."""


class EvaluationBatch(NamedTuple):
    """A batch, and the index in its split of each row's example: int64[rows], -1 for padding rows."""

    batch: Batch
    examples: np.ndarray


class Epoch(Protocol):
    """One pass over the training split: its batches in order."""

    def __len__(self) -> int:
        """How many batches."""

    def batch(self, index: int, blocks: Sequence[int], count: int) -> Batch:
        """Of the rows of batch `index`, cut into `count` equal blocks, those of `blocks`, one after another."""


class Batches(ABC):
    """The training split as batches of a few shapes."""

    counted: str
    """The array of a batch whose positions are counted as tokens, padding included."""

    def __init__(self) -> None:
        self._epochs: dict[int, Epoch] = {}
        self._background: dict[int, threading.Thread] = {}

    @property
    @abstractmethod
    def specs(self) -> Sequence[BatchSpec]:
        """Every kind of batch there can be."""

    @abstractmethod
    def describe(self) -> str:
        """What was made of the data, as a few lines for the start of a run."""

    @abstractmethod
    def make_epoch(self, index: int) -> Epoch:
        """Epoch `index`: a pure function of it."""

    def epoch(self, index: int) -> Epoch:
        """Epoch `index`, made on first use; the one after it is then made in the background."""
        if index in self._background:
            self._background.pop(index).join()
        if index not in self._epochs:
            self._keep_epoch(index)
        following = index + 1
        if following not in self._epochs and following not in self._background:
            # A daemon, so that a program that wants to end does not wait for it. Should it fail, then so does
            # whoever asks for its epoch, in the lines above.
            thread = threading.Thread(target=self._keep_epoch, args=(following,), daemon=True)
            self._background[following] = thread
            thread.start()
        for old in set(self._epochs) - {index, following}:
            del self._epochs[old]
        return self._epochs[index]

    def _keep_epoch(self, index: int) -> None:
        self._epochs[index] = self.make_epoch(index)

    def iterator(
        self, position: Mapping[str, int] = START, blocks: Sequence[int] = (0,), count: int = 1
    ) -> "BatchIterator":
        """Batches from `position` on, for ever: `blocks` of the `count` blocks of rows of each. See `BatchIterator`."""
        return BatchIterator(self, position, blocks, count)


class BatchIterator(Iterator[Batch]):
    """Endless batches, of which each process of a run makes its own rows alone.

    `position` is that of the batch to come: given to `Batches.iterator`, it continues exactly there, with
    any number of processes.

    Raises:
      UserError: there is no such position, or `count` does not divide the rows of the batches.
    """

    def __init__(self, batches: Batches, position: Mapping[str, int], blocks: Sequence[int], count: int):
        if set(position) != set(START) or min(position.values()) < 0:
            raise UserError(f"data position {dict(position)}: it must be like {START}, and not negative")
        rows = [spec[batches.counted].shape[0] for spec in batches.specs]
        if any(number % count for number in rows):
            raise UserError(
                f"{count} groups of devices cannot share batches of {rows} rows: "
                f"set batching.rows_multiple to a multiple of {count}"
            )
        self._made_by, self._share = batches, (tuple(blocks), count)
        length = len(batches.epoch(position["epoch"]))
        if position["batch"] > length:
            raise UserError(
                f"data position {dict(position)}: epoch {position['epoch']} has {length} batches, so the "
                "position was saved with another dataset, tokenizer, seed or batching"
            )
        self._open(position["epoch"], position["batch"])

    def _open(self, epoch: int, batch: int) -> None:
        made = self._made_by.epoch(epoch)
        if batch == len(made):
            return self._open(epoch + 1, 0)
        self._epoch, self._batch, self._batches = epoch, batch, len(made)
        plan = grain.MapDataset.range(batch, len(made)).map(lambda index: made.batch(int(index), *self._share))
        # Everything is in memory: reading ahead in threads costs more than it saves.
        self._rest = iter(plan.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    @property
    def position(self) -> dict[str, int]:
        """Where the next batch is: plain numbers, for a checkpoint."""
        if self._batch == self._batches:
            return {"epoch": self._epoch + 1, "batch": 0}
        return {"epoch": self._epoch, "batch": self._batch}

    def __next__(self) -> Batch:
        if self._batch == self._batches:
            self._open(self._epoch + 1, 0)
        self._batch += 1
        return next(self._rest)
