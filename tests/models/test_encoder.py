"""The encoder and what stands on it: packed rows, what sees what, scanned layers, parity with Hugging Face's BERT."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.tiny import QUICK, drawn_like
from transformer_jax.errors import UserError
from transformer_jax.models.bert_weights import (
    config_of_bert,
    from_bert,
    model_of,
    settings_of_bert,
    shapes_of,
    to_bert,
)
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


def parameters(c: EncoderConfig) -> Any:
    tokens = jnp.ones((1, 2), jnp.int32)
    return drawn_like(jax.eval_shape(model_of(c).init, jax.random.key(0), tokens, tokens)["params"])


def apply(c: EncoderConfig, params: Any, *args: Any) -> np.ndarray:
    run = jax.jit(lambda p, a: model_of(c).apply({"params": p}, *a), compiler_options=QUICK)
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

    jacobian = jax.jit(jax.jacobian(at), compiler_options=QUICK)(params["embedding"]["embedding"])
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


@pytest.mark.parametrize(
    ("sizes", "masked", "published"),
    [((12, 768, 12), 109_514_298, 110e6), ((24, 1024, 16), 335_174_458, 340e6)],
    ids=["base", "large"],
)
def test_berts_sizes(sizes: tuple[int, int, int], masked: int, published: float) -> None:
    """The counts of Transformers' BertForMaskedLM; the paper's are rounded."""
    layers, width, heads = sizes
    changes = dict(vocab_size=30522, num_layers=layers, d_model=width, d_ff=4 * width, num_heads=heads, max_length=512)
    count = lambda c: sum(math.prod(shape) for shape in shapes_of(c).values())
    assert count(config(**changes)) == masked == pytest.approx(published, rel=0.015)
    assert count(config(**changes, pooler=True)) == masked + width * (width + 1)


def read_fixture(name: str) -> tuple[EncoderConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """BERT of random weights as Hugging Face has it: config, tensors, and the other arrays."""
    with np.load(Path(__file__).parent / "fixtures" / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    there = {k.removeprefix("config/"): int(v) for k, v in arrays.items() if k.startswith("config/")}
    tensors = {k.removeprefix("theirs/"): v for k, v in arrays.items() if k.startswith("theirs/")}
    found = config_of_bert(there, pooler="bert.pooler.dense.weight" in tensors)
    if name == "bert_classifier":
        own = dict(num_labels=3, level="sentence", pooling="first")
        found = ClassifierConfig(**dataclasses.asdict(found), **own)  # type: ignore[arg-type]
    return found, tensors, arrays


@pytest.mark.parametrize("name", ["bert", "bert_classifier"])
def test_logits_equal_berts(name: str) -> None:
    c, tensors, given = read_fixture(name)
    here = (given["inputs"] != 0).astype(np.int32)
    found = apply(c, from_bert(tensors, c), given["inputs"], here, given["types"])
    assert given["logits"].std() > 0.2
    seen = here > 0 if name == "bert" else slice(None)
    np.testing.assert_allclose(found[seen], given["logits"][seen], atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "bert_classifier"])
def test_berts_weights_go_both_ways_unchanged(name: str) -> None:
    c, tensors, _ = read_fixture(name)
    params = from_bert(tensors, c)
    back = to_bert(params, c)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)
    old = {k.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, from_bert(old, c), params)


def test_settings_go_both_ways() -> None:
    c, _, _ = read_fixture("bert")
    assert config_of_bert(settings_of_bert(c), pooler=False) == c
    told, _, _ = read_fixture("bert_classifier")
    settings = settings_of_bert(told, ["bad", "fair", "good"])
    assert settings["architectures"] == ["BertForSequenceClassification"]
    assert settings["id2label"] == {"0": "bad", "1": "fair", "2": "good"}


def test_what_is_not_bert_is_named() -> None:
    c, tensors, _ = read_fixture("bert")
    with pytest.raises(UserError, match=r"word_embeddings\.weight is \(32, 16\); the config asks for \(31, 16\)"):
        from_bert(tensors, dataclasses.replace(c, vocab_size=31))
    with pytest.raises(UserError, match=r"no place for bert\.pooler\.dense\.bias"):
        from_bert({**tensors, "bert.pooler.dense.bias": np.zeros(16)}, c)
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(UserError, match=r"no tensor bert\.encoder\.layer\.1\.output\.dense\.bias"):
        from_bert(tensors, c)
    with pytest.raises(UserError, match=r"model\.norm_placement is 'pre'; BERT's is 'post'"):
        to_bert({}, config(norm_placement="pre"))
    with pytest.raises(UserError, match="hidden_act is 'tanh'"):
        config_of_bert({"hidden_act": "tanh"}, pooler=False)
    with pytest.raises(UserError, match="pooler=True reads the first state"):
        classifier(pooler=True, pooling="mean")
    assert isinstance(model_of(classifier()), Classifier)
