"""Alignment error rates: the formula, and attention whose alignment is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.analysis.made_runs import translation_run
from transformer_jax.analysis.interpret.alignment import (
    AlignedPairs,
    alignment_error_rates,
    error_rate,
    span_accuracy,
    true_alignments,
)
from transformer_jax.errors import UserError

TEXTS = ["ab 12", "c", "de fgh 3"]
# Character by character the same words: each word translates itself.
SPANS = [
    np.asarray([[0, 2, 0, 2], [3, 5, 3, 5]]),
    np.asarray([[0, 1, 0, 1]]),
    np.asarray([[0, 2, 0, 2], [3, 6, 3, 6], [7, 8, 7, 8]]),
]
PAIRS = AlignedPairs(TEXTS, TEXTS, SPANS, ["made"] * 3)


def looking(offset):
    """Cross-attention of layer 0, head 1 to the source position of the same number as the row's, plus an offset."""

    def edit(value, name):
        _, _, T, S = value.shape
        return value.at[:, 1].set(jnp.eye(T, S, offset))

    return translation_run().intervene({"decoder/layer_0/cross_attention/weights": edit})


def test_the_formula():
    sure, possible = {(0, 0), (1, 1)}, {(0, 0), (1, 1), (1, 2)}
    assert error_rate(sure, sure, possible) == 0.0
    assert error_rate(possible, sure, possible) == 0.0
    assert error_rate({(0, 1)}, sure, possible) == 1.0
    assert error_rate({(0, 0), (0, 1)}, sure, possible) == 0.5
    assert error_rate(set(), set(), set()) == 0.0


def test_attention_that_copies_positions_aligns_a_text_with_itself():
    found = alignment_error_rates(looking(0), PAIRS)
    assert (found.pairs, found.skipped) == (3, 0)
    assert found.heads[0, 0, 1] == 0.0
    assert found.best == (0, 0, 1)
    assert found.heads[1, 0, 1] > 0.0
    assert (np.delete(found.heads[0].ravel(), 1) > 0).all()
    assert found.plot().axes
    read = alignment_error_rates(looking(-1), PAIRS)
    assert read.heads[1, 0, 1] == 0.0
    assert read.heads[0, 0, 1] > 0.0


def test_an_error_counts_and_attention_to_the_end_links_nothing():
    def edit(value, name):
        ends = jnp.zeros_like(value[0, 0]).at[:, 5].set(1.0)  # of the first pair only; the others lie elsewhere
        return value.at[:, 1].set(ends)

    pairs = AlignedPairs(TEXTS[:1], TEXTS[:1], SPANS[:1], ["made"])
    run = translation_run().intervene({"decoder/layer_0/cross_attention/weights": edit})
    assert alignment_error_rates(run, pairs).heads[0, 0, 1] == 1.0  # no link: nothing of the sure ones is found


def test_accuracy_within_chosen_spans():
    digits = lambda text: any(map(str.isdigit, text))
    assert span_accuracy(looking(0), PAIRS, digits)[0, 0, 1] == 1.0
    # One to the right of "1" in "12" is "2", of the same word; of "2" and of "3" it is the end.
    np.testing.assert_allclose(span_accuracy(looking(1), PAIRS, digits)[0, 0, 1], 1 / 3)
    with pytest.raises(UserError, match="no span is selected"):
        span_accuracy(looking(0), PAIRS, lambda text: False)


def test_other_datasets_have_no_true_alignments():
    with pytest.raises(UserError, match="parallel_text has none; phrases has"):
        true_alignments(translation_run())
