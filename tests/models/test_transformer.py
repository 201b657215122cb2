"""What holds for every `TransformerConfig`: sizes, shapes, causality, padding, cache; and what is refused."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.tiny import BASE, random_parameters, run, tiny_config, token_batch
from transformer_jax.decoding.interface import replace_rows
from transformer_jax.errors import UserError
from transformer_jax.models.layers import row_seeds
from transformer_jax.models.transformer import EncoderDecoder, IncrementalDecoder, TransformerConfig
from transformer_jax.training.window import CompileCounter

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "pre_norm": dict(norm_placement="pre"),
    "rms_norm": dict(norm="rms_norm"),
    "pre_rms_norm": dict(norm_placement="pre", norm="rms_norm"),
    "learned": dict(positions="learned"),
    "rotary": dict(positions="rotary"),
    "relative": dict(positions="relative"),
    "alibi": dict(positions="alibi"),
    "no_positions": dict(positions="none"),
    "gelu": dict(activation="gelu"),
    "silu": dict(activation="silu"),
    "reglu": dict(activation="reglu"),
    "geglu": dict(activation="geglu"),
    "swiglu": dict(activation="swiglu"),
    "multi_query": dict(num_kv_heads=1),
    "grouped": dict(num_kv_heads=2, positions="rotary"),
    "depths": dict(num_encoder_layers=3, num_decoder_layers=2),
    "untied": dict(tie_embeddings="none", source_vocab_size=17),
    "shared_inputs": dict(tie_embeddings="source_target"),
    "tied_target": dict(tie_embeddings="target_output", source_vocab_size=17),
    "attention_bias": dict(attention_bias=True),
    "no_feed_forward_bias": dict(feed_forward_bias=False),
    "output_bias": dict(output_bias=True),
    "bfloat16": dict(dtype="bfloat16"),
    "bfloat16_products": dict(dtype="bfloat16_products"),
    "remat": dict(remat="full"),
    "remat_dots": dict(remat="dots", scan_layers=True, num_decoder_layers=2),
    "scan": dict(scan_layers=True, num_encoder_layers=2, num_decoder_layers=2),
    "modern": dict(
        norm_placement="pre", norm="rms_norm", positions="rotary", activation="swiglu", num_kv_heads=2,
        feed_forward_bias=False, scan_layers=True, remat="full", attention_bias=True, num_decoder_layers=2,
    ),
}  # fmt: skip
SAME_FUNCTION = {"base", "remat", "bfloat16", "bfloat16_products"}
"""Variants that compute what the base does, exactly or nearly, from the same parameters."""
ELSEWHERE = {
    "gelu",
    "silu",
    "reglu",
    "geglu",
    "tied_target",
    "shared_inputs",
    "no_feed_forward_bias",
}
"""Variants that test_switches.py covers, and which no cache, mask or position can tell from the base."""


def config_of(variant: str) -> TransformerConfig:
    return tiny_config(**{**BASE, **VARIANTS[variant]})


def number_of_parameters(c: TransformerConfig) -> int:
    """The formula, from the equations alone."""
    D, F, V = c.d_model, c.d_ff, c.target_vocab_size
    head = D // c.num_heads
    keys = head * (c.num_heads if c.num_kv_heads is None else c.num_kv_heads)
    attention = 2 * D * D + 2 * D * keys + (2 * D + 2 * keys if c.attention_bias else 0)
    inner = 2 * F if c.activation in ("reglu", "geglu", "swiglu") else F
    feed_forward = D * inner + F * D + (inner + D if c.feed_forward_bias else 0)
    norm = D if c.norm == "rms_norm" else 2 * D
    total = c.num_encoder_layers * (attention + feed_forward + 2 * norm)
    total += c.num_decoder_layers * (2 * attention + feed_forward + 3 * norm)
    total += 2 * norm if c.norm_placement == "pre" else 0
    total += V if c.output_bias else 0
    total += {"learned": 2 * c.max_length * D, "relative": 2 * c.num_heads * 32}.get(c.positions, 0)
    separate = c.source_vocab_size + V
    return (
        total
        + D * {"all": V, "source_target": 2 * V, "target_output": separate, "none": separate + V}[c.tie_embeddings]
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count_is_the_formula(variant: str) -> None:
    config = config_of(variant)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    shapes = jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), tokens, tokens)["params"]
    leaves = jax.tree.leaves(nn.unbox(shapes))
    assert sum(leaf.size for leaf in leaves) == number_of_parameters(config)
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}


@pytest.fixture(scope="module")
def beams() -> dict[str, np.ndarray]:
    """Beams that split and die for five steps: source int32[B, S], parents and tokens int32[T, B, K]; and the
    histories of the last ones as a batch: sources [B·K, S], targets [B·K, T]."""
    source, _ = token_batch(seed=1)
    rng = np.random.default_rng(2)
    parents, tokens = rng.integers(0, 2, (5, 3, 2)), rng.integers(4, 13, (5, 3, 2)).astype(np.int32)
    targets = histories(parents, tokens).reshape(6, 5)
    return dict(source=source, parents=parents, tokens=tokens, sources=np.repeat(source, 2, axis=0), targets=targets)


@pytest.fixture(scope="module")
def base_logits(beams) -> np.ndarray:
    config = config_of("base")
    return np.asarray(run(config, random_parameters(config), beams["sources"], beams["targets"]))


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - ELSEWHERE))
def test_contract(variant: str, beams: dict[str, np.ndarray], base_logits: np.ndarray) -> None:
    """Logits float32[B, T, V]; padding changes nothing; no position sees a later one; cache equals no cache;
    and the switch has an effect, though every parameter shared with the base is equal."""
    config = config_of(variant)
    model, params = EncoderDecoder(config), random_parameters(config)
    decoder = IncrementalDecoder(model)
    sources, target, parents = beams["sources"], beams["targets"], beams["parents"]
    steps, _, width = parents.shape

    def of_inputs(m: EncoderDecoder, delta: Any) -> Any:
        """The logits, as a function of what is added to the decoder's embedded inputs of the first row."""
        memory, bias = m.encode(sources)
        inputs = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=3)
        x = m._embed("target", inputs, 0, None).astype(jnp.float32).at[0].add(delta)
        return m.logits(m.decoder(x.astype(config.activation_dtype), None, memory, bias, None))

    def everything(params: Any) -> tuple[Any, ...]:
        apply = lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs)
        wider = apply(np.pad(sources, ((0, 0), (0, 4))), np.pad(target, ((0, 0), (0, 3))))
        delta = jnp.zeros((steps, config.d_model))
        logits, pullback = jax.vjp(lambda d: apply(d, method=of_inputs), delta)
        seen = (
            jnp.zeros((steps, *logits.shape)).at[:, 0].set(jnp.eye(steps)[..., None] * jnp.sin(jnp.arange(1.0, 14.0)))
        )
        (jacobian,) = jax.vmap(pullback)(seen)

        def step(carry: Any, given: Any) -> tuple[Any, Any]:
            cache, fed = carry
            logits, cache = decoder.step(params, cache, fed)
            return (decoder.reorder(cache, given[0]), given[1]), logits

        first = (decoder.start(params, beams["source"], width, steps), jnp.full((3, width), 3, jnp.int32))
        return logits, wider, jacobian, jax.lax.scan(step, first, (parents, beams["tokens"]))[1]

    logits, wider, jacobian, cached = jax.jit(everything)(params)
    assert logits.shape == (3 * width, steps, 13)
    assert logits.dtype == wider.dtype == cached.dtype == jnp.float32
    near = dict(rtol=0, atol=2e-5 if config.dtype == "float32" else 0.1)
    np.testing.assert_allclose(wider[:, :steps], logits, **near)
    np.testing.assert_allclose(survivors(cached, parents), logits.reshape(3, width, steps, -1), **near)
    difference = np.abs(logits - base_logits).max()
    assert difference <= 10 * near["atol"] if variant in SAME_FUNCTION else difference > 0.2
    sees = np.abs(jacobian).max(axis=-1)  # [position of the logits, position of the input]
    assert (sees[np.triu_indices(steps, 1)] == 0).all()
    assert (sees[np.tril_indices(steps)] > 0).all()


def histories(parents: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The tokens [B, K, T] of the last beams: at every step beams follow parents, then grow by tokens."""
    T, B, K = tokens.shape
    history = np.zeros((B, K, 0), np.int32)
    for t in range(T):
        history = np.take_along_axis(history, parents[t][:, :, None], axis=1)
        history = np.concatenate([history, tokens[t][:, :, None]], axis=-1)
    return history


def survivors(steps: Any, parents: np.ndarray) -> np.ndarray:
    """What each final beam's own ancestors got at every step: [T, B, K, V] -> [B, K, T, V]."""
    T, B, K = parents.shape
    slot = np.broadcast_to(np.arange(K), (B, K))
    rows = []
    for t in reversed(range(T)):
        slot = np.take_along_axis(parents[t], slot, axis=1)
        rows.append(np.take_along_axis(np.asarray(steps[t]), slot[:, :, None], axis=1))
    return np.stack(rows[::-1], axis=2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(positions="learned"),
        dict(positions="rotary", num_kv_heads=2),
        dict(positions="relative"),
        dict(positions="alibi", num_kv_heads=1),
    ],
    ids=str,
)
def test_a_refilled_row_starts_anew_among_older_ones(changes: dict[str, Any]) -> None:
    """Row 1 ends after three of five steps and is replaced, so its slots are free again; its neighbour goes
    on. Both get what the whole forward pass gives."""
    config = tiny_config(**{**BASE, **changes})
    model, params = EncoderDecoder(config), random_parameters(config)
    decoder, width, steps = IncrementalDecoder(model), 2, 5
    source, _ = token_batch(seed=9, rows=3)
    tokens = np.random.default_rng(9).integers(4, 13, (8, 2, width)).astype(np.int32)
    tokens[0] = tokens[3, 1] = 3  # BOS

    def everything(params: Any) -> Any:
        cache = decoder.start(params, source[:2], width, steps)
        fresh = decoder.start(params, source[2:], width, steps)
        step = lambda cache, fed: decoder.step(params, cache, fed)[::-1]
        cache, first = jax.lax.scan(step, cache, tokens[:3])
        cache = replace_rows(cache, fresh, jnp.array([1]))
        _, second = jax.lax.scan(step, cache, tokens[3:])
        targets = lambda fed: np.pad(fed[1:], ((0, 1), (0, 0))).T  # what is fed, shifted back
        whole = [
            model.apply({"params": params}, np.repeat(source[row : row + 1], width, axis=0), targets(fed))
            for row, fed in ((0, tokens[:5, 0]), (2, tokens[3:, 1]))
        ]
        return jnp.concatenate([first, second]), whole

    got, (old, new) = jax.jit(everything)(params)
    np.testing.assert_allclose(got[:5, 0].swapaxes(0, 1), old, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got[3:, 1].swapaxes(0, 1), new, rtol=0, atol=2e-5)


IMPOSSIBLE = {
    "d_model=16 is not divisible by num_heads=3": dict(num_heads=3),
    "num_heads=4 is not divisible by num_kv_heads=3": dict(num_kv_heads=3),
    "not divisible by num_kv_heads=0": dict(num_kv_heads=0),
    "d_model=12 / num_heads=4 is 3": dict(d_model=12, positions="rotary"),
    "even d_model; it is 15": dict(d_model=15, num_heads=3),
    "have 13 and 17 entries": dict(target_vocab_size=17),
    "'source_target' shares one table": dict(target_vocab_size=17, tie_embeddings="source_target"),
    "d_ff is 0": dict(d_ff=0),
    "num_encoder_layers is 0": dict(num_encoder_layers=0),
    "num_decoder_layers is -1": dict(num_decoder_layers=-1),
    "max_length is 0": dict(max_length=0),
    "attention_dropout_rate is 1.0": dict(attention_dropout_rate=1.0),
    "embedding_dropout_rate is -0.1": dict(embedding_dropout_rate=-0.1),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_combinations_are_named(message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        tiny_config(**IMPOSSIBLE[message])


def test_too_long_a_sentence_is_refused() -> None:
    config = tiny_config(max_length=5)
    source, target = token_batch()
    with pytest.raises(UserError, match="a source of 7 tokens exceeds max_length=5"):
        jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), source, target)
    with pytest.raises(UserError, match="a target of 6 tokens exceeds max_length=5"):
        jax.eval_shape(EncoderDecoder(config).init, jax.random.key(0), source[:, :5], target)
    decoder = IncrementalDecoder(EncoderDecoder(config))
    with pytest.raises(UserError, match="decoding up to 6 tokens exceeds max_length=5"):
        decoder.start(random_parameters(config), source[:, :5], 1, 6)


def test_a_model_applied_again_compiles_nothing_again() -> None:
    """Also without a `jit` around it, as in a notebook."""
    config = tiny_config()
    params, batch = random_parameters(config), token_batch()
    apply = lambda: EncoderDecoder(config).apply({"params": params}, *batch, row_seeds(0, 0, jnp.arange(3)))
    first, compiles = apply(), CompileCounter()
    np.testing.assert_array_equal(apply(), first)
    assert compiles.count == 0
