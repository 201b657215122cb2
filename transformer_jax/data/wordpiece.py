"""WordPiece (Wu et al. 2016) as BERT uses it: white space and, uncased, capitals and accents are not kept."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Self

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from transformer_jax.data.tokenizers import UNK

SPECIAL = ("[PAD]", "[SEP]", "[UNK]", "[CLS]", "[MASK]")
"""The names of the first ids: padding, end, unknown and beginning, as in all tokenizers here, and masks."""
MASK = SPECIAL.index("[MASK]")
PREFIX = "##"


class WordPieceTokenizer:
    """Text to ids and back, as a `TextTokenizer`; decoding joins words by single spaces.

    Args: content: JSON of "pieces", the names of the ids from 5 on, and "lowercase".
    """

    def __init__(self, content: bytes) -> None:
        found: dict[str, Any] = json.loads(content)
        self._content = content
        self.lowercase: bool = found["lowercase"]
        self.kind = "wordpiece" if self.lowercase else "wordpiece_cased"
        self.names: list[str] = [*SPECIAL, *found["pieces"]]
        self.vocab_size = len(self.names)
        self.engine = engine({name: i for i, name in enumerate(self.names)}, self.lowercase)

    @classmethod
    def make(cls, pieces: Sequence[str], lowercase: bool) -> Self:
        return cls(json.dumps({"pieces": list(pieces), "lowercase": lowercase}, ensure_ascii=False).encode())

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, lowercase: bool) -> Self:
        """Learns pieces by how much they help; fewer than asked for where the text has no more."""
        learner = engine({SPECIAL[UNK]: 0}, lowercase)
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size - len(SPECIAL), show_progress=False)
        learner.train_from_iterator(texts, trainer)
        vocab = learner.get_vocab()
        return cls.make([piece for piece in sorted(vocab, key=vocab.__getitem__) if piece not in SPECIAL], lowercase)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self.engine.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        rows = [[int(token) for token in row if token == UNK or int(token) >= len(SPECIAL)] for row in ids]
        return self.engine.decode_batch(rows, skip_special_tokens=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.names[int(token)] for token in ids]

    def serialize(self) -> bytes:
        return self._content


def engine(vocab: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """BERT's way to cut text: cleaned, split at white space and signs, each word into its longest pieces."""
    made = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=SPECIAL[UNK], max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix=PREFIX)
    return made
