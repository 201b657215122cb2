"""WordPiece: BERT's way of cutting text, with the ids that all tokenizers here have."""

import numpy as np

from transformer_jax.data.text import in_memory
from transformer_jax.data.text_tokenizers import (
    ExactByteTokenizer,
    TextTokenizerConfig,
    ids_with_mask,
    load_text_tokenizer,
    marks_of,
    save_text_tokenizer,
    train_text_tokenizer,
)
from transformer_jax.data.tokenizers import UNK
from transformer_jax.data.wordpiece import WordPieceTokenizer

PIECES = ["un", "##aff", "##able", "the", "dog", "##s", ".", ",", "é", "E"]


def test_words_are_cut_into_their_longest_pieces() -> None:
    tokenizer = WordPieceTokenizer.make(PIECES, lowercase=True)
    (ids,) = tokenizer.encode(["The  unaffable DOGS,the cat."])
    assert tokenizer.pieces(ids) == ["the", "un", "##aff", "##able", "dog", "##s", ",", "the", "[UNK]", "."]
    assert ids[-2] == UNK
    assert tokenizer.decode([[3, *ids[:6], 4, 1]]) == ["the unaffable dogs"]
    assert marks_of(tokenizer) == (3, 1, 4)
    assert ids_with_mask(tokenizer) == tokenizer.vocab_size == 15
    cased = WordPieceTokenizer.make(PIECES, lowercase=False)
    assert cased.pieces(cased.encode(["E É The the"])[0]) == ["E", "[UNK]", "[UNK]", "the"]


def test_other_tokenizers_have_one_more_id_for_masks() -> None:
    tokenizer = ExactByteTokenizer()
    assert marks_of(tokenizer) == (3, 1, 260)
    assert ids_with_mask(tokenizer) == 261


def test_it_is_trained_saved_and_read(tmp_path) -> None:
    texts = ["the lowest of the low", "slower and slower", "The slowest LOW"] * 20
    config = TextTokenizerConfig("wordpiece", 40, 1.0)
    tokenizer = train_text_tokenizer(in_memory(texts), config)
    assert tokenizer.vocab_size <= 40
    save_text_tokenizer(tokenizer, tmp_path)
    again = load_text_tokenizer(tmp_path)
    assert again.kind == "wordpiece"
    assert again.encode(texts) == tokenizer.encode(texts)
    assert not any(UNK in row for row in tokenizer.encode(texts))
    assert tokenizer.decode(tokenizer.encode(["The slowest LOW"])) == ["the slowest low"]
    assert len(np.unique(tokenizer.pieces(range(tokenizer.vocab_size)))) == tokenizer.vocab_size
