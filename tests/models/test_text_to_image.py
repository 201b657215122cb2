"""The text-to-image model: sparse masks as in the paper, causality, and cached decoding that equals the whole pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transformer_jax.decoding.guidance import Guided
from transformer_jax.errors import UserError
from transformer_jax.models.text_to_image import (
    SPECIAL,
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
    text, codes = jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 9), jnp.int32)
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), text, codes)["params"])
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
    assert masks.shape == (3, 12, 12)
    assert masks[:, 4:, :4].all()  # images see the whole text
    assert not np.triu(masks, 1).any()
    assert (masks[0] != masks[1]).any()


def test_nothing_depends_on_what_comes_later(model_and_params):
    model, params = model_and_params
    text, codes = jnp.array([[1, 2, 3]]), jnp.array([[0, 1, 2, 3, 4, 5, 0, 1, 2]])
    whole = model.apply({"params": params}, text, codes)
    for place in (0, 4, 8):
        changed = codes.at[0, place].set((codes[0, place] + 1) % 6)
        other = model.apply({"params": params}, text, changed)
        np.testing.assert_array_equal(whole[0], other[0])
        np.testing.assert_array_equal(whole[1][:, : place + 1], other[1][:, : place + 1])
        if place < 8:
            assert (whole[1][:, place + 1] != other[1][:, place + 1]).any()
    other = model.apply({"params": params}, text.at[0, 2].set(5), codes)
    np.testing.assert_array_equal(whole[0], other[0])
    assert (whole[1] != other[1]).any(axis=-1).all()


@pytest.mark.parametrize(
    "changes", [{}, {"norm_placement": "post", "image_attention": "full"}, {"num_kv_heads": 1, "scan_layers": True}]
)
def test_cached_decoding_equals_the_whole_pass(changes):
    """Two beams of two captions that swap places on the way."""
    model, params = make_model(**changes)
    decoder = IncrementalTextToImage(model)
    text = jnp.array([[1, 2, 3], [4, 9, 10]])
    source = jnp.concatenate([text, jnp.ones((2, 1), jnp.int32)], axis=1)  # as decoding ends it
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, (2, 2, 9))
    histories = np.zeros((2, 2, 0), int)
    cache = jax.jit(lambda p, s: decoder.start(p, s, 2, 10))(params, source)
    step = jax.jit(decoder.step)
    found, tokens = [], jnp.full((2, 2), 3)
    for i in range(9):
        logits, cache = step(params, cache, tokens)
        assert (logits[..., :SPECIAL] < -1e8).all()
        found.append(logits[..., SPECIAL:])
        if i == 4:
            parents = jnp.array([[1, 0], [1, 1]])
            cache = decoder.reorder(cache, parents)
            histories = np.take_along_axis(histories, np.asarray(parents)[:, :, None], axis=1)
        histories = np.concatenate([histories, codes[:, :, i : i + 1]], axis=2)
        tokens = jnp.asarray(codes[:, :, i]) + SPECIAL
    logits, _ = step(params, cache, tokens)
    assert jnp.argmax(logits, axis=-1).tolist() == [[1, 1], [1, 1]]  # the image is complete
    for beam in range(2):
        whole = model.apply({"params": params}, text, jnp.asarray(histories[:, beam]))[1]
        for i in range(5, 9):  # since they swapped places
            np.testing.assert_allclose(found[i][:, beam], whole[:, i], atol=2e-5)
    np.testing.assert_allclose(found[0][:, 0], model.apply({"params": params}, text, codes[:, 0])[1][:, 0], atol=2e-5)


def test_log_probs_are_those_of_the_logits(model_and_params):
    model, params = model_and_params
    text, codes = jnp.array([[1, 2, 3]]), jnp.array([[0, 1, 2, 3, 4, 5, 0, 1, 2]])
    logits = model.apply({"params": params}, text, codes)[1]
    expected = sum(jax.nn.log_softmax(logits)[0, i, code] for i, code in enumerate(codes[0].tolist()))
    found = model.apply({"params": params}, text, codes, method="log_probs")
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_guidance_is_a_step_away_from_no_caption(model_and_params):
    model, params = model_and_params
    decoder = IncrementalTextToImage(model)
    nothing = tuple(map(int, model.config.no_caption))
    assert nothing == (8, 9, 10)
    source, tokens = jnp.array([[1, 2, 3, 1]]), jnp.full((1, 1), 3)
    logits = {}
    for name, search, given in (
        ("asked", decoder, source),
        ("unasked", decoder, jnp.array([[*nothing, 1]])),
        ("guided", Guided(decoder, 3.0, nothing), source),
        ("plain", Guided(decoder, 1.0, nothing), source),
    ):
        cache = search.start(params, given, 1, 10)
        _, cache = search.step(params, cache, tokens)
        logits[name], _ = search.step(params, cache, tokens + 2)
    expected = logits["unasked"] + 3 * (logits["asked"] - logits["unasked"])
    np.testing.assert_allclose(logits["guided"][..., SPECIAL:], expected[..., SPECIAL:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits["plain"], logits["asked"], rtol=1e-5, atol=1e-5)


def test_impossible_configs_say_what_would_do():
    for changes, message in (
        ({"positions": "rotary"}, "positions is 'rotary'.*'learned'"),
        ({"kernel": 4}, "kernel is 4; it must be odd"),
        ({"max_length": 11}, "12 tokens, max_length is 11"),
    ):
        with pytest.raises(UserError, match=message):
            make_config(**changes)
