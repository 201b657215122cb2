"""Byte-level BPE: nothing of a text is lost, merges are learnt, and a tokenizer is what its file says."""

import pytest

from tests.made_text import tiny_text_config, write_text
from transformer_jax.data.byte_level import ByteLevelTokenizer
from transformer_jax.data.text import load_text
from transformer_jax.data.text_tokenizers import load_text_tokenizer, save_text_tokenizer, train_text_tokenizer
from transformer_jax.experiment import parse_config

TEXTS = ["one one.\n", "  two\tthree…", "", "ß Ünïcode 漢字 🙂\x00", "<|endoftext|></s>"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    data = write_text(tmp_path_factory.mktemp("text"))
    config = parse_config(tiny_text_config(data, tokenizer__kind="byte_bpe", tokenizer__vocab_size=280))
    return train_text_tokenizer(load_text(config.dataset), config.tokenizer)


def test_texts_come_back_whole(tokenizer):
    ids = tokenizer.encode(TEXTS)
    assert all(4 <= token < tokenizer.vocab_size for row in ids for token in row)
    assert tokenizer.decode(ids) == TEXTS
    assert tokenizer.decode([[3, *row, 1, 0, 0] for row in ids]) == TEXTS


def test_frequent_words_are_one_token(tokenizer):
    assert tokenizer.vocab_size <= 280
    assert len(tokenizer.encode([" three"])[0]) < len(" three")
    assert tokenizer.pieces([0, 1, 2, 3]) == ["<pad>", "</s>", "<unk>", "<s>"]
    names = tokenizer.pieces(tokenizer.encode(["\x80 a"])[0])
    assert "".join(names) == "ÂĢĠa"  # bytes that cannot be printed, as GPT-2 writes them


def test_what_is_saved_is_what_is_read(tokenizer, tmp_path):
    save_text_tokenizer(tokenizer, tmp_path)
    again = load_text_tokenizer(tmp_path)
    assert again.kind == "byte_bpe"
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS)


def test_merges_apply_in_their_order():
    vocab = {name: number for number, name in enumerate("abc", 4)} | {"bc": 7, "ab": 8}
    first = ByteLevelTokenizer.make(vocab, [("b", "c"), ("a", "b")], 12)
    assert first.encode(["abc"]) == [[4, 7]]
    assert ByteLevelTokenizer.make(vocab, [("a", "b"), ("b", "c")], 12).encode(["abc"]) == [[8, 6]]
    assert first.vocab_size == 12
    assert first.pieces([11]) == ["<unused 11>"]
