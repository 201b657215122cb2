"""Byte-level BPE (Radford et al. 2019, section 2.2): merges of bytes within words, so that no text is unknown."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Self

import tokenizers

from transformer_jax.data.tokenizers import BOS, EOS, PAD, UNK

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
FIRST = BOS + 1


class ByteLevelTokenizer:
    """Text to ids and back, as a `TextTokenizer`.

    Args:
      content: JSON of "vocab", the id of each piece, from 4 on; "merges", pairs of pieces, most frequent first; and
        "vocab_size", which may leave room for ids that have no piece.
    """

    kind = "byte_bpe"

    def __init__(self, content: bytes) -> None:
        found: dict[str, Any] = json.loads(content)
        self._content, self.vocab_size = content, int(found["vocab_size"])
        self.vocab: dict[str, int] = found["vocab"]
        self.merges = [(str(a), str(b)) for a, b in found["merges"]]
        self._names = {number: piece for piece, number in self.vocab.items()}
        self._engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=self.vocab, merges=self.merges))
        self._engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._engine.decoder = tokenizers.decoders.ByteLevel()

    @classmethod
    def make(cls, vocab: dict[str, int], merges: Sequence[tuple[str, str]], vocab_size: int) -> Self:
        record = {"vocab": vocab, "merges": [list(pair) for pair in merges], "vocab_size": vocab_size}
        return cls(json.dumps(record, ensure_ascii=False).encode())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Self:
        """Learns merges of pairs of pieces by how frequent they are; with fewer where the text has no more."""
        engine = tokenizers.Tokenizer(tokenizers.models.BPE())
        engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - FIRST,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        engine.train_from_iterator(texts, trainer)
        model = json.loads(engine.to_str())["model"]
        vocab = {piece: number + FIRST for piece, number in model["vocab"].items()}
        return cls.make(vocab, [tuple(pair) for pair in model["merges"]], FIRST + len(vocab))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._engine.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        rows = [[int(token) for token in row if int(token) not in (PAD, EOS, UNK, BOS)] for row in ids]
        return self._engine.decode_batch(rows, skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [SPECIAL[i] if i < FIRST else self._names.get(i, f"<unused {i}>") for i in map(int, ids)]

    def serialize(self) -> bytes:
        return self._content
