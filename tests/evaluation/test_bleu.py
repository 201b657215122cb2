"""Translation scores: known values, signatures, and refusals."""

import math

import pytest

from transformer_jax.errors import UserError
from transformer_jax.evaluation.bleu import translation_scores


def test_bleu_equals_the_formula():
    # Unigrams 5/6, bigrams 4/5, trigrams 3/4, 4-grams 2/3; six tokens on both sides, no brevity penalty.
    scores = translation_scores(["a b c d e x"], ["a b c d e f"])
    assert scores["bleu"] == pytest.approx(100 * math.exp(sum(map(math.log, (5 / 6, 4 / 5, 3 / 4, 2 / 3))) / 4))
    assert scores["exact_match"] == 0


def test_case_counts_in_one_bleu_and_not_in_the_other():
    scores = translation_scores(["Ein Hund läuft , ja .", "x"], ["ein hund läuft, ja.", "x"])
    assert scores["bleu_lowercase_tokenized"] == pytest.approx(100)
    assert scores["bleu"] < 90
    assert scores["chrf"] < 100
    assert scores["exact_match"] == 0.5


def test_signatures_tell_the_settings():
    scores = translation_scores(["a b c d"], ["a b c d "])
    assert (scores["bleu"], scores["chrf"], scores["exact_match"]) == (pytest.approx(100), 100, 1)
    assert "case:mixed" in scores["bleu_signature"]
    assert "tok:13a" in scores["bleu_signature"]
    assert "nrefs:1" in scores["bleu_signature"]
    assert "case:lc" in scores["bleu_lowercase_tokenized_signature"]
    assert "tok:13a" in scores["bleu_lowercase_tokenized_signature"]
    assert "nc:6|nw:0" in scores["chrf_signature"]
    assert all("version:" in scores[f"{name}_signature"] for name in ("bleu", "chrf"))


def test_unequal_or_no_lines_are_refused():
    for hypotheses, references in [(["a"], []), ([], ["a"]), ([], []), (["a"], ["a", "b"])]:
        with pytest.raises(UserError, match=f"{len(hypotheses)} hypotheses .* {len(references)} references"):
            translation_scores(hypotheses, references)
    assert translation_scores([""], ["a"])["bleu"] == 0
