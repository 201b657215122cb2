"""Activations by name and their replacement, in every family: teacher forcing, the cached step, whole searches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.analysis.made_runs import AUTOENCODER, ENCODERS, FAMILIES, NETWORKS, without_head
from transformer_jax.analysis.capture import read
from transformer_jax.errors import UserError
from transformer_jax.models.taps import COLLECTION

SEARCH = dict(method="beam", n_best=2, beam_size=3)


def opened(name):
    """A run, and what of it can be captured."""
    if name not in NETWORKS:
        make, texts = (ENCODERS | AUTOENCODER)[name]
        return make(), texts
    return NETWORKS[name].make(), NETWORKS[name].texts


@pytest.fixture(scope="module", params=[*NETWORKS, *ENCODERS, *AUTOENCODER])
def made(request):
    return opened(request.param)


def test_activations_are_those_of_the_model(made):
    run, texts = made
    inputs = run.inputs(*texts)
    found = run.capture(*texts)
    assert set(found) == set(run.points)
    given = jax.jit(lambda p: run.model.apply({"params": p}, *inputs))(run.params)
    logits = getattr(given, "logits", given)
    for row in range(3):
        used = len(run.pieces(inputs, row)[-1])
        np.testing.assert_allclose(found["logits"][row, :used], logits[row, :used], atol=2e-5)
    for name, value in found.items():
        assert len(value) == 3
        if name.endswith("/weights"):
            side = run.sides(name)[0]
            for row in range(3):
                used = None if side is None else len(run.pieces(inputs, row)[side])
                np.testing.assert_allclose(value[row, :, :used].sum(-1), 1.0, atol=1e-5)


def test_padding_does_not_show(made):
    """A row alone gives what it gives beside longer ones."""
    run, texts = made
    names = [name for name in run.points if name.endswith(("/residual_after", "layer_1/output", "/weights"))]
    inputs = run.inputs(*texts)
    together = run.capture(*texts, names=names)
    lengths = [len(pieces) for pieces in run.pieces(inputs, 2)]
    apart = run.capture(*(side[2:] for side in texts), names=names)
    for name, value in apart.items():
        used = [None if side is None else lengths[side] for side in run.sides(name)]
        cut = together[name][2:, ..., : used[0], : used[1]]
        assert cut.shape == value.shape
        np.testing.assert_allclose(cut, value, atol=2e-5)


def test_edits_of_an_autoencoder_are_in_its_tokens_and_images():
    run, (images,) = opened("discrete_vae")
    tokens, zeros = run.encode_images(images), lambda value, name: 0 * value
    assert tokens.shape == (3, run.model.config.grid**2)
    assert (run.intervene({"encoder_blocks_*/features": zeros}).encode_images(images) != tokens).any()
    edited = run.intervene({"decoder_blocks_*/features": zeros})
    np.testing.assert_array_equal(edited.encode_images(images), tokens)
    assert (edited.decode_images(tokens) != run.decode_images(tokens)).any()


@pytest.mark.parametrize("network", [*FAMILIES, *ENCODERS])
def test_residuals_add_up(network):
    run, texts = opened(network)
    layer = f"{run.model.last_stack}/layer_1"
    found = run.capture(*texts, names=[f"{layer}/*"])
    of = lambda point: found[f"{layer}/{point}"]
    added = of("residual_before") + sum(v for name, v in found.items() if name.endswith("_output"))
    np.testing.assert_allclose(of("residual_after"), added, atol=1e-5)


def test_a_lone_string_is_not_taken_for_a_list_of_characters(made):
    run, texts = made
    reads_text = not isinstance(texts[0], np.ndarray)
    uses = {"capture": lambda: run.capture("one two", *("four five" for _ in texts[1:]))} if reads_text else {}
    uses |= {
        method: lambda method=method: getattr(run, method)("one two")
        for method in ("translate", "generate", "search", "predict", "states")
        if method in vars(type(run))
    }
    uses["load"] = lambda: run.load(parts="encoder")
    if "score" in vars(type(run)):
        uses["score"] = lambda: run.score("one two", "four five")
    for method, use in uses.items():
        with pytest.raises(UserError, match="is a string; give a list"):
            pytest.fail(f"{method}: {use()}")


def test_patterns_that_match_nothing_name_the_nearest(made):
    run, texts = made
    with pytest.raises(UserError, match=r"nothing is called 'logit'. Did you mean logits\?"):
        run.capture(*texts, names=["logit"])
    known = {name.rpartition("/")[2] for name in run.points if "/" in name}
    longer = next(name for name in ("residual_before", "output", "features") if name in known)
    with pytest.raises(UserError, match=rf"Did you mean \*/{longer}\?"):
        run.intervene({f"*/{longer[:-1]}": without_head})
    with pytest.raises(UserError, match=r"nothing is called 'frobnicate'. Known: \*/.*logits"):
        run.intervene({"frobnicate": without_head})


@pytest.mark.parametrize("family", NETWORKS)
def test_a_search_is_captured_as_its_cached_steps_compute_it(family):
    """Each output is a beam that the cached step is fed, token by token; every activation is gathered from there."""
    run, line = NETWORKS[family].make(), NETWORKS[family].texts[0][0]
    (found,) = run.capture_search([line], **SEARCH)
    assert len(found) == 2
    model, K, T = run.model, 2, 12
    prompt = NETWORKS[family].prompt(run, line)
    apply = lambda p, *a, **kw: model.apply({"params": p}, *a, **kw)
    cache = jax.jit(lambda p: apply(p, prompt, K, T, method="start"))(run.params)
    step = jax.jit(lambda p, c, t: apply(p, c, t, method="step", mutable=[COLLECTION]))
    fed = jnp.full((1, K), 3, jnp.int32)
    for t in range(min(len(h.tokens) for h in found)):
        (_, cache), state = step(run.params, cache, fed)
        for name, cached in read(state).items():
            for k, hypothesis in enumerate(found):
                whole = hypothesis.activations[name]
                at = whole.shape[-2] - (len(hypothesis.tokens) + 1) + t
                if name.endswith("cross_attention/weights"):
                    np.testing.assert_allclose(cached[0, ..., k, :], whole[..., at, :], atol=3e-5)
                elif name.endswith("/weights"):
                    first = at - t  # what has been read is there once, then K slots for each step
                    own = cached[0, ..., k, first + k : first + K * (t + 1) : K]
                    seen = np.concatenate([cached[0, ..., k, :first], own], axis=-1)
                    np.testing.assert_allclose(seen, whole[..., at, : at + 1], atol=3e-5)
                else:
                    np.testing.assert_allclose(cached[0, ..., k, :], whole[..., at, :], atol=3e-4, err_msg=name)
        fed = jnp.asarray([[h.tokens[t] for h in found]], jnp.int32)


@pytest.mark.parametrize("family", NETWORKS)
def test_interventions_are_at_work_in_searches_as_in_scores(family):
    run, texts = NETWORKS[family].make(), NETWORKS[family].texts
    name, edit = NETWORKS[family].edited, NETWORKS[family].edit
    ablated = run.intervene({name: edit})
    plain, edited = (jnp.asarray(r.capture(*texts, names=[name])[name]) for r in (run, ablated))
    np.testing.assert_array_equal(edit(edited, name), edited)
    assert (edit(plain, name) != plain).any()
    lines = texts[0]
    searched, plain = ablated.search(lines, **SEARCH), run.search(lines, **SEARCH)
    assert [[h.tokens for h in best] for best in searched] != [[h.tokens for h in best] for best in plain]
    for line, best in zip(lines, searched, strict=True):
        for hypothesis in best:
            scored = NETWORKS[family].log_prob(ablated, line, hypothesis.tokens)
            np.testing.assert_allclose(scored, hypothesis.log_prob, rtol=1e-4)
            assert abs(NETWORKS[family].log_prob(run, line, hypothesis.tokens) - scored) > 1e-3


def test_interventions_add_up_and_parameters_may_change(made):
    run, texts = made
    logits = lambda run: run.capture(*texts, names=["logits"])["logits"]
    doubled = run.intervene({"logits": lambda value, name: 2 * value})
    both = logits(doubled.intervene({"logits": lambda v, n: v + 1}))
    np.testing.assert_allclose(both, 2 * logits(run) + 1, rtol=1e-5, atol=1e-5)
    larger = run.with_params(jax.tree.map(lambda leaf: 1.1 * leaf, run.params))
    assert np.abs(logits(larger) - logits(run)).max() > 0.1
