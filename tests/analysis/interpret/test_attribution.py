"""What attributions promise: completeness, gradients that are slopes, rows of attention that stay distributions."""

import numpy as np
import pytest

from tests.analysis.made_runs import FAMILIES, translation_run
from transformer_jax.analysis.interpret.attribution import (
    METHODS,
    attention_rollout,
    input_times_gradient,
    integrated_gradients,
)
from transformer_jax.analysis.interpret.measures import nll_on
from transformer_jax.analysis.interventions import scale

TEXT = ("one two", "eins")


@pytest.fixture(scope="module", params=FAMILIES)
def made(request):
    return FAMILIES[request.param].make(), [side[0] for side in FAMILIES[request.param].texts]


def total(attribution):
    return sum(values.sum(axis=1) for values in attribution.values.values())


def test_integrated_gradients_sum_to_the_difference(made):
    run, text = made
    found = integrated_gradients(run, *text, steps=512)
    assert np.abs(found.differences).max() > 1
    np.testing.assert_allclose(total(found), found.differences, atol=0.02 * np.abs(found.differences).max())
    coarse = integrated_gradients(run, *text, steps=4)
    np.testing.assert_array_equal(coarse.differences, found.differences)
    assert np.abs(total(coarse) - found.differences).max() > np.abs(total(found) - found.differences).max()


def test_input_times_gradient_is_the_slope_of_scaling_the_input(made):
    run, text = made
    small, found = 1e-3, input_times_gradient(run, *text)
    count = sum(map(bool, found.predicted))
    ends = [nll_on(*([t] for t in text))(run.intervene({"*embeddings": scale(1 + s)})) for s in (small, -small)]
    np.testing.assert_allclose(-total(found).sum(), (ends[0] - ends[1]) / (2 * small) * count, rtol=0.03)


def test_what_comes_later_is_due_nothing(made):
    run, text = made
    for method in METHODS.values():
        found = method(run, *text)
        own = list(found.values.values())[-1]
        assert own.shape[0] == own.shape[1] == len(found.predicted)
        np.testing.assert_array_equal(np.triu(own, 1), 0)
        for name, values in found.values.items():
            assert values.shape == (len(found.predicted), len(found.read[name]))
        assert found.plot().axes


def test_rollout_keeps_distributions_and_follows_uniform_attention():
    run = translation_run()
    np.testing.assert_allclose(total(attention_rollout(run, *TEXT)), 1.0, atol=1e-6)
    flat = run.intervene({"*/queries": scale(0.0)})
    found = attention_rollout(flat, *TEXT)
    # With uniform cross-attention and encoder, every source token gets the same of what comes from the source.
    source = found.values["source_embeddings"]
    np.testing.assert_allclose(source, np.repeat(source[:, :1], source.shape[1], axis=1), atol=1e-6)
    # Two layers: what is left of the target is halved at each of two cross-attentions.
    np.testing.assert_allclose(found.values["target_embeddings"].sum(1), 0.25, atol=1e-6)
