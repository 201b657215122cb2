"""Captions as rows of tokens of one length, padded with tokens that each position has of its own."""

from collections.abc import Sequence

import numpy as np

from transformer_jax.data.text_tokenizers import TextTokenizer
from transformer_jax.data.tokenizers import UNK
from transformer_jax.errors import UserError


def caption_rows(captions: Sequence[str], tokenizer: TextTokenizer, length: int) -> np.ndarray:
    """int32[N, length]: the tokens of each caption; position s after its end has the token vocab_size + s.

    Raises: UserError for a caption of more tokens, or with characters that the tokenizer does not know.
    """
    rows = np.tile(tokenizer.vocab_size + np.arange(length, dtype=np.int32), (len(captions), 1))
    distinct = list(dict.fromkeys(captions))
    encoded = dict(zip(distinct, tokenizer.encode(distinct), strict=True))
    for row, caption in zip(rows, captions, strict=True):
        tokens = encoded[caption]
        if len(tokens) > length:
            raise UserError(
                f"the caption {caption!r} has {len(tokens)} tokens, model.text_length is {length}; shorten the "
                "one, or raise the other."
            )
        if UNK in tokens:
            raise UserError(f"the caption {caption!r} has characters that stand in no training caption; reword it.")
        row[: len(tokens)] = tokens
    return rows
