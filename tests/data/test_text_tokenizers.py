"""Tokenizers of text lose nothing, are kept whole, and know what they cannot do."""

import pytest

from transformer_jax.data.text import TextDatasetConfig, load_text
from transformer_jax.data.text_tokenizers import (
    TextTokenizerConfig,
    load_text_tokenizer,
    save_text_tokenizer,
    train_text_tokenizer,
)
from transformer_jax.data.tokenizers import EOS, UNK
from transformer_jax.errors import UserError

CODE = "def f(x):\n\tif x:\n\t\treturn  x  # two  spaces\n\n\nprint(f(1))\n"
HARD = ["", " ", "\n", "  a\n\n  b \t c\r\n", "naïve ½ 文 \u2028 🙂", CODE]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for i in range(8):
        (folder / f"{i}.py").write_text(CODE.replace("1", f"{i} + name_{i}") * 20 + CODE)
    return load_text(TextDatasetConfig("text_files", str(folder), "*.py", "", "", "text", "whole"))


@pytest.mark.parametrize(("kind", "size"), [("byte", 260), ("bpe", 330), ("unigram", 296)])
def test_nothing_is_lost(dataset, tmp_path, kind, size):
    made = train_text_tokenizer(dataset, TextTokenizerConfig(kind, size, 1.0))
    assert made.vocab_size == size
    rows = made.encode(HARD)
    assert made.decode(rows) == HARD
    assert made.decode([[*row, EOS] for row in rows]) == HARD
    assert max(max(row, default=0) for row in rows) < size
    assert len(made.pieces(range(size))) == size
    save_text_tokenizer(made, tmp_path)
    assert load_text_tokenizer(tmp_path).encode(HARD) == rows


def test_pieces_are_shorter_than_bytes(dataset):
    made = train_text_tokenizer(dataset, TextTokenizerConfig("bpe", 330, 1.0))
    assert len(made.encode([CODE])[0]) < 0.7 * len(CODE)


def test_characters_are_those_of_the_training_text(dataset, tmp_path):
    made = train_text_tokenizer(dataset, TextTokenizerConfig("character", 1000, 1.0))
    assert made.vocab_size == 4 + len(set("".join(dataset.splits["train"])))
    (row,) = made.encode([CODE])
    assert made.decode([row]) == [CODE]
    assert made.encode(["文x"])[0][0] == UNK
    frequent = train_text_tokenizer(dataset, TextTokenizerConfig("character", 7, 1.0))
    assert frequent.vocab_size == 7
    assert UNK not in frequent.encode([" \n"])[0]
    save_text_tokenizer(made, tmp_path)
    assert load_text_tokenizer(tmp_path).encode([CODE]) == [row]


def test_damage_is_found(dataset, tmp_path):
    save_text_tokenizer(train_text_tokenizer(dataset, TextTokenizerConfig("character", 99, 1.0)), tmp_path)
    content = bytearray((tmp_path / "text.model").read_bytes())
    content[3] ^= 1
    (tmp_path / "text.model").write_bytes(content)
    with pytest.raises(UserError, match=r"text\.model is damaged"):
        load_text_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("kind", "size", "message"), [("byte", 300, "260"), ("bpe", 260, "261"), ("character", 4, "at least 5")]
)
def test_sizes_that_cannot_be(kind, size, message):
    with pytest.raises(UserError, match=message):
        TextTokenizerConfig(kind, size, 1.0)


def test_a_vocabulary_that_the_text_cannot_fill(dataset):
    with pytest.raises(UserError, match=r"vocab_size is 9000.*at most \d+"):
        train_text_tokenizer(dataset, TextTokenizerConfig("bpe", 9000, 1.0))
