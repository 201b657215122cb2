"""Masked text: what is hidden and how, whole words, the same masks whoever makes them."""

import itertools

import numpy as np
import pytest

from transformer_jax.data.masking import (
    VALIDATION,
    Masker,
    MaskingConfig,
    fill_masked,
    masked_evaluation_batches,
    pack_between_marks,
)
from transformer_jax.data.packing import PackedEpoch, PackingConfig, encode_documents
from transformer_jax.data.text_tokenizers import ExactByteTokenizer, marks_of
from transformer_jax.data.tokenizers import EOS
from transformer_jax.data.wordpiece import WordPieceTokenizer
from transformer_jax.errors import UserError

TOKENIZER = ExactByteTokenizer()
MARKS = marks_of(TOKENIZER)
PAPER = MaskingConfig(rate=0.15, mask_share=0.8, random_share=0.1, unit="token")
WORDS = MaskingConfig(rate=0.3, mask_share=1.0, random_share=0.0, unit="word")
TEXTS = ["one two three", "a dog, and 2 cats!", "x", "é à la crème", "it's raining " * 12]


def tokens_of(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.where(targets > 0, targets, inputs)


def test_shares_are_the_papers() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 260, (400, 64)).astype(np.int32)
    tokens[:, 0], tokens[:, 30], tokens[:, 60:] = MARKS.first, MARKS.end, 0
    inputs, targets = Masker(TOKENIZER, PAPER)(tokens, (1, 0), np.arange(400))
    hidden = targets > 0
    assert set(hidden.sum(axis=1)) == {round(0.15 * 58)}
    assert not hidden[:, [0, 30, *range(60, 64)]].any()
    np.testing.assert_array_equal(inputs[~hidden], tokens[~hidden])
    np.testing.assert_array_equal(targets[hidden], tokens[hidden])
    found = {
        "mask": inputs[hidden] == MARKS.mask,
        "kept": inputs[hidden] == tokens[hidden],
        "other": (inputs[hidden] != MARKS.mask) & (inputs[hidden] != tokens[hidden]),
    }
    for name, share in (("mask", 0.8), ("kept", 0.1), ("other", 0.1)):
        assert found[name].mean() == pytest.approx(share, abs=0.02), name
    others = inputs[hidden][found["other"]]
    assert others.min() >= 4 and others.max() < 260 and len(np.unique(others)) > 100  # noqa: PT018
    assert np.bincount(np.nonzero(hidden)[1], minlength=64)[1:30].min() > 30  # no place is spared


def test_masks_follow_from_seed_epoch_and_row_alone() -> None:
    tokens = np.random.default_rng(0).integers(4, 260, (8, 40)).astype(np.int32)
    masker = Masker(TOKENIZER, PAPER)
    whole, _ = masker(tokens, (1, 0), np.arange(8))
    part, _ = masker(tokens[4:], (1, 0), np.arange(4, 8))
    np.testing.assert_array_equal(whole[4:], part)
    for other in ((1, 1), (2, 0)):
        assert (masker(tokens, other, np.arange(8))[0] != whole).any(axis=1).all()


def words_of(tokenizer: object, texts: list[str]) -> list[tuple[str, bool, bool]]:
    """Of every word and sign, whether all of its tokens are hidden and whether any is."""
    found = []
    masker = Masker(tokenizer, WORDS)  # type: ignore[arg-type]
    marks = masker.marks
    for number, text in enumerate(texts):
        words = text.replace(",", " ,").replace("!", " !").split()
        parts = [tokenizer.encode([word])[0] for word in words]  # type: ignore[attr-defined]
        separator = tokenizer.encode([" "])[0]  # type: ignore[attr-defined]
        row = [marks.first]
        spans = []
        for i, part in enumerate(parts):
            row += separator if i else []
            spans.append((len(row), len(row) + len(part)))
            row += part
        row.append(marks.end)
        _, targets = masker(np.asarray([row], np.int32), (0,), np.asarray([number]))
        found += [(w, (targets[0, a:b] > 0).all(), (targets[0, a:b] > 0).any()) for w, (a, b) in zip(words, spans)]  # noqa: B905
    return found


@pytest.mark.parametrize("kind", ["byte", "wordpiece"])
def test_words_are_hidden_whole(kind: str) -> None:
    texts = [f"{a} {b}, {c} crème!" for a in ("raining", "unlikely") for b in ("dogs", "cats") for c in ("42", "x")] * 8
    tokenizer = ExactByteTokenizer() if kind == "byte" else WordPieceTokenizer.train(texts, 45, lowercase=True)
    found = words_of(tokenizer, texts)
    assert all(whole == some for _, whole, some in found)
    hidden = [word for word, whole, _ in found if whole]
    assert {"raining", "dogs", "crème"} <= set(hidden)
    assert 0.05 < len(hidden) / len(found) < 0.45


def test_a_row_of_one_long_word_has_it_hidden_whole() -> None:
    row = np.asarray([[MARKS.first, *TOKENIZER.encode(["incomprehensibilities"])[0], MARKS.end]], np.int32)
    _, targets = Masker(TOKENIZER, WORDS)(row, (0,), np.zeros(1))
    assert (targets[0, 1:-1] > 0).all()


@pytest.mark.parametrize("length", [16, 64])
def test_every_token_is_packed_once_between_marks(length: int) -> None:
    stream = encode_documents(TEXTS, TOKENIZER)
    rows = pack_between_marks(stream, length, np.random.default_rng(0))
    masker = Masker(TOKENIZER, PAPER)
    made = PackedEpoch(
        rows,
        PackingConfig(4, length),
        lambda chosen, count: fill_masked(stream, rows, chosen, count, length, masker, (1, 0)),
    )
    batches = [made.batch(i, (0,), 1) for i in range(len(made))]
    for index, batch in enumerate(batches):
        halves = [made.batch(index, (block,), 2) for block in (0, 1)]
        for name, array in batch.items():
            np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))
    pieces = []
    for batch in batches:
        for row, numbers in zip(tokens_of(batch["inputs"], batch["targets"]), batch["segments"], strict=True):
            assert ((row == 0) == (numbers == 0)).all()
            for number in range(1, numbers.max() + 1):
                first, *text, end = row[numbers == number]
                assert (first, end) == (MARKS.first, MARKS.end)
                pieces.append(text)
    # In 16 places the long text is cut, but no token is lost or there twice.
    assert sorted(itertools.chain(*pieces)) == sorted(stream.ids[stream.ids != EOS])
    short = [text for text in TOKENIZER.encode(TEXTS) if len(text) <= length - 2]
    assert len(short) == (2 if length == 16 else 4)
    assert all(text in [list(piece) for piece in pieces] for text in short)


def test_validation_has_the_same_masks_every_time() -> None:
    stream, masker = encode_documents(TEXTS, TOKENIZER), Masker(TOKENIZER, PAPER)
    first, second = (list(masked_evaluation_batches(stream, PackingConfig(4, 32), masker)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        for name in a.batch:
            np.testing.assert_array_equal(a.batch[name], b.batch[name])
    assert [e for batch in first for e in batch.examples if e >= 0] == list(
        range(len(pack_between_marks(stream, 32, np.random.default_rng(VALIDATION))))
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(rate=0.0), "masking.rate is 0.0"),
        (dict(mask_share=1.2), "masking.mask_share is 1.2"),
        (dict(random_share=0.3), "more than all"),
    ],
)
def test_bad_settings_are_named(changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        MaskingConfig(**{**vars(PAPER), **changes})
