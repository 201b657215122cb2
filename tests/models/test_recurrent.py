"""What holds for every `RecurrentConfig`: sizes, padding, causality, cache, dropout, gradients; and what is refused."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.test_transformer import histories, survivors
from tests.models.tiny import drawn_like, token_batch
from transformer_jax.decoding.interface import replace_rows
from transformer_jax.errors import UserError
from transformer_jax.models import recurrence
from transformer_jax.models.recurrent import RecurrentConfig, RecurrentEncoderDecoder
from transformer_jax.models.taps import COLLECTION, Interventions

TINY = dict(source_vocab_size=13, target_vocab_size=13, d_model=16, num_layers=2, max_length=16)
ATTENTION = ["none", "luong", "bahdanau"]
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: dict(attention=name) for name in ATTENTION},
    "one layer": dict(num_layers=1),
    "one layer, none": dict(num_layers=1, attention="none"),
    "untied": dict(tie_embeddings="none", source_vocab_size=17, attention="bahdanau"),
}


def make(**changes: Any) -> tuple[RecurrentEncoderDecoder, Any]:
    """A tiny model and random parameters, biases too."""
    model = RecurrentEncoderDecoder(config=RecurrentConfig(**{**TINY, **changes}))  # type: ignore[arg-type]
    tokens = jnp.ones((1, 2), jnp.int32)
    return model, drawn_like(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"])


def number_of_parameters(c: RecurrentConfig) -> int:
    """The formula, from the equations alone."""
    D, L, V = c.d_model, c.num_layers, c.target_vocab_size
    cell = lambda inputs, units: 4 * units * (inputs + units + 1)
    attends = c.attention != "none"
    total = L * 2 * cell(D, D // 2) + cell(2 * D if attends else D, D) + (L - 1) * cell(D, D)
    total += {"none": 0, "luong": 3 * D * D, "bahdanau": 4 * D * D + D}[c.attention]
    return total + D * {"all": V, "none": c.source_vocab_size + 2 * V}[c.tie_embeddings]


@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant):
    """The size; logits float32[B, T, V]; padding changes nothing; no position sees a later one, all see the source;
    and beams that split and die get from the cached step what the whole forward pass gives."""
    model, params = make(**VARIANTS[variant])
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == number_of_parameters(model.config)
    source, _ = token_batch(seed=1)
    rng, width, steps = np.random.default_rng(2), 2, 5
    parents = rng.integers(0, width, (steps, 3, width))
    tokens = rng.integers(4, 13, (steps, 3, width)).astype(np.int32)
    target, sources = histories(parents, tokens).reshape(6, steps), np.repeat(source, width, axis=0)
    decoder = model.incremental()

    def everything(params: Any) -> tuple[Any, ...]:
        apply = lambda *args: model.apply({"params": params}, *args)
        wider = apply(np.pad(sources, ((0, 0), (0, 4))), np.pad(target, ((0, 0), (0, 3))))

        def step(carry: Any, given: Any) -> tuple[Any, Any]:
            cache, fed = carry
            logits, cache = decoder.step(params, cache, fed)
            return (decoder.reorder(cache, given[0]), given[1]), logits

        first = (decoder.start(params, source, width, steps), jnp.full((3, width), 3, jnp.int32))
        later = target.copy()
        later[:, 3] = (later[:, 3] - 3) % 9 + 4  # another token
        others = np.where(sources == 0, 0, (sources - 3) % 9 + 4)
        cached = jax.lax.scan(step, first, (parents, tokens))[1]
        return apply(sources, target), wider, cached, apply(sources, later), apply(others, target)

    logits, wider, cached, later, others = jax.jit(everything)(params)
    assert (logits.shape, logits.dtype) == ((6, steps, 13), jnp.float32)
    np.testing.assert_allclose(wider[:, :steps], logits, atol=2e-5)
    np.testing.assert_allclose(survivors(cached, parents), logits.reshape(3, width, steps, -1), atol=2e-5)
    np.testing.assert_array_equal(later[:, :4], logits[:, :4])
    assert (np.abs(later[:, 4] - logits[:, 4]).max(-1) > 1e-3).all()
    assert (np.abs(others - logits).max(-1) > 1e-3).all()


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_refilled_row_starts_anew_among_older_ones(attention):
    model, params = make(attention=attention)
    decoder, (source, _) = model.incremental(), token_batch(seed=9)
    tokens = np.random.default_rng(9).integers(4, 13, (6, 2, 2)).astype(np.int32)
    tokens[0] = tokens[2, 1] = 3  # BOS

    def everything(params: Any) -> Any:
        cache = decoder.start(params, source[:2], 2, 8)
        for t in range(6):
            if t == 2:
                cache = replace_rows(cache, decoder.start(params, source[2:], 2, 8), jnp.array([1]))
            logits, cache = decoder.step(params, cache, tokens[t])
        targets = np.concatenate([tokens[3:, 1], np.full((1, 2), 4)]).T.astype(np.int32)
        return logits[1], model.apply({"params": params}, np.repeat(source[2:], 2, axis=0), targets)[:, -1]

    got, wanted = jax.jit(everything)(params)
    np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradients_formed_after_the_scan_are_those_of_differentiation(monkeypatch, attention):
    rates = dict(dropout_rate=0.2, embedding_dropout_rate=0.1, recurrent_dropout_rate=0.3)
    model, params = make(attention=attention, **rates)
    batch, seeds = token_batch(), jnp.arange(3, dtype=jnp.uint32)
    loss = lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, *batch, seeds)))
    after = jax.jit(jax.grad(loss))(params)
    plain = lambda step, weights, constants, carry, xs: jax.lax.scan(
        lambda carry, x: step(recurrence.direct(weights), constants, carry, x), carry, xs
    )
    for module in (recurrence, __import__("transformer_jax.models.recurrent", fromlist=["scan"])):
        monkeypatch.setattr(module, "scan", plain)
    during = jax.jit(lambda p: jax.grad(loss)(p))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), after, during)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(during)) > 1e-3


@pytest.mark.parametrize("rate", ["dropout_rate", "embedding_dropout_rate", "recurrent_dropout_rate"])
def test_each_dropout_is_drawn_from_the_seed(rate):
    """Another seed gives another mask; without seeds nothing is dropped."""
    model, params = make(attention="luong", dropout_rate=0.0, embedding_dropout_rate=0.0)
    dropping, _ = make(attention="luong", **{"dropout_rate": 0.0, "embedding_dropout_rate": 0.0, rate: 0.4})
    source, target = (np.repeat(side[:1], 64, axis=0) for side in token_batch())
    apply = lambda m, *seeds: jax.jit(lambda p: m.apply({"params": p}, source, target, *seeds))(params)
    without, dropped = apply(model), apply(dropping, jnp.arange(64, dtype=jnp.uint32))
    np.testing.assert_array_equal(apply(dropping), without)
    assert len({row.tobytes() for row in np.asarray(dropped)}) == 64


def test_a_mask_is_the_same_at_all_steps_of_a_row():
    """What the encoder gives, its outputs dropped, is zero in the same features at every position, else doubled."""
    model, params = make(dropout_rate=0.5, embedding_dropout_rate=0.0, num_layers=1)
    source = np.repeat(token_batch()[0][:1], 8, axis=0)
    memory, _, _ = model.apply({"params": params}, source, jnp.arange(8, dtype=jnp.uint32), method="encode")
    whole, _, _ = model.apply({"params": params}, source, method="encode")
    zero = np.asarray(memory == 0)
    np.testing.assert_allclose(memory, np.where(zero, 0, 2 * whole), rtol=1e-6)
    assert (zero == zero[:, :1]).all()
    assert 0.3 < zero[:, 0].mean() < 0.7
    assert len({row.tobytes() for row in zero[:, 0]}) == 8


def test_forget_gates_are_open_and_recurrent_kernels_orthogonal_at_first():
    model, _ = make()
    tokens = jnp.ones((1, 2), jnp.int32)
    params = nn.unbox(model.init(jax.random.key(0), tokens, tokens)["params"])
    cell = params["decoder"]["layer_1"]["cell"]
    np.testing.assert_array_equal(cell["bias"], np.eye(4)[1][:, None] * np.ones(16))
    for gate in range(4):
        kernel = np.asarray(cell["recurrent"]["kernel"][:, gate])
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(16), atol=1e-5)


def test_attention_is_captured_as_cross_attention_and_sees_no_padding():
    model, params = make(attention="bahdanau")
    source, target = token_batch()
    _, state = model.apply({"params": params}, source, target, mutable=[COLLECTION])
    (weights,) = state[COLLECTION]["decoder"]["layer_1"]["cross_attention"]["weights"]
    assert weights.shape == (3, 1, 6, 7)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-6)
    assert (np.asarray(weights)[:, 0].swapaxes(1, 2)[source == 0] == 0).all()


@pytest.mark.parametrize("attention", ["luong", "bahdanau"])
def test_edits_in_the_recurrence_see_positions(attention):
    """An edit of one target position leaves what is before it and changes what comes after, through the state."""
    model, params = make(attention=attention)
    batch = token_batch()
    point = "decoder/layer_1/cross_attention/context"
    editing = model.clone(interventions=Interventions({point: lambda value, name: value.at[:, 2].set(3.0)}))
    plain, edited = (m.apply({"params": params}, *batch) for m in (model, editing))
    _, state = editing.apply({"params": params}, *batch, mutable=[COLLECTION])
    (context,) = state[COLLECTION]["decoder"]["layer_1"]["cross_attention"]["context"]
    assert (context[:, 2] == 3.0).all()
    assert not (context[:, 1] == 3.0).any()
    np.testing.assert_array_equal(edited[:, :2], plain[:, :2])
    assert (np.abs(edited - plain).max(-1)[0, 2:] > 1e-3).all()


IMPOSSIBLE = {
    "d_model is 15; it must be even": dict(d_model=15),
    "num_layers is 0": dict(num_layers=0),
    "have 13 and 17 entries": dict(target_vocab_size=17),
    "recurrent_dropout_rate is 1.0": dict(recurrent_dropout_rate=1.0),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_combinations_are_named(message):
    with pytest.raises(UserError, match=re.escape(message)):
        make(**IMPOSSIBLE[message])


def test_too_long_a_sentence_is_refused():
    model, params = make(max_length=5)
    source, target = token_batch()
    for sides, message in (((source, target), "a source of 7 tokens"), ((source[:, :5], target), "a target of 6")):
        with pytest.raises(UserError, match=message):
            model.apply({"params": params}, *sides)
    with pytest.raises(UserError, match="decoding up to 6 tokens exceeds max_length=5"):
        model.incremental().start(params, source[:, :5], 1, 6)
