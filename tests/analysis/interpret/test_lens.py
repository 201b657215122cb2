"""The lens at a layer is a network that ends there; parts of a logit sum to it, whatever the norms."""

import jax
import numpy as np
import pytest

from tests.analysis.made_runs import FAMILIES, translation_run
from transformer_jax.analysis.interpret.contributions import contributions
from transformer_jax.analysis.interpret.lens import logit_lens
from transformer_jax.analysis.interpret.removal import skip
from transformer_jax.analysis.interventions import ablate, scale
from transformer_jax.errors import UserError

TEXT = ("one two", "eins")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_reads_a_network_that_ends_there(family):
    run, texts = FAMILIES[family].make(), [side[0] for side in FAMILIES[family].texts]
    lens = logit_lens(run, *texts, k=3)
    predicted = run.predicted(run.inputs(*([text] for text in texts)))[0]
    for layers, network in ((2, run), (1, run.intervene(skip("decoder/layer_1")))):
        logits = network.capture(*([text] for text in texts), names=["logits"])["logits"][0]
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        real = predicted != 0
        own = np.take_along_axis(log_probs, predicted[:, None], axis=-1)[:, 0]
        np.testing.assert_allclose(lens.log_probs[layers], np.where(real, own, 0), atol=2e-5)
        np.testing.assert_array_equal(lens.tokens[layers, :, 0], log_probs.argmax(-1))
        np.testing.assert_allclose(lens.probabilities[layers, :, 0], np.exp(log_probs.max(-1)), rtol=1e-4)
        ranks = (log_probs > own[:, None]).sum(-1)
        np.testing.assert_array_equal(lens.ranks[layers], np.where(real, ranks, 0))
    np.testing.assert_allclose(lens.divergence[2], 0, atol=1e-5)
    assert (lens.divergence[:2] > -1e-5).all()
    assert lens.divergence[:2].mean() > 0.05
    assert lens.names[0][0][0] == run.token_names([int(lens.tokens[0, 0, 0])])[0]
    assert lens.plot().axes


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_parts_sum_to_the_logits(placement, norm):
    run = translation_run(model__norm_placement=placement, model__norm=norm)
    inputs = run.inputs(*([text] for text in TEXT))
    logits = run.capture_inputs(inputs, ["logits"])["logits"][0]
    at = np.arange(len(logits))
    target, other = inputs[1][0], np.full(len(logits), 100)
    for heads, number in ((False, 7), (True, 7 + 4 * 4)):
        found = contributions(run, *TEXT, heads=heads)
        np.testing.assert_allclose(found.values.sum(0), logits[at, target], rtol=1e-4, atol=1e-4)
        assert len([part for part in found.parts if part != "norms"]) == number
    difference = contributions(run, *TEXT, against=other)
    np.testing.assert_allclose(difference.values.sum(0), logits[at, target] - logits[at, other], rtol=1e-4, atol=2e-4)
    assert difference.plot().axes


def test_logits_that_are_not_read_off_the_stream_have_no_parts():
    run = translation_run().intervene({"logits": scale(2.0)})
    with pytest.raises(UserError, match="they have no parts"):
        contributions(run, *TEXT)


def test_a_sublayer_that_gives_nothing_contributes_nothing():
    run = FAMILIES["language_model"].make().intervene({"decoder/layer_0/feed_forward_output": ablate})
    found = contributions(run, "one two")
    values = dict(zip(found.parts, found.values, strict=True))
    assert not values["decoder/layer_0/feed_forward"].any()
    assert values["decoder/layer_1/feed_forward"].any()
