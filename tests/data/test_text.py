"""Text by the name of its dataset: the installed Python, Shakespeare, files, and TFDS's, prepared in a data_dir."""

import gzip
import importlib
import random
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds

from transformer_jax.data import text_sources
from transformer_jax.data.labelled import LabelledDatasetConfig, load_labelled
from transformer_jax.data.text import TextDatasetConfig, load_text
from transformer_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))


def config(**changes: Any) -> TextDatasetConfig:
    values = dict(name="text_files", path="", train="", validation="", test="", feature="text", documents="whole")
    return TextDatasetConfig(**{**values, **changes})


def read(**changes: Any) -> dict[str, list[str]]:
    return {split: list(documents) for split, documents in load_text(config(**changes)).splits.items()}


def prepare(name: str, splits: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Made examples under a dataset's name and version, written by TFDS as its builder would."""
    importlib.import_module("tensorflow_datasets.text.glue")
    kind = tfds.builder_cls(name.split("/")[0])
    named = {split: list(enumerate(examples)) for split, examples in splits.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "_split_generators", lambda self, dl_manager: {s: iter(e) for s, e in named.items()})
        tfds.disable_progress_bar()
        tfds.builder(name, data_dir=str(folder), file_format="array_record").download_and_prepare()


def test_what_python_carries_is_split_by_name(monkeypatch):
    """Reference and library; what is held out does not depend on what else there is."""
    files = random.Random(0).sample(text_sources._library_files(), 60)
    monkeypatch.setattr(text_sources, "_library_files", lambda: files)
    found = read(name="python_text")
    topics = importlib.import_module("pydoc_data.topics").topics
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    wanted = [text for text in [*texts, *topics.values()] if text.strip()]
    assert sorted(text for texts in found.values() for text in texts) == sorted(wanted)
    assert len(found["train"]) > 10 * len(found["validation"]) > 0
    monkeypatch.setattr(text_sources, "_library_files", lambda: files[:30])
    fewer = read(name="python_text")
    assert all(set(texts) <= set(found[split]) for split, texts in fewer.items())


def test_shakespeare_is_cut_where_its_last_tenth_begins(tmp_path):
    text = "To be, or not to be\n" * 10
    (tmp_path / "input.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read(name="tiny_shakespeare", path=str(tmp_path)) == {"train": [text[:180]], "validation": [text[180:]]}
    (tmp_path / "input.txt.gz").unlink()
    with pytest.raises(UserError, match=r"lacks input\.txt or input\.txt\.gz"):
        read(name="tiny_shakespeare", path=str(tmp_path))


def test_the_shared_shakespeare_is_nanogpts(shared_data):
    found = read(name="tiny_shakespeare", path=str(shared_data / "tiny_shakespeare"))
    assert {split: len(text) for split, (text,) in found.items()} == {"train": 1_003_854, "validation": 111_540}


@pytest.mark.parametrize(
    ("documents", "wanted"),
    [
        ("whole", ["a\nb\n\n \nc d\n", "e\n"]),
        ("lines", ["a", "b", "c d", "e"]),
        ("paragraphs", ["a\nb", "c d\n", "e\n"]),
    ],
)
def test_files_are_cut_into_documents(documents, wanted, tmp_path):
    (tmp_path / "1.txt").write_text("a\nb\n\n \nc d\n")
    (tmp_path / "2.txt.gz").write_bytes(gzip.compress(b"e\n"))
    assert read(path=str(tmp_path), train="*.txt,2.txt.gz", documents=documents) == {"train": wanted}


def test_tfds_text_by_name_and_slices_of_it(tmp_path):
    texts = [f"sentence {i}" for i in range(20)]
    prepare("lm1b", {"train": [{"text": text} for text in texts], "test": [{"text": "last"}]}, tmp_path)
    named = dict(name="lm1b", path=str(tmp_path))
    found = read(**named, train="train[:90%]", validation="train[90%:]", test="test")
    assert {split: len(texts) for split, texts in found.items()} == {"train": 18, "validation": 2, "test": 1}
    assert sorted(found["train"] + found["validation"]) == sorted(texts)
    for changes, message in (
        (dict(train="train", feature="title"), "dataset.feature is 'title', but the texts of lm1b are text"),
        (dict(train="train", validation="valid"), "has the splits train, test, and no other"),
        (dict(validation="test"), "dataset.train is empty"),
        (dict(train="train", name="lm1bb"), "Did you mean lm1b"),
    ):
        with pytest.raises(UserError, match=message):
            read(**{**named, **changes})


def test_tfds_labelled_pairs_by_name(tmp_path):
    examples = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2, "idx": i} for i in range(6)]
    prepare("glue/mrpc", {"train": examples, "validation": examples[:2]}, tmp_path)
    values = dict(name="glue/mrpc", path=str(tmp_path), train="train", validation="validation", test="", share=1.0)
    found = load_labelled(
        LabelledDatasetConfig(**values, texts=("sentence1", "sentence2"), label="label"), "sentence", 1
    )
    pairs = dict(zip(found.splits["train"].texts, found.splits["train"].labels, strict=True))
    names = ("not_equivalent", "equivalent")
    assert pairs == {(f"a {i}", f"b {i}"): (names[i % 2],) for i in range(6)}
    with pytest.raises(UserError, match=r"dataset\.texts names 'text', but glue/mrpc has sentence1, sentence2"):
        load_labelled(LabelledDatasetConfig(**values, texts=("text",), label="label"), "sentence", 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(train="nowhere.txt"), r"dataset\.train names .*nowhere\.txt, which is no file"),
        (dict(validation="a.txt"), r"dataset\.train is empty"),
        (dict(train="latin.txt"), r"latin\.txt is not UTF-8"),
        (dict(train="blank.txt"), "the train split holds no text"),
        (dict(name="python_text", train="a.txt"), "python_text has its own splits"),
    ],
)
def test_what_is_no_text_is_named(changes, message, tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read(**{"path": str(tmp_path) if changes.get("name") is None else "", **changes})
