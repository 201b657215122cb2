"""Sampling: the distributions drawn from, and randomness that belongs to the sentence alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.table_model import TableModel, make_params
from tests.decoding.test_batching import config
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.sampling import SamplingConfig, draw, uniforms
from transformer_jax.errors import UserError

PLAIN = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
LOGITS = np.log(np.array([0.05, 0.4, 0.02, 0.3, 0.13, 0.1]))


def seeds(seed, rows):
    return jnp.stack([jnp.full(rows, seed), jnp.arange(rows)], axis=1)


def frequencies(settings, count=20000):
    uniform = uniforms(seeds(3, count // 10), jnp.full(count // 10, 5), 10)
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (*uniform.shape, len(LOGITS)))
    drawn = np.asarray(jax.jit(lambda l, u: draw(l, u, settings))(logits, uniform))
    return np.bincount(drawn.ravel(), minlength=len(LOGITS)) / count


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [0.05, 0.4, 0.02, 0.3, 0.13, 0.1]),
        ({"temperature": 0.5}, [0.0025, 0.16, 0.0004, 0.09, 0.0169, 0.01]),
        ({"top_k": 3}, [0, 0.4, 0, 0.3, 0.13, 0]),
        ({"top_k": 100}, [0.05, 0.4, 0.02, 0.3, 0.13, 0.1]),
        ({"top_p": 0.7 - 1e-3}, [0, 0.4, 0, 0.3, 0, 0]),
        ({"top_p": 0.7 + 1e-3}, [0, 0.4, 0, 0.3, 0.13, 0]),
        ({"top_p": 1e-6}, [0, 1, 0, 0, 0, 0]),
        ({"min_p": 0.24}, [0, 0.4, 0, 0.3, 0.13, 0.1]),
        ({"min_p": 0.26}, [0, 0.4, 0, 0.3, 0.13, 0]),
        # top-p sees what top-k left, renormalised: 0.4 and 0.3 of 0.83 are the fewest to hold 0.8 of it.
        ({"top_k": 3, "top_p": 0.8}, [0, 0.4, 0, 0.3, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(change, expected):
    """Within 5 standard deviations of a frequency of 20,000 draws, and never a token that was cut."""
    expected = np.array(expected) / np.sum(expected)
    found = frequencies(dataclasses.replace(PLAIN, **change))
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 20000) + 1e-9)


def test_uniforms_are_uniform_and_unrelated():
    u = np.asarray(uniforms(seeds(0, 300), jnp.arange(300) % 7, 20))
    assert abs(u.mean() - 0.5) < 0.02
    assert abs(u.var() - 1 / 12) < 0.005
    assert len(np.unique(u)) == u.size
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 0.2


def test_a_sample_depends_on_seed_and_row_alone():
    params = make_params(0, 40)
    sources = [[5, 6], [7] * 9, [5, 6], [8] * 20]
    settings = config(method="sample", n_best=3)
    decoder = Decoder(TableModel(), settings)
    together = decoder.decode(params, sources, rows=[10, 11, 12, 13])
    alone = [decoder.decode(params, [s], rows=[10 + i])[0] for i, s in enumerate(sources)]
    assert together == alone
    tokens = [h.tokens for h in together[0] + together[2]]
    assert len({tuple(t) for t in tokens}) > 3, "samples of one sentence, and of two rows, must differ"
    other = dataclasses.replace(settings, seed=1)
    assert Decoder(TableModel(), other).decode(params, sources) != together


def test_scores_are_log_probabilities_of_the_model():
    """Tempered draws are scored untempered: the sample at almost no temperature is the greedy output."""
    params = make_params(2, 40)
    sources = [[5, 6], [7] * 9]
    cold = dataclasses.replace(config().sampling, temperature=1e-3)
    sampled = Decoder(TableModel(), config(method="sample", sampling=cold)).decode(params, sources)
    greedy = Decoder(TableModel(), config(method="greedy", n_best=1)).decode(params, sources)
    for a, b in zip(sampled, greedy, strict=True):
        assert a[0].tokens == b[0].tokens
        assert a[0].log_prob == pytest.approx(b[0].log_prob, rel=1e-5)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("top_k", -1), ("top_p", 0.0), ("min_p", 1.0)])
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"sampling.{name}"):
        dataclasses.replace(PLAIN, **{name: value})
