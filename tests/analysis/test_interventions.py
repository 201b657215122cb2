"""Ready-made edits: what each must do to a network, whatever its parameters."""

import jax
import numpy as np
import pytest

from tests.analysis.made_runs import translation_run
from transformer_jax.analysis.interventions import ablate, mask_heads, mean_ablate, mean_activations, patch, scale
from transformer_jax.errors import UserError

SOURCE, OTHER, TARGET = ["one two"], ["six ten"], ["eins"]


@pytest.fixture(scope="module")
def run():
    return translation_run(model__attention_bias=False)


def logits(run, source=SOURCE, target=TARGET):
    return run.capture(source, target, names=["logits"])["logits"]


def test_all_heads_masked_is_an_attention_of_zeros(run):
    path = "decoder/layer_0/cross_attention"
    masked, ablated = run.intervene(mask_heads({path: [0, 0, 0, 0]})), run.intervene({f"{path}_output": ablate})
    np.testing.assert_array_equal(logits(masked), logits(ablated))
    assert np.abs(logits(masked) - logits(run)).max() > 0.1
    np.testing.assert_array_equal(logits(run.intervene(mask_heads({path: [1, 1, 1, 1]}))), logits(run))
    with pytest.raises(ValueError, match="has 4 heads"):
        logits(run.intervene(mask_heads({path: [1, 0]})))


def test_scaling_an_output_is_scaling_its_weights(run):
    path = ("decoder", "layer_1", "feed_forward", "output")
    params = jax.tree_util.tree_map_with_path(
        lambda where, leaf: 0.5 * leaf if tuple(key.key for key in where)[:4] == path else leaf, run.params
    )
    scaled = run.intervene({"decoder/layer_1/feed_forward_output": scale(0.5)})
    np.testing.assert_allclose(logits(scaled), logits(run.with_params(params)), rtol=1e-4, atol=1e-5)


def test_patching_the_encoder_gives_the_other_sentence(run):
    other = run.capture(OTHER, TARGET, names=["encoder/output", "source_embeddings"])
    patched = run.intervene(patch({"encoder/output": other["encoder/output"]}))
    np.testing.assert_allclose(logits(patched), logits(run, OTHER), atol=1e-5)
    found, expected, plain = (r.search(line)[0][0] for r, line in ((patched, SOURCE), (run, OTHER), (run, SOURCE)))
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.log_prob, expected.log_prob, rtol=1e-5)
    assert abs(plain.log_prob - expected.log_prob) > 1e-3
    np.testing.assert_allclose(patched.score(SOURCE, TARGET), run.score(OTHER, TARGET), rtol=1e-5)
    # Position by position: the embeddings of one token are those of the sentence in which only it differs.
    one = run.intervene(patch({"source_embeddings": other["source_embeddings"]}, positions=[4, 5, 6]))
    np.testing.assert_allclose(logits(one), logits(run, ["one ten"]), atol=1e-5)
    with pytest.raises(ValueError, match="was captured"):
        logits(run.intervene(patch(run.capture(["a" * 30], TARGET, names=["encoder/output"]))))


def test_means_are_of_real_positions_and_take_every_place(run):
    names = ["decoder/layer_?/self_attention/heads", "encoder/layer_0/feed_forward/neurons"]
    sources, targets = ["a", "one two three"], ["eins zwei drei", "b"]
    means = mean_activations(run, sources, targets, names=names)
    apart = [run.capture([s], [t], names=names) for s, t in zip(sources, targets, strict=True)]
    name = "decoder/layer_1/self_attention/heads"
    both = np.concatenate([found[name] for found in apart], axis=2)
    np.testing.assert_allclose(means[name], both.mean(2, keepdims=True), atol=1e-5)
    replaced = run.intervene(mean_ablate(means)).capture(sources, targets, names=names)
    for name, value in replaced.items():
        np.testing.assert_array_equal(value, np.broadcast_to(means[name], value.shape))
    with pytest.raises(UserError, match="choose other names"):
        mean_activations(run, sources, targets, names=["*/weights"])
