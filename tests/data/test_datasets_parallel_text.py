"""The user's own files: nothing shifts one side against the other, and whatever is wrong is named."""

import gzip

import pytest

from transformer_jax.data.parallel_text import open_parallel_text, read_lines, read_pairs
from transformer_jax.errors import UserError


def pairs(*files):
    return [(pair["source"], pair["target"]) for pair in read_pairs(list(files))]


def test_only_line_feeds_end_lines(tmp_path):
    inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    (tmp_path / "a.en").write_bytes(f"{inside}\none\r\n\nlast".encode())
    (tmp_path / "a.de").write_bytes("\ufeffeins\n\u2028\n zwei \nletzte\n".encode())
    expected = [(inside, "eins"), ("one", "\u2028"), ("", " zwei "), ("last", "letzte")]
    assert pairs(tmp_path / "a.en", tmp_path / "a.de") == expected


def test_tsv_and_gzip_read_the_same(tmp_path):
    text = "one\teins\r\ntwo \u2028\tzwei\n\t\n"
    (tmp_path / "a.tsv").write_bytes(text.encode())
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    assert pairs(tmp_path / "a.tsv") == [("one", "eins"), ("two \u2028", "zwei"), ("", "")]
    assert pairs(tmp_path / "a.tsv.gz") == pairs(tmp_path / "a.tsv")


def test_unequal_line_counts_give_both_counts(tmp_path):
    (tmp_path / "a.en").write_text("1\n2\n3\n4\n5")
    (tmp_path / "a.de").write_text("1\n2\n3\n")
    with pytest.raises(UserError, match=r"a\.de has 3 lines, a\.en has 5"):
        pairs(tmp_path / "a.en", tmp_path / "a.de")
    with pytest.raises(UserError, match=r"a\.de has 3 lines, a\.en has 5"):
        pairs(tmp_path / "a.de", tmp_path / "a.en")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\nc\n", "line 2: 0 tabs, where exactly one"),
        ("a\tb\tc\n", "line 1: 2 tabs"),
        ("a\tb\n\nc\td\n", "line 2: 0 tabs"),
        ("", "no lines, the dataset would be empty"),
    ],
)
def test_malformed_tsv(tmp_path, content, message):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(UserError, match=message):
        pairs(tmp_path / "a.tsv")


@pytest.mark.parametrize("encoding", ["latin1", "utf-16"])
def test_other_encodings_name_file_and_line(tmp_path, encoding):
    (tmp_path / "a.en").write_bytes("für\n".encode(encoding))
    with pytest.raises(UserError, match=r"a\.en, line 1: byte .* is not UTF-8\. Convert the file"):
        list(read_lines(tmp_path / "a.en"))


@pytest.mark.parametrize(
    "content", [b"plain text\n", gzip.compress(b"some text\n" * 99)[:-9]], ids=["plain", "truncated"]
)
def test_broken_gzip(tmp_path, content):
    (tmp_path / "a.en.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.en\.gz is not a whole gzip file"):
        list(read_lines(tmp_path / "a.en.gz"))


@pytest.mark.parametrize(
    ("path", "train", "message"),
    [
        ("", "", "dataset.train is empty: name the training files"),
        ("nowhere", "a.tsv", "no such folder"),
        (".", "missing.tsv", "dataset.train names .*missing.tsv, which is not a file"),
        (".", "a.en,missing.de", "missing.de, which is not a file"),
        (".", "a.en,a.de,a.fr", "give two line-aligned files"),
        (".", "a.en,", "give two line-aligned files"),
    ],
)
def test_names_that_lead_nowhere(tmp_path, monkeypatch, path, train, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.en", "a.de", "a.fr"):
        (tmp_path / name).write_text("1\n")
    with pytest.raises(UserError, match=message):
        open_parallel_text("en", "de", path, {"train": train, "validation": "", "test": ""})
