"""The encoder and what stands on it: packed rows, what sees what, scanned layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.tiny import drawn_like
from transformer_jax.errors import UserError
from transformer_jax.models.encoder import (
    Classifier,
    ClassifierConfig,
    EncoderConfig,
    MaskedLanguageModel,
    initial_parameters,
)
from transformer_jax.models.transformer import unroll

TINY = dict(
    vocab_size=14, num_layers=2, d_model=16, d_ff=20, num_heads=4, max_length=24, num_types=2, embedding_norm=True,
    scale_embeddings=False, pooler=False, initializer="bert", attention_bias=True, activation="gelu_exact",
    positions="learned",
)  # fmt: skip
TEXTS = [np.random.default_rng(i).integers(1, 14, n).astype(np.int32) for i, n in enumerate((7, 1, 5, 6))]
ROW = np.concatenate([*TEXTS, np.zeros(3, np.int32)])[None]
SEGMENTS = np.asarray([[*np.repeat([1, 2, 3, 4], [len(t) for t in TEXTS]), 0, 0, 0]], np.int32)


def config(**changes: Any) -> EncoderConfig:
    return EncoderConfig(**{**TINY, **changes})


def classifier(**changes: Any) -> ClassifierConfig:
    return ClassifierConfig(**{**TINY, "num_labels": 3, "level": "sentence", "pooling": "first", **changes})


def model_of(c: EncoderConfig) -> MaskedLanguageModel | Classifier:
    return Classifier(c) if isinstance(c, ClassifierConfig) else MaskedLanguageModel(c)


def shapes(c: EncoderConfig) -> Any:
    tokens = jnp.ones((1, 2), jnp.int32)
    return jax.eval_shape(model_of(c).init, jax.random.key(0), tokens, tokens)["params"]


def parameters(c: EncoderConfig) -> Any:
    return drawn_like(shapes(c))


def apply(c: EncoderConfig, params: Any, *args: Any) -> np.ndarray:
    run = jax.jit(lambda p, a: model_of(c).apply({"params": p}, *a))
    return np.asarray(run(params, args))


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "relative"])
def test_packed_texts_are_as_in_rows_of_their_own(positions: str) -> None:
    c = config(positions=positions, scale_embeddings=positions == "sinusoidal")
    params = parameters(c)
    packed = apply(c, params, ROW, SEGMENTS)
    first = 0
    for text in TEXTS:
        alone = apply(c, params, text[None], np.ones((1, len(text)), np.int32))
        np.testing.assert_allclose(packed[:, first : first + len(text)], alone, atol=3e-5)
        first += len(text)
    whole = apply(c, params, ROW, np.ones_like(SEGMENTS))
    assert np.abs(whole[:, 8:13] - packed[:, 8:13]).max() > 1e-2


def test_every_position_sees_its_whole_text_and_nothing_else() -> None:
    c = config(vocab_size=7)
    params, segments = parameters(c), np.asarray([[1, 1, 1, 2, 2, 0, 0]])

    def at(embedded: Any) -> Any:
        changed = {**params, "embedding": {"embedding": embedded}}
        states = MaskedLanguageModel(c).apply({"params": changed}, np.arange(7)[None], segments, method="states")
        return jnp.square(states[0]).sum(axis=-1) + states[0].sum(axis=-1) + states[0, :, 0]

    jacobian = jax.jit(jax.jacobian(at))(params["embedding"]["embedding"])
    seen = np.abs(np.asarray(jacobian)).max(axis=2) > 1e-7
    np.testing.assert_array_equal(seen, segments[0][:, None] == segments[0][None])


def test_a_sentences_label_does_not_depend_on_padding_and_a_words_label_is_its_own() -> None:
    rows = np.stack([np.pad(TEXTS[0], (0, 3)), np.pad(TEXTS[3], (0, 4))])
    for changes in (dict(pooler=True), dict(pooling="mean"), dict(level="token")):
        c = classifier(**changes)
        params = parameters(c)
        both = apply(c, params, rows, (rows > 0).astype(np.int32))
        for row, text in zip(both, (TEXTS[0], TEXTS[3]), strict=True):
            (alone,) = apply(c, params, text[None], np.ones((1, len(text)), np.int32))
            np.testing.assert_allclose(row[: len(text)] if c.level == "token" else row, alone, atol=1e-5)


def test_types_are_told_apart() -> None:
    c = classifier()
    params, ones = parameters(c), np.ones((1, 7), np.int32)
    first, second = (apply(c, params, TEXTS[0][None], ones, types) for types in (0 * ones, ones))
    np.testing.assert_array_equal(first, apply(c, params, TEXTS[0][None], ones))
    assert np.abs(first - second).max() > 1e-2


def test_scanned_layers_compute_the_same() -> None:
    c = config(scan_layers=True, remat="full")
    params = parameters(c)
    found = apply(c, params, ROW, SEGMENTS)
    np.testing.assert_allclose(found, apply(config(), unroll(params), ROW, SEGMENTS), atol=1e-5)


def test_berts_initialisation() -> None:
    c = config(d_model=128, d_ff=256)
    params = nn.unbox(jax.jit(lambda key: initial_parameters(MaskedLanguageModel(c), key))(jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key in ("kernel", "embedding"):
            assert float(leaf.std()) == pytest.approx(0.02, rel=0.12), path
        else:
            assert set(np.unique(leaf)) == {float(path[-1].key == "scale")}, path


def test_impossible_models_are_named() -> None:
    with pytest.raises(UserError, match="pooler=True reads the first state"):
        classifier(pooler=True, pooling="mean")
    with pytest.raises(UserError, match="an input of 30 tokens exceeds max_length=24"):
        apply(config(), parameters(config()), np.ones((1, 30), np.int32), np.ones((1, 30), np.int32))
