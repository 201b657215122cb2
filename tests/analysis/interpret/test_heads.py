"""Head importance is what masks say it is, and a run without heads is a run whose heads are masked."""

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.analysis.made_runs import FAMILIES, translation_run
from transformer_jax.analysis.interpret.heads import (
    HeadImportance,
    ablation_importance,
    attentions,
    gradient_importance,
    pruning_curve,
    without_heads,
)
from transformer_jax.analysis.interpret.measures import accuracy_on, batches, exact_matches_on, nll_on
from transformer_jax.analysis.interventions import ablate, mask_heads, scale
from transformer_jax.errors import UserError

TEXTS = (["one two", "four", "a"], ["eins", "zwei drei", "b"])


@pytest.fixture(scope="module")
def run():
    return translation_run(model__attention_bias=False, model__num_encoder_layers=1, model__num_decoder_layers=1)


def logits(run):
    return run.capture(*TEXTS, names=["logits"])["logits"]


def test_attentions_come_in_the_order_of_the_network():
    assert attentions(translation_run()) == (
        "encoder/layer_0/self_attention",
        "encoder/layer_1/self_attention",
        "decoder/layer_0/self_attention",
        "decoder/layer_0/cross_attention",
        "decoder/layer_1/self_attention",
        "decoder/layer_1/cross_attention",
    )


def test_a_run_without_heads_is_one_with_masked_heads(run):
    gone = [("decoder/layer_0/cross_attention", 2), ("encoder/layer_0/self_attention", 0)]
    masks = {"decoder/layer_0/cross_attention": [1, 1, 0, 1], "encoder/layer_0/self_attention": [0, 1, 1, 1]}
    np.testing.assert_allclose(logits(without_heads(run, gone)), logits(run.intervene(mask_heads(masks))), atol=1e-5)
    assert np.abs(logits(run) - logits(without_heads(run, gone))).max() > 0.1


def test_the_gradient_is_the_slope_of_the_loss_of_each_text(run):
    importance = gradient_importance(run, *TEXTS)
    row, head, small = 2, 1, 1e-2
    name = f"{importance.attentions[row]}/heads"

    def slope(text: int) -> float:
        one = [[side[text]] for side in TEXTS]
        ends = []
        for factor in (1 + small, 1 - small):
            masked = run.intervene(mask_heads({importance.attentions[row]: np.where(np.arange(4) == head, factor, 1)}))
            ends.append(nll_on(*one)(masked))
        return (ends[0] - ends[1]) / (2 * small)

    assert name in run.points
    np.testing.assert_allclose(importance.scores[row, head], np.mean([abs(slope(i)) for i in range(3)]), rtol=2e-2)


def test_ablation_is_the_change_of_the_measure_and_the_curve_ends_with_no_head_at_all(run):
    measure = nll_on(*TEXTS)
    importance = ablation_importance(run, measure)
    lost = measure(without_heads(run, [(importance.attentions[1], 3)])) - measure(run)
    np.testing.assert_allclose(importance.scores[1, 3], lost, atol=1e-6)
    order = importance.ranked()
    assert len(set(order)) == 12
    curve = pruning_curve(run, order, measure, "nats", counts=[0, 1, 12])
    assert curve.values[0] == measure(run)
    np.testing.assert_allclose(curve.values[1] - curve.values[0], importance.scores.min(), atol=1e-6)
    silent = run.intervene({"*_attention_output": ablate})
    np.testing.assert_allclose(curve.values[2], measure(silent), rtol=1e-5)
    assert curve.plot().axes
    assert importance.plot().axes


def test_ranks_and_norms():
    importance = HeadImportance(("a", "b"), np.asarray([[3.0, 4.0], [0.0, 0.0]]), "x")
    assert importance.ranked() == [("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    np.testing.assert_allclose(importance.normalized().scores, [[0.6, 0.8], [0, 0]])


@pytest.mark.parametrize("family", FAMILIES)
def test_measures_are_those_of_scores(family):
    run, texts = FAMILIES[family].make(), FAMILIES[family].texts
    inputs = run.inputs(*texts)
    predicted = run.predicted(inputs)
    log_probs = jax.nn.log_softmax(run.capture(*texts, names=["logits"])["logits"])
    real = predicted != 0
    own = np.take_along_axis(np.asarray(log_probs), predicted[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nll_on(*texts)(run), -own[real].mean(), rtol=1e-5)
    right = np.asarray(log_probs).argmax(-1) == predicted
    np.testing.assert_allclose(accuracy_on(*texts)(run), right[real].mean())
    with pytest.raises(UserError, match="no texts"):
        next(batches(run, tuple(side[:0] for side in inputs)))


def test_exact_matches_count_what_is_translated(run):
    lines = TEXTS[0]
    found = run.translate(lines)
    measure = exact_matches_on(lines, [found[0], "something else", found[2]])
    np.testing.assert_allclose(measure(run), 2 / 3)
    assert exact_matches_on(lines, found)(run.intervene({"decoder/output": scale(0.0)})) < 1


def test_scores_agree_on_what_matters(run):
    """Gradient and ablation need not rank alike, but on average over heads they go together."""
    gradient, ablation = gradient_importance(run, *TEXTS), ablation_importance(run, nll_on(*TEXTS))
    assert spearmanr(gradient.scores.ravel(), np.abs(ablation.scores).ravel()).statistic > 0.3
