"""Scores of given targets, against what search reports and against a plain log-softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.table_model import TableModel, key_of, make_params
from tests.decoding.test_batching import SOURCES, config
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.scoring import Scorer, token_log_probs
from transformer_jax.errors import UserError


def table_logits(params, source, target):
    """Teacher forcing over the table model: position t sees BOS and target[:, :t]."""
    history = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=3)
    T = target.shape[1]
    counts = jnp.arange(1, T + 1)[:, None]
    return params["logits"][key_of(source.sum(1)[:, None], jnp.repeat(history[:, None], T, axis=1), counts[None])]


def test_scoring_agrees_with_search():
    params = make_params(0, 40)
    found = Decoder(TableModel(), config()).decode(params, SOURCES)
    scorer = Scorer(table_logits, batch_size=16, max_length=40)
    for rank in (0, 1):
        outputs = [hypotheses[rank] for hypotheses in found]
        scores = scorer.score(params, SOURCES, [h.tokens for h in outputs])
        assert [len(s) for s in scores] == [len(h.tokens) + 1 for h in outputs]
        np.testing.assert_allclose([s.sum() for s in scores], [h.log_prob for h in outputs], rtol=1e-4)


def test_token_log_probs_ignore_padding():
    logits = np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32)
    target = np.array([[4, 1, 0], [5, 6, 1]])
    found = token_log_probs(jnp.asarray(logits), jnp.asarray(target))
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), target[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, np.where(target == 0, 0, expected), rtol=1e-5)


def test_bad_requests_are_refused():
    scorer = Scorer(table_logits, batch_size=4, max_length=8)
    with pytest.raises(UserError, match="2 sources and 1 targets"):
        scorer.score({}, [[5], [6]], [[5]])
    with pytest.raises(UserError, match="pair 2"):
        scorer.score({}, [[5], [6] * 8], [[5], [6]])
