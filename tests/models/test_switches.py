"""What each switch of `TransformerConfig` means: equality with a formula or with a model written out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.models.tiny import BASE, random_parameters, run, tiny_config, token_batch
from transformer_jax.models.layers import row_seeds
from transformer_jax.models.positions import sinusoidal
from transformer_jax.models.seq2seq import Segments
from transformer_jax.models.transformer import EncoderDecoder, FeedForward, TransformerConfig, unroll
from transformer_jax.training.losses import cross_entropy
from transformer_jax.training.tasks import TaskConfig, TranslationTask


def equal_outputs(one: TransformerConfig, params: Any, other: TransformerConfig, others: Any) -> None:
    source, target = token_batch(seed=4)
    a, b = run(one, params, source, target), run(other, others, source, target)
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_grouped_heads_are_full_heads_with_repeated_kernels(num_kv_heads: int) -> None:
    grouped, full = tiny_config(**BASE, num_kv_heads=num_kv_heads), tiny_config(**BASE)
    params = random_parameters(grouped)

    def repeat(path: Any, leaf: Any) -> Any:
        shared = {"key", "value"} & {key.key for key in path}
        return jnp.repeat(leaf, 4 // num_kv_heads, axis=1) if shared else leaf

    equal_outputs(grouped, params, full, jax.tree_util.tree_map_with_path(repeat, params))


@pytest.mark.parametrize("switch", ["attention_bias", "feed_forward_bias"])
def test_biases_of_zero_are_no_biases(switch: str) -> None:
    with_bias, without = (tiny_config(**BASE, **{switch: value}) for value in (True, False))
    params = random_parameters(without)
    known = flatten_dict(params)
    filled = {k: known.get(k, jnp.zeros_like(v)) for k, v in flatten_dict(random_parameters(with_bias)).items()}
    assert len(filled) > len(known)
    equal_outputs(with_bias, unflatten_dict(filled), without, params)


def test_a_bias_on_logits() -> None:
    """Added to logits; the loss, which never forms them, knows it too."""
    biased, without = tiny_config(**BASE, output_bias=True), tiny_config(**BASE)
    params = random_parameters(biased)
    bias = params["output_bias"]["bias"]
    source, target = token_batch(seed=4)
    found = run(biased, params, source, target)
    rest = {name: value for name, value in params.items() if name != "output_bias"}
    np.testing.assert_allclose(found, run(without, rest, source, target) + bias, atol=2e-5)
    task = TranslationTask(EncoderDecoder(biased), TaskConfig(0.1, "none", 0.0, 0.0, loss_chunk=4))
    loss = lambda p, source, target: task.loss(p, {"source": source, "target": target}, None)[0]
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, source, target)
    real = np.asarray(target).reshape(-1) != 0
    rows = jnp.asarray(found).reshape(-1, found.shape[-1])[real]
    smoothed = lambda b: cross_entropy(rows + b, jnp.asarray(target).reshape(-1)[real], 0.1)[0].sum()
    expected, slope = jax.value_and_grad(smoothed)(jnp.zeros_like(bias))
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    np.testing.assert_allclose(gradient["output_bias"]["bias"], slope, atol=1e-4)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "relative", "alibi"])
def test_pairs_that_share_a_row_are_as_in_rows_of_their_own(positions: str) -> None:
    config = tiny_config(**BASE, positions=positions)
    params = random_parameters(config)
    apart = token_batch(seed=4)  # rows of 7, 5 and 3 source tokens, of 6, 4 and 2 target tokens
    wanted = run(config, params, *apart, method="hidden")
    packed, numbers = zip(*[_side_by_side(side) for side in apart], strict=True)
    segments = Segments(*map(jnp.asarray, numbers))
    packed_hidden = lambda model, *sides: model.hidden(*sides, segments=segments)
    together = lambda *sides: run(config, params, *sides, method=packed_hidden)
    found = together(*packed)[0]
    real = np.asarray(apart[1]) != 0
    np.testing.assert_allclose(found[: real.sum()], wanted[real], atol=2e-5)
    # A neighbour's tokens are seen by nobody else.
    other = packed[0].copy()
    other[0, 8] += 1
    np.testing.assert_array_equal(together(other, packed[1])[0, :6], found[:6])


def _side_by_side(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a batch in one row of 16, and the number of the row of each token."""
    row = np.zeros((2, 1, 16), np.int32)
    real = tokens != 0
    row[0, 0, : real.sum()], row[1, 0, : real.sum()] = tokens[real], np.nonzero(real)[0] + 1
    return row[0], row[1]


@pytest.mark.parametrize("kind", ["source_target", "target_output", "all"])
def test_tied_tables_are_one_table_in_several_places(kind: str) -> None:
    tied, untied = tiny_config(**BASE, tie_embeddings=kind), tiny_config(**BASE, tie_embeddings="none")
    params = random_parameters(tied)
    source, target, output = {
        "source_target": ("shared", "shared", "output"),
        "target_output": ("source", "target", "target"),
        "all": ("shared", "shared", "shared"),
    }[kind]
    copied = {name: params[name] for name in ("encoder", "decoder")}
    copied |= {
        f"{name}_embedding": params[f"{own}_embedding"]
        for name, own in (("source", source), ("target", target), ("output", output))
    }
    equal_outputs(tied, params, untied, copied)


def test_learned_positions_can_be_the_sinusoidal_ones() -> None:
    learned, fixed = tiny_config(**BASE, positions="learned"), tiny_config(**BASE)
    params = random_parameters(learned)
    table = {"embedding": sinusoidal(16, 16)}
    equal_outputs(learned, params | {"source_positions": table, "target_positions": table}, fixed, params)


def test_relative_positions_of_zero_are_no_positions() -> None:
    relative, none = tiny_config(**BASE, positions="relative"), tiny_config(**BASE, positions="none")
    params = random_parameters(relative)
    for stack in ("encoder", "decoder"):
        params[stack]["relative_bias"]["table"] *= 0
    equal_outputs(relative, params, none, params)


@pytest.mark.parametrize("positions", ["rotary", "relative", "alibi", "none", "sinusoidal", "learned"])
def test_only_absolute_positions_notice_a_shift(positions: str) -> None:
    """The encoder's states of a sentence that stands three (masked) places further right."""
    config = tiny_config(**BASE, positions=positions)
    params = random_parameters(config)
    source, _ = token_batch(seed=5)
    encode = lambda tokens: run(config, params, tokens, method=lambda m, s: m.encode(s)[0])
    shifted = encode(np.pad(source, ((0, 0), (3, 0))))[:, 3:]
    difference = np.abs(np.where(source[..., None] != 0, shifted - encode(source), 0)).max()
    assert difference > 0.1 if positions in ("sinusoidal", "learned") else difference < 1e-5


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "reglu", "geglu", "swiglu"])
def test_activations_are_their_formulas(activation: str) -> None:
    """Rectified, Gaussian and sigmoid units (Hendrycks and Gimpel 2016), alone or as gates (Shazeer 2020)."""
    config = tiny_config(activation=activation)
    rng = np.random.default_rng(6)
    x, first, second = (rng.standard_normal(shape) for shape in ((2, 3, 16), (16, 2, 24), (24, 16)))
    units = {
        "re": lambda z: np.maximum(z, 0),
        "ge": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
        "si": lambda z: z / (1 + np.exp(-z)),
    }
    unit = units[{"swiglu": "si"}.get(activation, activation[:2])]
    if activation.endswith("glu"):
        hidden = unit(x @ first[:, 0] + 0.5) * (x @ first[:, 1] - 0.25)
        bias = np.stack([np.full(24, 0.5), np.full(24, -0.25)])
    else:
        first = first[:, 0]
        hidden, bias = unit(x @ first + 0.5), np.full(24, 0.5)
    params = {
        "input": {"kernel": first, "bias": bias},
        "output": {"kernel": second, "bias": np.full(16, 2.0)},
    }
    got = FeedForward(config).apply({"params": jax.tree.map(jnp.float32, params)}, jnp.float32(x), None)
    np.testing.assert_allclose(got, hidden @ second + 2.0, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_exact", "silu", "reglu", "swiglu"])
def test_backwards_an_activation_is_known_from_the_product_before_it(activation: str) -> None:
    """That is kept, and what enters the second product; nothing else of this width."""
    block = FeedForward(tiny_config(activation=activation, d_ff=24))
    x = jnp.ones((2, 3, 16))
    params = nn.unbox(block.init(jax.random.key(0), x, None))["params"]
    _, backward = jax.vjp(lambda params, x: block.apply({"params": params}, x, None), params, x)
    wide = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape[:2] == (2, 3) and leaf.shape[-1] == 24]
    assert len(wide) == 2, [(leaf.shape, leaf.dtype) for leaf in wide]


ALL_DROPOUT = dict(
    dropout_rate=0.3, embedding_dropout_rate=0.2, attention_dropout_rate=0.2, activation_dropout_rate=0.1
)


DEEP = dict(num_encoder_layers=1, num_decoder_layers=2, d_ff=20, **ALL_DROPOUT)


def loss_and_gradients(config: TransformerConfig) -> Any:
    """A loss that every logit enters, with every dropout on; gradients under the unrolled names."""
    params = random_parameters(tiny_config(**DEEP, scan_layers=True))
    source, target = token_batch(seed=7)
    seeds = row_seeds(0, 0, jnp.arange(3))
    apply = lambda p: EncoderDecoder(config).apply({"params": p}, source, target, seeds)
    compiled = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.sin(apply(p)))))
    value, gradients = compiled(params if config.scan_layers else unroll(params))
    return value, unroll(gradients)


@pytest.fixture(scope="module")
def plain_gradients() -> Any:
    return loss_and_gradients(tiny_config(**DEEP))


@pytest.mark.parametrize("changes", [dict(remat="full"), dict(remat="dots", scan_layers=True)], ids=str)
def test_remat_and_scan_change_nothing(changes: dict[str, Any], plain_gradients: Any) -> None:
    """Nor the gradients: the dropout masks are the same, too."""
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)
    jax.tree.map(same, plain_gradients, loss_and_gradients(tiny_config(**DEEP, **changes)))


def test_unroll_gives_the_names_and_slices_of_the_unrolled_model() -> None:
    scanned, plain = (tiny_config(scan_layers=scan, norm_placement="pre") for scan in (True, False))
    params = random_parameters(scanned)
    unrolled = unroll(params)
    assert jax.tree.map(jnp.shape, unrolled) == jax.tree.map(jnp.shape, random_parameters(plain))
    kernel = lambda layer: layer["cross_attention"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel(unrolled["decoder"]["layer_1"]), kernel(params["decoder"]["layers"])[1])
    assert unroll(unrolled) == unrolled
    equal_outputs(scanned, params, plain, unrolled)


def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32() -> None:
    config = tiny_config(**BASE, dtype="bfloat16")
    params = random_parameters(config)
    source, target = token_batch()
    assert run(config, params, source, target, method="hidden").dtype == jnp.bfloat16
    assert run(config, params, source, target).dtype == jnp.float32
    assert np.abs(run(config, params, source, target) - run(tiny_config(**BASE), params, source, target)).max() > 0


def test_each_dropout_rate_acts_alone_and_only_with_seeds() -> None:
    source, target = token_batch(seed=8)
    params = random_parameters(tiny_config(**BASE))
    off = dict.fromkeys(ALL_DROPOUT, 0.0)

    def logits(rates: dict[str, float], seeds: Any) -> np.ndarray:
        return np.asarray(run(tiny_config(**BASE, **rates), params, source, target, seeds))

    seeds = row_seeds(0, 0, jnp.arange(3))
    plain = logits(ALL_DROPOUT, None)
    np.testing.assert_allclose(plain, logits(off, seeds), rtol=0, atol=1e-5)
    seen = [plain]
    for name in ALL_DROPOUT:
        dropped = logits(off | {name: 0.3}, seeds)
        for other in seen:
            assert np.abs(dropped - other).max() > 0.05, name
        seen.append(dropped)
