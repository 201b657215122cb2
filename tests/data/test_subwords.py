"""Subword sampling has the distributions of the papers, and without chance gives SentencePiece's own."""

from io import BytesIO

import numpy as np
import pytest
import sentencepiece
from made_pairs import made_pairs

from transformer_jax.data.subwords import BpeDropout, Drawn, UnigramSampling

TEXTS = [text for side in made_pairs(300).texts() for text in side]
WORDS = sorted({word for text in TEXTS for word in text.split()})


def trained(kind: str) -> sentencepiece.SentencePieceProcessor:
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type=kind,
        vocab_size=500,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def rows(drawn: Drawn) -> list[tuple[int, ...]]:
    cuts = np.split(drawn.ids, drawn.lengths.cumsum()[:-1])
    return [tuple(cut.tolist()) for cut in cuts]


def each(sampler, words: list[str]) -> list[tuple[int, ...]]:
    return rows(sampler.draw(words, np.arange(len(words)), np.random.default_rng(0)))


def test_bpe_without_dropout_is_sentencepieces_bpe():
    bpe = trained("bpe")
    words = [*WORDS, "☃☃", "a☃☃b", "unseenword", "a"]
    assert each(BpeDropout(bpe, 0.0), words) == [tuple(bpe.encode(word)) for word in words]


def test_full_dropout_leaves_characters():
    bpe = trained("bpe")
    for word, ids in zip(WORDS, each(BpeDropout(bpe, 1.0), WORDS), strict=True):
        assert [bpe.id_to_piece(i) for i in ids] == list("▁" + word)


def test_dropout_has_the_probabilities_of_its_definition():
    """All segmentations of some words, enumerated step by step as algorithm 1 says, against 40,000 draws."""
    bpe, dropout, count = trained("bpe"), 0.3, 40_000
    score = {bpe.id_to_piece(i): bpe.get_score(i) for i in range(3, bpe.get_piece_size())}

    def distribution(split: tuple[str, ...], probability: float, into: dict) -> None:
        merges = [i for i in range(len(split) - 1) if split[i] + split[i + 1] in score]
        merges.sort(key=lambda i: (-score[split[i] + split[i + 1]], i))
        for i in merges:
            merged = (*split[:i], split[i] + split[i + 1], *split[i + 2 :])
            distribution(merged, probability * (1 - dropout), into)
            probability *= dropout
        into[split] = into.get(split, 0) + probability

    words = [word for word in WORDS if len(word) == 7][:3]
    drawn = rows(BpeDropout(bpe, dropout).draw(words, np.arange(count * 3) % 3, np.random.default_rng(0)))
    for index, word in enumerate(words):
        expected: dict[tuple[str, ...], float] = {}
        distribution(tuple("▁" + word), 1.0, expected)
        assert sum(expected.values()) == pytest.approx(1)
        seen = [tuple(bpe.id_to_piece(i) for i in ids) for ids in drawn[index::3]]
        assert len(expected) > 5
        for split, probability in expected.items():
            deviation = (probability * (1 - probability) / count) ** 0.5
            assert seen.count(split) / count == pytest.approx(probability, abs=5 * deviation + 1e-9)


def test_unigram_sampling_has_the_probabilities_of_its_definition():
    unigram, alpha, count = trained("unigram"), 0.5, 40_000
    choices = {word: len(unigram.nbest_encode_as_ids(word, 512)) for word in WORDS}
    words = sorted((word for word in WORDS if 5 < choices[word] <= 64), key=choices.__getitem__)[-3:]
    drawn = rows(UnigramSampling(unigram, alpha).draw(words, np.arange(count * 3) % 3, np.random.default_rng(0)))
    for index, word in enumerate(words):
        candidates = [tuple(ids) for ids in unigram.nbest_encode_as_ids(word, 512)]
        weights = np.exp([alpha * sum(unigram.get_score(i) for i in ids) for ids in candidates])
        for ids, probability in zip(candidates, weights / weights.sum(), strict=True):
            deviation = (probability * (1 - probability) / count) ** 0.5
            assert drawn[index::3].count(ids) / count == pytest.approx(probability, abs=5 * deviation + 1e-9)


@pytest.mark.parametrize(("kind", "sampler"), [("bpe", BpeDropout), ("unigram", UnigramSampling)])
def test_words_are_drawn_in_order_and_independently(kind, sampler):
    processor = trained(kind)
    words = np.random.default_rng(1).integers(0, len(WORDS), 50_000)  # more than are merged at a time
    drawn = rows(sampler(processor, 0.2).draw(WORDS, words, np.random.default_rng(2)))
    assert [processor.decode(list(ids)) for ids in drawn] == [WORDS[word] for word in words]
    assert len(set(drawn)) > 2 * len(WORDS)
