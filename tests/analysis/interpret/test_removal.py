"""Removing a layer gives the network that was built without it; a sublayer removed adds nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.analysis.made_runs import FAMILIES, translation_run
from transformer_jax.analysis.interpret.measures import nll_on
from transformer_jax.analysis.interpret.removal import layer_removal, skip, sublayer_removal

TEXTS = (["one two", "four"], ["eins", "zwei drei"])


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_removal_is_a_model_built_without_the_layer(side, placement):
    run = translation_run(model__norm_placement=placement)
    config = run.model.config
    smaller = run.model.clone(config=dataclasses.replace(config, **{f"num_{side}_layers": 1}))
    stack = {name: part for name, part in run.params[side].items() if not name.startswith("layer_")}
    inputs = run.inputs(*TEXTS)
    for layer in (0, 1):
        kept = {**run.params, side: {**stack, "layer_0": run.params[side][f"layer_{1 - layer}"]}}
        logits = jax.jit(lambda p: smaller.apply({"params": p}, *inputs))(kept)
        found = run.intervene(skip(f"{side}/layer_{layer}")).capture_inputs(inputs, ["logits"])["logits"]
        real = inputs[1] != 0
        np.testing.assert_allclose(found[real], np.asarray(logits)[real], atol=3e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_and_sublayer_has_its_measure(family):
    run, texts = FAMILIES[family].make(), FAMILIES[family].texts
    measure = nll_on(*texts)
    layers, sublayers = layer_removal(run, measure, "nats"), sublayer_removal(run, measure, "nats")
    expected = ["decoder/layer_0", "decoder/layer_1"]
    if family == "translation":
        expected = ["encoder/layer_0", "encoder/layer_1", *expected]
    assert layers.parts == expected
    assert layers.whole == sublayers.whole == measure(run)
    assert layers.values[-1] == measure(run.intervene(skip("decoder/layer_1")))
    assert [part for part in sublayers.parts if part.startswith("decoder/layer_1")] == [
        f"decoder/layer_1/{part}"
        for part in ("self_attention", "cross_attention", "feed_forward")
        if family == "translation" or part != "cross_attention"
    ]
    assert len(set(np.round(sublayers.values, 6))) == len(sublayers.parts)
    assert layers.plot().axes
