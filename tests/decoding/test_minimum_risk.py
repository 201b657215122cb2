"""Minimum-Bayes-risk decoding: what is chosen has the highest expected utility, computed the long way."""

import math

import numpy as np
import pytest
import sacrebleu

from tests.decoding.table_model import TableModel, make_params
from tests.decoding.test_batching import config
from tests.decoding.test_translator import WORDS, Pair
from transformer_jax.decoding.batching import Decoder, Hypothesis
from transformer_jax.decoding.minimum_risk import Pool, rerank
from transformer_jax.decoding.translator import Translator
from transformer_jax.errors import UserError

UTILITIES = {
    "chrf": lambda one, other: sacrebleu.sentence_chrf(one, [other]).score / 100,
    "bleu": lambda one, other: sacrebleu.sentence_bleu(one, [other]).score / 100,
}
SETS = [
    ["a man runs", "a man runs", "a man is running", "the man runs fast", "dogs"],
    ["two dogs play in the snow", "two dogs play in snow", "the dogs are playing", "two cats play in the snow"],
    ["x", "", "x y"],
]


def settings(method="sample", utility="chrf", **changes):
    return config(**{"method": method, "rerank": utility, "beam_size": 8, "candidates": 6, "n_best": 1, **changes})


def given(texts, log_probs):
    return [Hypothesis([4 + i], log_p, log_p) for i, log_p in enumerate(log_probs[: len(texts)])]


def brute_force(texts, log_probs, method, utility):
    """For each candidate its expected utility: samples count alike, others by their probability."""
    probabilities = [1.0 if method == "sample" else math.exp(log_p) for log_p in log_probs[: len(texts)]]
    of = UTILITIES[utility]
    total = sum(probabilities)
    return [sum(p * of(one, other) for p, other in zip(probabilities, texts, strict=True)) / total for one in texts]


@pytest.mark.parametrize("texts", SETS, ids=len)
@pytest.mark.parametrize("method", ["sample", "beam"])
@pytest.mark.parametrize("utility", ["chrf", "bleu"])
def test_the_choice_is_that_of_brute_force(texts, method, utility):
    log_probs = [-1.0, -7.0, -0.5, -2.0, -3.0]
    found = rerank(given(texts, log_probs), texts, settings(method, utility, n_best=6))
    expected = brute_force(texts, log_probs, method, utility)
    order = sorted(range(len(texts)), key=lambda i: (-round(expected[i], 9), i))
    once = [i for place, i in enumerate(order) if texts[i] not in [texts[j] for j in order[:place]]]
    assert [h.tokens for h in found] == [[4 + i] for i in once]
    np.testing.assert_allclose([h.score for h in found], [expected[i] for i in once], atol=1e-9)
    assert [h.log_prob for h in found] == [log_probs[i] for i in once]


def test_samples_count_by_number_and_finds_of_a_search_by_probability():
    texts = ["green ideas", "green ideas", "old books"]
    likely = given(texts, [-9.0, -9.0, -0.1])
    assert rerank(likely, texts, settings("sample"))[0].tokens == [4]
    assert rerank(likely, texts, settings("beam"))[0].tokens == [6]


def test_one_candidate_is_chosen():
    (only,) = rerank(given(["one"], [-2.0]), ["one"], settings())
    assert (only.tokens, only.log_prob) == ([4], -2.0)
    assert only.score == pytest.approx(1.0)
    assert rerank([], [], settings()) == []


@pytest.mark.parametrize("method", ["sample", "beam"])
def test_a_translator_chooses_among_what_all_models_of_a_pool_find(method):
    params = make_params(0, WORDS), make_params(1, WORDS)
    own = settings(method, max_source_length=10, n_best=2)
    lines = ["a b", "", "c d e", "f"]
    translator = Translator(Pool((TableModel(), TableModel())), params, Pair(), own)
    for line, best in zip(lines, translator.stream(lines), strict=True):
        if not line:
            assert [t.text for t in best] == [""]
            continue
        row = (lines.index(line) + 1) * 1009
        found = []
        for i, table in enumerate(params):
            alone = config(**{**vars(own), "rerank": "none", "candidates": 1, "n_best": 6, "seed": i})
            (one,) = Decoder(TableModel(), alone).decode(table, Pair.source.encode([line]), None, [row])
            found += one
        assert len(found) == 12
        texts = Pair.target.decode([h.tokens for h in found])
        expected = brute_force(texts, [h.log_prob for h in found], method, "chrf")
        assert best[0].score == pytest.approx(max(expected))
        assert expected[texts.index(best[0].text)] == pytest.approx(max(expected))
        assert best[0].score >= best[1].score
        assert best[0].text != best[1].text


def test_a_pool_without_reranking_is_refused():
    with pytest.raises(UserError, match="which is 'none'"):
        Translator(Pool((TableModel(), TableModel())), (None, None), Pair(), config())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": 1}, "candidates is 1; it must be 2 or more"),
        ({"n_best": 7}, "candidates is 6; it must be 7 or more"),
        ({"method": "beam", "candidates": 9}, "candidates is 9; it must be at most beam_size, 8"),
        ({"method": "greedy"}, "candidates is 6; it must be 1 when method is 'greedy'"),
        ({"rerank": "none"}, "candidates is 6; it must be 1 without decoding.rerank"),
        ({"rerank": "ter"}, "rerank is 'ter'"),
    ],
)
def test_settings_that_leave_nothing_to_choose_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)
