"""MNIST from IDX files: splits, padding, captions, and files that are not what they should be."""

import gzip

import numpy as np
import pytest

from transformer_jax.data.images import ImageDatasetConfig, load_images
from transformer_jax.data.mnist import WORDS, caption_of, digit_of
from transformer_jax.errors import UserError


def write(folder, part, count):
    folder.mkdir(exist_ok=True)
    labels = (np.arange(count) * 7 % 10).astype(np.uint8)
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 3, 5] = np.arange(count) % 251
    for kind, array, rank in (("images", images, 3), ("labels", labels, 1)):
        header = bytes([0, 0, 8, rank]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / f"{part}-{kind}-idx{rank}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return labels


def test_the_test_images_alone_are_cut_in_three(tmp_path):
    labels = write(tmp_path, "t10k", 40)
    dataset = load_images(ImageDatasetConfig("mnist", str(tmp_path)))
    assert {name: len(split.images) for name, split in dataset.splits.items()} == {
        "train": 32, "validation": 4, "test": 4,
    }  # fmt: skip
    test = dataset.split("test")
    np.testing.assert_array_equal(test.labels, labels[9::10])
    assert test.images.shape == (4, 32, 32, 1)
    np.testing.assert_array_equal(test.images[:, 5, 7, 0], np.arange(9, 40, 10))
    assert [digit_of(caption) for caption in test.captions] == test.labels.tolist()
    with pytest.raises(UserError, match="--split=unseen: mnist has only train, validation, test"):
        dataset.split("unseen")


def test_with_training_files_its_last_images_validate(tmp_path, monkeypatch):
    monkeypatch.setattr("transformer_jax.data.mnist.VALIDATION", 5)
    write(tmp_path, "t10k", 10)
    write(tmp_path, "train", 30)
    dataset = load_images(ImageDatasetConfig("mnist", str(tmp_path)))
    assert {name: len(split.images) for name, split in dataset.splits.items()} == {
        "train": 25, "validation": 5, "test": 10,
    }  # fmt: skip
    np.testing.assert_array_equal(dataset.splits["validation"].images[:, 5, 7, 0], np.arange(25, 30))


def test_captions_name_their_digit():
    assert [digit_of(caption_of(digit, index)) for digit in range(10) for index in range(3)] == [
        digit for digit in range(10) for _ in range(3)
    ]
    assert (digit_of("the digit 4"), digit_of("A Seven."), digit_of("two or three"), digit_of("a dog")) == (
        4, 7, None, None,
    )  # fmt: skip
    assert len(WORDS) == 10


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"lacks t10k-images-idx3-ubyte\.gz"):
        load_images(ImageDatasetConfig("mnist", str(tmp_path)))
    write(tmp_path, "t10k", 10)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-5]))
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is no whole gzipped IDX file"):
        load_images(ImageDatasetConfig("mnist", str(tmp_path)))
    with pytest.raises(UserError, match="captioned_shapes reads no files"):
        ImageDatasetConfig("captioned_shapes", str(tmp_path))


def test_the_published_test_images(shared_data):
    dataset = load_images(ImageDatasetConfig("mnist", str(shared_data / "mnist")))
    assert [len(split.images) for split in dataset.splits.values()] == [8000, 1000, 1000]
    assert np.bincount(np.concatenate([s.labels for s in dataset.splits.values()])).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip
