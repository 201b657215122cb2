"""Several models as one: with itself a model is itself; different ones search as their mean probability says."""

import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.table_model import TableModel, enumerate_all, make_params
from tests.decoding.test_batching import PARAMS, SOURCES, config, same
from tests.decoding.test_with_model import make
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.ensemble import EnsembleDecoder, mean_log_probs

TWO = EnsembleDecoder((TableModel(), TableModel()))


def mixed(*tables):
    """Parameters of the one table model that an ensemble of table models is."""
    probabilities = np.mean([jax.nn.softmax(table["logits"]) for table in tables], axis=0)
    return {"logits": np.log(probabilities), "attention": tables[0]["attention"]}


def test_the_mean_is_that_of_probabilities_even_where_there_are_none():
    logits = np.random.default_rng(0).normal(scale=30.0, size=(3, 2, 8))
    logits[:, 0, 1] = -np.inf
    logits[0, 1, 2] = -np.inf
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        expected = np.log(probabilities.mean(axis=0))
    found = mean_log_probs([jnp.asarray(one, jnp.float32) for one in logits])
    assert np.isneginf(found[0, 1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_an_ensemble_of_a_model_with_itself_is_the_model(method):
    settings = config(method=method)
    short = [source for source in SOURCES if len(source) < 16]
    alone = Decoder(TableModel(), settings).decode(PARAMS, short)
    same(Decoder(TWO, settings).decode((PARAMS, PARAMS), short), alone)


def test_a_wide_beam_over_two_models_equals_exhaustive_search_through_the_queue():
    params = make_params(5, 7), make_params(6, 7)
    settings = config(beam_size=32, n_best=5, max_length_factor=0.0, max_length_offset=4, batch_size=2)
    sources = [[4 + i, 30 - i] for i in range(9)]
    bodies = []
    for source, found in zip(sources, Decoder(TWO, settings).decode(params, sources), strict=True):
        row = np.array([*source, 1])
        expected = enumerate_all(mixed(*params), row, (4, 5, 6), 4, alpha=0.6)[:5]
        bodies.append([tuple(h.tokens) for h in found])
        assert bodies[-1] == [body for _, _, body in expected]
        np.testing.assert_allclose([h.log_prob for h in found], [log_prob for _, log_prob, _ in expected], rtol=1e-4)
    alone = Decoder(TableModel(), settings).decode(params[0], sources)
    assert bodies != [[tuple(h.tokens) for h in found] for found in alone]


def test_models_of_different_kinds_keep_caches_of_their_own():
    """A Transformer and an LSTM with more sentences than rows, against the forward passes over all 40 outputs."""
    models, params = zip(
        *(make(n, source_vocab_size=7, target_vocab_size=7) for n in ("rotary", "lstm, luong")), strict=True
    )
    settings = config(beam_size=40, n_best=6, max_length_factor=0.0, max_length_offset=4, batch_size=2)
    sources = [[4, 6, 6, 5], [5], [6, 4], [5, 5, 4], [4]]
    decoder = Decoder(EnsembleDecoder(tuple(model.incremental() for model in models)), settings)
    outputs = [body for n in range(4) for body in itertools.product((4, 5, 6), repeat=n)]
    targets = np.array([[*body, 1] + [0] * (3 - len(body)) for body in outputs])
    for source, found in zip(sources, decoder.decode(params, sources), strict=True):
        rows = jnp.tile(jnp.array([*source, 1]), (len(outputs), 1))
        logits = [model.apply({"params": own}, rows, targets) for model, own in zip(models, params, strict=True)]
        chosen = np.take_along_axis(np.asarray(mean_log_probs(logits)), targets[..., None], axis=-1)[..., 0]
        log_probs = np.where(targets > 0, chosen, 0.0).sum(axis=1)
        scores = {body: log_p / ((6 + len(body)) / 6) ** 0.6 for body, log_p in zip(outputs, log_probs, strict=True)}
        best = sorted(scores, key=lambda body: -scores[body])[:6]
        assert [tuple(h.tokens) for h in found] == best
        np.testing.assert_allclose([h.score for h in found], [scores[body] for body in best], rtol=2e-4)


SHARDED = """
from tests.decoding.test_ensemble import *
mesh = jax.make_mesh((4, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
params, short = (PARAMS, make_params(1, 40)), [source for source in SOURCES if len(source) < 16]
spread = Decoder(TWO, config(), mesh)
assert spread.num_devices == 4
same(spread.decode(params, short), Decoder(TWO, config()).decode(params, short))
"""


def test_four_devices_equal_one():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True, timeout=300)
