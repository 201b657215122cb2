"""The beam watched step by step: what it kept is what the best continuations of all prefixes are."""

from dataclasses import replace

import numpy as np
import pytest

from tests.decoding.table_model import TableModel, key_of, make_params
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.sampling import SamplingConfig
from transformer_jax.decoding.tracing import trace
from transformer_jax.errors import UserError

VOCAB, TOKENS, SOURCE = 7, (4, 5, 6), [9, 8]
CONFIG = DecodingConfig(
    method="beam",
    beam_size=3,
    n_best=3,
    length_penalty=0.6,
    coverage_penalty=0.0,
    patience=1.0,
    min_length=2,
    max_length_factor=0.0,
    max_length_offset=6,
    max_target_length=6,
    max_source_length=16,
    long_lines="refuse",
    batch_size=1,
    seed=0,
    sampling=SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
)


def log_probs(params, history):
    padded = np.asarray([3, *history, *[0] * (8 - len(history))])
    logits = np.asarray(params["logits"][key_of(sum(SOURCE) + 1, padded, len(history) + 1)], np.float64)
    return logits - np.log(np.exp(logits).sum())


@pytest.mark.parametrize("seed", range(2))
def test_each_step_keeps_the_likeliest_continuations_of_the_last(seed):
    params = make_params(seed, VOCAB)
    decoder = Decoder(TableModel(), CONFIG)
    traced = trace(decoder.search, params, SOURCE, CONFIG)
    steps = traced.steps
    assert 2 <= len(steps) < 6
    before = [((), 0.0)]
    for alive in steps:
        every = [((*row, t), total + log_probs(params, row)[t]) for row, total in before for t in TOKENS]
        wanted = sorted(every, key=lambda one: -one[1])[:3]
        assert [one.tokens for one in alive] == [row for row, _ in wanted]
        np.testing.assert_allclose([one.log_prob for one in alive], [total for _, total in wanted], rtol=1e-4)
        parents = [before[one.parent][0] if one.parent >= 0 else () for one in alive]
        assert parents == [one.tokens[:-1] for one in alive]
        before = wanted
    found = decoder.decode(params, [SOURCE])[0]
    assert [one.tokens for one in traced.found] == [one.tokens for one in found]
    np.testing.assert_allclose([one.score for one in traced.found], [one.score for one in found], rtol=1e-5)
    for one in found:
        body = tuple(one.tokens)
        assert all(body[: n + 1] in [kept.tokens for kept in steps[n]] for n in range(len(body)))


def test_greedy_is_a_beam_of_one_and_samples_have_none():
    params, greedy = make_params(0, VOCAB), replace(CONFIG, method="greedy", n_best=1)
    steps = trace(Decoder(TableModel(), greedy).search, params, SOURCE, greedy).steps
    assert {len(alive) for alive in steps} == {1}
    sampled = replace(CONFIG, method="sample")
    with pytest.raises(UserError, match="use method 'beam'"):
        trace(Decoder(TableModel(), sampled).search, params, SOURCE, sampled)
    with pytest.raises(UserError, match="17 tokens with its end"):
        trace(Decoder(TableModel(), CONFIG).search, params, [4] * 16, CONFIG)
