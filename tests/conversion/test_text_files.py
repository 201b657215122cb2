"""Tokenizers as Transformers reads them: the same ids and the same text, by the engine that it uses."""

import json

import pytest
import tokenizers

from tests.made_text import tiny_text_config, write_text
from transformer_jax.conversion.text_files import END, read_byte_level, text_tokenizer_files, vocabulary
from transformer_jax.data.text import load_text
from transformer_jax.data.text_tokenizers import train_text_tokenizer
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config

KINDS = {"character": 64, "byte": 260, "bpe": 285, "unigram": 280, "byte_bpe": 280}
TEXTS = ["one one.", "seven seven.\ntwo two.", "  three   five\n\n", "six 漢 ü", "threesevenone"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


def trained(data, kind):
    config = parse_config(tiny_text_config(data, tokenizer__kind=kind, tokenizer__vocab_size=KINDS[kind]))
    return train_text_tokenizer(load_text(config.dataset), config.tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_the_same_there(kind, data):
    tokenizer = trained(data, kind)
    files = text_tokenizer_files(tokenizer, end_begins=False, max_length=48)
    engine = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in TEXTS:
        (ids,) = tokenizer.encode([text])
        assert engine.encode(text).ids == ids, text
        assert engine.decode(ids) == tokenizer.decode([ids])[0]
    assert engine.encode("</s><s>").ids == [1, 3]
    names = vocabulary(tokenizer)
    assert len(set(names)) == len(names) == tokenizer.vocab_size
    assert [names.index(token) for token in engine.encode(TEXTS[0]).tokens] == tokenizer.encode(TEXTS[:1])[0]


def test_gpt2s_own_files_both_ways(data, tmp_path):
    tokenizer = trained(data, "byte_bpe")
    files = text_tokenizer_files(tokenizer, end_begins=True, max_length=48)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    vocab = json.loads(files["vocab.json"])
    assert vocab[END] == len(vocab) - 1 == tokenizer.vocab_size - 4
    read = read_byte_level(tmp_path, {"vocab_size": len(vocab)})
    assert read.end == vocab[END]
    assert read.tokenizer.vocab == tokenizer.vocab
    assert read.tokenizer.encode(TEXTS) == tokenizer.encode(TEXTS)
    with pytest.raises(UserError, match=r"does not fit the vocab_size of its config\.json, 9"):
        read_byte_level(tmp_path, {"vocab_size": 9})
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"neither vocab\.json and merges\.txt nor tokenizer\.json"):
        read_byte_level(tmp_path, {"vocab_size": len(vocab)})
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, tokenizer.merges))
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").unlink()
    assert read_byte_level(tmp_path, {"vocab_size": len(vocab)}).tokenizer.encode(TEXTS) == tokenizer.encode(TEXTS)


def test_other_tokenizers_have_no_ids_of_gpt2(data):
    with pytest.raises(UserError, match=r"tokenizer\.kind is 'character'; .* 'byte_bpe'"):
        text_tokenizer_files(trained(data, "character"), end_begins=True, max_length=48)
