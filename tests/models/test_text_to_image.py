"""The text-to-image model: sparse masks as in the paper, causality, and cached decoding that equals the whole pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transformer_jax.decoding.guidance import Guided
from transformer_jax.decoding.interface import replace_rows
from transformer_jax.errors import UserError
from transformer_jax.models.text_to_image import (
    IncrementalTextToImage,
    TextToImage,
    TextToImageConfig,
    attention_masks,
    image_mask,
)


def make_config(**changes):
    sizes = dict(text_vocab_size=8, text_length=3, image_vocab_size=6, grid=3, num_layers=3, kernel=3)
    rest = dict(d_model=8, d_ff=16, num_heads=2, norm_placement="pre", positions="learned", image_attention="sparse")
    return TextToImageConfig(**{**sizes, **rest, **changes})


def make_model(**changes):
    model = TextToImage(make_config(**changes))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 13), jnp.int32))["params"])
    noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)
    return model, jax.tree.map(noise, params)


@pytest.fixture(scope="module")
def model_and_params():
    return make_model()


def test_masks_are_those_of_figure_11():
    """A 4 x 4 grid: rows reach back to the token above, columns skip, convolutions wrap around as rows do."""
    seen = {kind: [np.flatnonzero(row).tolist() for row in image_mask(kind, 4, 3)] for kind in ("row", "column")}
    assert seen["row"][9] == [5, 6, 7, 8, 9]
    assert seen["row"][2] == [0, 1, 2]
    assert seen["column"][9] == [1, 5, 9]
    convolution = [np.flatnonzero(row).tolist() for row in image_mask("convolution", 4, 3)]
    assert convolution[9] == [4, 5, 6, 8, 9]
    assert convolution[8] == [3, 4, 5, 7, 8]  # what is left of the edge is the end of the row above
    assert image_mask("full", 4, 3).sum() == 16 * 17 / 2


def test_layers_take_turns_as_in_the_paper():
    assert make_config(num_layers=8).kinds == ("row", "column", "row", "row", "row", "column", "row", "convolution")
    assert make_config(num_layers=2, image_attention="full").kinds == ("full", "full")
    masks = attention_masks(make_config())
    assert masks.shape == (3, 13, 13)
    assert masks[:, 4:, :4].all()  # images see the whole text
    assert not np.triu(masks, 1).any()
    assert (masks[0] != masks[1]).any()


def sequence(text=(1, 2, 3), codes=(0, 1, 2, 3, 4, 5, 0, 1, 2)):
    """Start, text and image: code v is the token 8 + 3 + v."""
    return jnp.array([[3, *text, *(11 + code for code in codes)]])


def test_nothing_depends_on_what_comes_later(model_and_params):
    model, params = model_and_params
    apply = jax.jit(lambda inputs: model.apply({"params": params}, inputs))
    inputs = sequence()
    whole = apply(inputs)
    for place in (1, 3, 4, 8, 12):
        other = apply(inputs.at[0, place].set(5 if place < 4 else 11 + (inputs[0, place] - 10) % 6))
        np.testing.assert_array_equal(whole[:, :place], other[:, :place])
        if place < 12:
            assert (whole[:, place] != other[:, place]).any()
    begun = jax.jit(lambda inputs: model.apply({"params": params}, inputs))(inputs[:, :7])
    np.testing.assert_allclose(begun, whole[:, :7], atol=1e-5)


def test_text_is_followed_by_an_image_and_that_by_the_end(model_and_params):
    model, params = model_and_params
    likely = np.asarray(model.apply({"params": params}, sequence())[0]) > -1e8
    tokens = np.arange(17)
    for position, row in enumerate(likely):
        expected = tokens < 11 if position < 3 else tokens >= 11 if position < 12 else tokens == 1
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize(
    "changes", [{}, {"norm_placement": "post", "image_attention": "full"}, {"num_kv_heads": 1, "scan_layers": True}]
)
def test_cached_decoding_equals_the_whole_pass(changes):
    """Two beams of two captions; half way one row's beams swap places, the other's second takes over."""
    model, params = make_model(**changes)
    decoder = IncrementalTextToImage(model)
    text = np.array([[3, 1, 2, 3], [3, 4, 9, 10]])
    source = jnp.asarray(np.pad(text, ((0, 0), (0, 1)), constant_values=1))  # as decoding ends it
    written = np.random.default_rng(0).integers(11, 17, (2, 2, 9))
    histories = np.zeros((2, 2, 0), int)
    cache = jax.jit(lambda p, s: decoder.start(p, s, 2, 10))(params, source)
    step = jax.jit(decoder.step)
    found, tokens = [], jnp.full((2, 2), 3)
    for i in range(9):
        logits, cache = step(params, cache, tokens)
        found.append(logits)
        if i == 4:
            parents = np.array([[1, 0], [1, 1]])
            cache = decoder.reorder(cache, jnp.asarray(parents))
            histories = np.take_along_axis(histories, parents[:, :, None], axis=1)
        histories = np.concatenate([histories, written[:, :, i : i + 1]], axis=2)
        tokens = jnp.asarray(written[:, :, i])
    logits, _ = step(params, cache, tokens)
    assert jnp.argmax(logits, axis=-1).tolist() == [[1, 1], [1, 1]]  # the image is complete
    whole = jax.jit(lambda rows: model.apply({"params": params}, rows))
    for beam in range(2):
        expected = whole(np.concatenate([text, histories[:, beam]], axis=1))[:, 3:]
        for i in (0, *range(5, 9)):  # before any choice, and since they swapped places
            np.testing.assert_allclose(found[i][:, beam], expected[:, i], atol=2e-5)


def test_a_replaced_row_starts_anew_among_older_ones(model_and_params):
    """After four codes the second caption gives its place to a third."""
    model, params = model_and_params
    decoder = IncrementalTextToImage(model)
    text = np.array([[3, 1, 2, 3], [3, 4, 9, 10], [3, 5, 6, 10]])
    source = np.pad(text, ((0, 0), (0, 1)), constant_values=1)
    start, step = jax.jit(lambda p, s: decoder.start(p, s, 1, 10)), jax.jit(decoder.step)
    fed = np.random.default_rng(1).integers(11, 17, (9, 2, 1))
    cache, found = start(params, source[:2]), []
    for t in range(9):
        if t == 4:
            cache = replace_rows(cache, start(params, source[2:]), jnp.array([1]))
        logits, cache = step(params, cache, jnp.asarray(fed[t]))
        found.append(logits[:, 0])
    for b, first, caption in ((0, 0, text[0]), (1, 4, text[2])):
        whole = np.concatenate([caption, fed[first + 1 :, b, 0]])[None]
        expected = model.apply({"params": params}, whole)[0, 3:]
        np.testing.assert_allclose([logits[b] for logits in found[first:]], expected, atol=2e-5)


def test_log_probs_are_those_of_the_logits(model_and_params):
    model, params = model_and_params
    inputs = sequence()
    log_probs = jax.nn.log_softmax(model.apply({"params": params}, inputs)[0])
    expected = sum(log_probs[3 + i, token] for i, token in enumerate(inputs[0, 4:].tolist()))
    found = model.apply({"params": params}, inputs[:, 1:], method="log_probs")
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_guidance_is_a_step_away_from_no_caption(model_and_params):
    model, params = model_and_params
    decoder = IncrementalTextToImage(model)
    nothing = (3, *map(int, model.config.no_caption))
    assert nothing == (3, 8, 9, 10)
    source, tokens = jnp.array([[3, 1, 2, 3, 1]]), jnp.full((1, 1), 12)
    logits = {}
    for name, search, given in (
        ("asked", decoder, source),
        ("unasked", decoder, jnp.array([[*nothing, 1]])),
        ("guided", Guided(decoder, 3.0, nothing), source),
    ):
        step = jax.jit(search.step)
        cache = jax.jit(lambda p, s, search=search: search.start(p, s, 1, 10))(params, given)
        _, cache = step(params, cache, tokens)
        logits[name] = step(params, cache, tokens)[0][..., 11:]
    expected = logits["unasked"] + 3 * (logits["asked"] - logits["unasked"])
    np.testing.assert_allclose(logits["guided"], expected, rtol=1e-4, atol=1e-4)


def test_impossible_configs_say_what_would_do():
    for changes, message in (
        ({"positions": "rotary"}, "positions is 'rotary'.*'learned'"),
        ({"kernel": 4}, "kernel is 4; it must be odd"),
        ({"text_length": 0}, "text_length is 0"),
    ):
        with pytest.raises(UserError, match=message):
            make_config(**changes)
