"""MNIST (LeCun et al. 1998): handwritten digits with captions, padded from 28 x 28 to 32 x 32 pixels.

Read from a local folder, or fetched and checked against the sums that TFDS has of its `mnist`.
"""

import gzip
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.captioned_shapes import SIDE, image_features
from transformer_jax.data.multi30k import download
from transformer_jax.data.parallel_text import content_hash
from transformer_jax.data.storage import Example, PairsBuilder
from transformer_jax.errors import UserError

URL = "https://storage.googleapis.com/cvdf-datasets/mnist"
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CHANNELS, CLASSES = 1, 10
VALIDATION = 5_000  # the last of the 60,000 training images
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("the digit {}", "a handwritten {}", "the number {} in white on black")


class Mnist(PairsBuilder):
    """TFDS builder of captioned digits."""


def open_mnist(path: str) -> Mnist:
    """The builder. ``path`` is a folder with the files of `SHA256`, or "" to download them.

    A folder may lack the training files: of every ten of its test images eight are then for training, one for
    validation and one for testing.

    Raises: UserError for a missing or damaged file, or a failed download.
    """
    folder = Path(path).expanduser() if path else cache_directory() / "downloads" / "mnist"
    if not path:
        with exclusive("mnist-download"):
            for name, sha256 in SHA256.items():
                download(f"{URL}/{name}", folder / name, sha256)
    files = {part: [folder / name for name in SHA256 if name.startswith(part)] for part in ("train", "t10k")}
    if not all(file.is_file() for file in files["train"]):
        del files["train"]
    for file in files["t10k"]:
        if not file.is_file():
            raise UserError(
                f'dataset.path is {path!r}, which lacks {file.name}: give the folder that has it, or dataset.path="" '
                "to download it"
            )
    return Mnist(
        variant=content_hash(files),
        splits={split: partial(_examples, files, split) for split in ("train", "validation", "test")},
        features=image_features(CHANNELS),
    )


def caption_of(digit: int, index: int) -> str:
    """The caption of example ``index``: the wordings take turns."""
    return CAPTIONS[index % len(CAPTIONS)].format(WORDS[digit])


def digit_of(caption: str) -> int | None:
    """The one digit that a caption names as a word or a figure; None where it names none or several."""
    words = caption.lower().replace(".", " ").replace(",", " ").split()
    found = {WORDS.index(w) if w in WORDS else int(w) for w in words if w in WORDS or (len(w) == 1 and w.isdecimal())}
    return found.pop() if len(found) == 1 else None


def _examples(files: Mapping[str, list[Path]], split: str) -> Iterator[Example]:
    whole = "train" in files
    images, labels = map(_read_idx, files["train" if whole and split != "test" else "t10k"])
    index = np.arange(len(images))
    if whole:
        held_out = index >= len(images) - VALIDATION
        kept = {"train": ~held_out, "validation": held_out, "test": index >= 0}[split]
    else:
        kept = {"train": index % 10 < 8, "validation": index % 10 == 8, "test": index % 10 == 9}[split]
    margin = (SIDE - images.shape[1]) // 2
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))[..., None]
    for i in np.flatnonzero(kept):
        yield {"image": padded[i], "caption": caption_of(int(labels[i]), int(i)), "label": int(labels[i])}


def _read_idx(file: Path) -> np.ndarray:
    """The array uint8 of an IDX file, gzip."""
    try:
        content = gzip.decompress(file.read_bytes())
        rank = content[3]
        shape = np.frombuffer(content, ">u4", rank, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise UserError(f"{file} is no whole gzipped IDX file ({error}): fetch it again") from error
