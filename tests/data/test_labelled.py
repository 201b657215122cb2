"""Labelled texts: files, splits and shares of them, and the batches of ids that they become."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transformer_jax.data.label_batches import (
    UNLABELLED,
    LabelledBatches,
    LabelledBatchingConfig,
    TextEncoder,
    labelled_batches,
)
from transformer_jax.data.labelled import LabelledDatasetConfig, label_ids, load_labelled, read_movie_reviews
from transformer_jax.data.text_tokenizers import ExactByteTokenizer
from transformer_jax.errors import UserError

TOKENIZER = ExactByteTokenizer()
COLUMNS = "-DOCSTART- -X- O\n\nAda NNP B-PER\nwrites VBZ O\n. . O\n\n\nBerlin NNP B-LOC\n"


def config(folder: Path, **changes: object) -> LabelledDatasetConfig:
    values = dict(
        name="labelled_files", path=str(folder), train="train.tsv", validation="", test="", texts=("text",),
        label="label", share=1.0,
    )  # fmt: skip
    return LabelledDatasetConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_files_of_lines_and_of_columns(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("good\tA fine film.\nbad\tNot so.\ngood\tYes\tIndeed\n")
    (tmp_path / "valid.tsv.gz").write_bytes(gzip.compress(b"bad\tNo.\n"))
    dataset = load_labelled(config(tmp_path, validation="valid.tsv.gz"), "sentence", 1)
    assert dataset.labels == ("bad", "good")
    assert dataset.splits["train"].texts == [("A fine film.",), ("Not so.",), ("Yes", "Indeed")]
    assert dataset.splits["validation"].labels == [("bad",)]
    (tmp_path / "a.conll").write_text(COLUMNS)
    words = load_labelled(config(tmp_path, name="column_files", train="a.conll"), "token", 1)
    assert words.splits["train"].texts == [("Ada", "writes", "."), ("Berlin",)]
    assert words.splits["train"].labels == [("B-PER", "O", "O"), ("B-LOC",)]
    assert words.digest != dataset.digest


def test_bad_files_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("good\tyes\nbad no tab\n")
    with pytest.raises(UserError, match=r"train\.tsv: line 2 is 'bad no tab'"):
        load_labelled(config(tmp_path), "sentence", 1)
    (tmp_path / "train.tsv").write_text("good\n")
    with pytest.raises(UserError, match=r"train\.tsv: line 1"):
        load_labelled(config(tmp_path, name="column_files"), "token", 1)
    with pytest.raises(UserError, match=r"labelled_files.*model\.level is 'token'"):
        load_labelled(config(tmp_path), "token", 1)
    with pytest.raises(UserError, match=r"nowhere\.tsv, which is no file"):
        load_labelled(config(tmp_path, train="nowhere.tsv"), "sentence", 1)
    with pytest.raises(UserError, match=r"lacks rt-polarity\.pos"):
        load_labelled(config(tmp_path, name="movie_reviews", train=""), "sentence", 1)
    with pytest.raises(UserError, match=r"share is 0"):
        config(tmp_path, share=0.0)


def test_a_label_that_training_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("good\tyes\n")
    (tmp_path / "valid.tsv").write_text("awful\tno\n")
    dataset = load_labelled(config(tmp_path, validation="valid.tsv"), "sentence", 1)
    with pytest.raises(UserError, match=r"dataset\.validation has the label 'awful'.*theirs are good"):
        label_ids(dataset.splits["validation"], dataset.labels, "dataset.validation")


def write_reviews(folder: Path, count: int = 200) -> Path:
    for name, word in (("pos", "good"), ("neg", "bad")):
        lines = [f"a {word} film number {i}" for i in range(count)]
        (folder / f"rt-polarity.{name}").write_text("\n".join(lines) + "\n")
    return folder


def test_reviews_are_split_by_their_text_and_shares_by_the_seed(tmp_path: Path) -> None:
    splits = read_movie_reviews(write_reviews(tmp_path))
    sizes = {name: len(split) for name, split in splits.items()}
    assert sum(sizes.values()) == 400
    assert 20 < sizes["test"] < 60 and 20 < sizes["validation"] < 60  # noqa: PT018
    texts = [set(split.texts) for split in splits.values()]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    # Other lines around it do not move a text to another split.
    (tmp_path / "rt-polarity.neg").write_text("another one\n")
    assert splits["test"].texts[0] in read_movie_reviews(tmp_path)["test"].texts
    train = splits["train"]
    a, b, again = (train.some(0.1, seed) for seed in (1, 2, 1))
    assert len(a) == round(0.1 * len(train))
    assert a.texts == again.texts != b.texts
    assert {label for (label,) in a.labels} == {"positive", "negative"}


def test_the_shared_reviews(shared_data: Path) -> None:
    splits = read_movie_reviews(shared_data / "movie_reviews")
    assert {name: len(split) for name, split in splits.items()} == {"train": 8554, "validation": 1047, "test": 1061}


def decoded(row: np.ndarray) -> str:
    return "".join({3: "^", 1: "$", 0: "_"}.get(int(i), chr(max(i - 4, 0))) for i in row)


def test_texts_pairs_and_words_as_rows() -> None:
    encode = TextEncoder(TOKENIZER, 12, words=False)
    rows = encode([("abc",), ("abcdefghijklmnop",), ("ab", "cd"), ("abcdefghij", "xy"), ("ab", "uvwxyzuvwxyz")])
    shown = [decoded(np.asarray(row.ids)) for row in rows]
    assert shown == ["^abc$", "^abcdefghij$", "^ab$cd$", "^abcdefg$xy$", "^ab$uvwxyzu$"]
    assert [row.second for row in rows] == [0, 0, 3, 3, 8]
    (words,) = TextEncoder(TOKENIZER, 12, words=True)([("ab", "cd", "efg", "h")])
    assert decoded(np.asarray(words.ids)) == "^ab cd efg$"
    assert words.words == [1, 3, 6]


@pytest.fixture
def made(tmp_path: Path) -> Callable[[str], LabelledBatches]:
    def make(level: str) -> LabelledBatches:
        rng = np.random.default_rng(0)
        texts = [" ".join("abcdef"[: rng.integers(1, 6)] for _ in range(rng.integers(1, 8))) for _ in range(61)]
        if level == "sentence":
            (tmp_path / "train.tsv").write_text("".join(f"{len(text) % 2}\t{text}\n" for text in texts))
        else:
            lines = ("".join(f"{word} {len(word)}\n" for word in text.split()) for text in texts)
            (tmp_path / "train.tsv").write_text("\n".join(lines))
        name = "labelled_files" if level == "sentence" else "column_files"
        dataset = load_labelled(config(tmp_path, name=name), level, 1)  # type: ignore[arg-type]
        words = level == "token"
        return LabelledBatches(
            dataset, TextEncoder(TOKENIZER, 48, words), LabelledBatchingConfig(256, 3, 48, 4), words, seed=1
        )

    return make


@pytest.mark.parametrize("level", ["sentence", "token"])
def test_every_example_is_in_an_epoch_once_with_its_label(made: Callable, level: str) -> None:
    batches = made(level)
    epoch = batches.epoch(0)
    kinds = {tuple(spec["inputs"].shape) for spec in batches.specs}
    seen = []
    for index in range(len(epoch)):
        batch = epoch.batch(index, (0,), 1)
        assert batch["inputs"].shape in kinds
        parts = [epoch.batch(index, (block,), 2) for block in (0, 1)]
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in parts]))
        for row, labels in zip(batch["inputs"], batch["labels"], strict=True):
            text = decoded(row).strip("_^$")
            if level == "sentence":
                assert labels == (len(text) % 2 if text else UNLABELLED)
            else:
                assert [int(v) + 1 for v in labels if v != UNLABELLED] == [len(word) for word in text.split()]
            seen += [text] if text else []
    assert len(seen) == 61
    assert [epoch.batch(0, (0,), 1)["inputs"].tolist()] != [made(level).epoch(1).batch(0, (0,), 1)["inputs"].tolist()]


def test_evaluation_takes_every_text_once_in_few_lengths() -> None:
    settings = LabelledBatchingConfig(512, 3, 100, 4)
    texts = [("a" * n,) for n in (3, 90, 20, 33, 61, 98, 200, 1)]
    encoded = TextEncoder(TOKENIZER, 100, words=False)(texts)
    batches = list(labelled_batches(encoded, [[i % 2] for i in range(8)], settings, words=False))
    assert {batch.batch["inputs"].shape[1] for batch in batches} == {32, 64, 100}
    placed = [
        (int(e), label) for b in batches for e, label in zip(b.examples, b.batch["labels"], strict=True) if e >= 0
    ]
    assert sorted(placed) == [(i, i % 2) for i in range(8)]
