"""Every table of pairs, in both directions, for models of every kind that the format can express."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import drawn_like, random_parameters, tiny_config
from transformer_jax.conversion import ctranslate2, gpt2, marian
from transformer_jax.conversion.format import trimmed
from transformer_jax.conversion.mapping import Pair, flatten
from transformer_jax.errors import UserError
from transformer_jax.models.language_model import LanguageModel, LanguageModelConfig
from transformer_jax.models.transformer import unroll


def text_config(**changes: Any) -> LanguageModelConfig:
    tiny = dict(
        vocab_size=14, num_layers=2, d_model=16, d_ff=20, num_heads=4, max_length=24, norm_placement="pre",
        positions="learned", activation="gelu", tie_embeddings=True, scale_embeddings=False, initializer="gpt2",
    )  # fmt: skip
    return LanguageModelConfig(**{**tiny, **changes})


def text_parameters(config: LanguageModelConfig) -> Any:
    tokens = jnp.ones((1, 2), jnp.int32)
    return drawn_like(jax.eval_shape(LanguageModel(config).init, jax.random.key(0), tokens)["params"])


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == np.float32
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize(
    "changes",
    [
        dict(norm_placement="post", tie_embeddings="all", attention_bias=True, output_bias=True),
        dict(norm_placement="post", tie_embeddings="none", num_encoder_layers=1, scan_layers=True),
        dict(norm_placement="post", tie_embeddings="source_target", feed_forward_bias=False),
        dict(norm_placement="pre", tie_embeddings="all", positions="learned"),
        dict(norm_placement="pre", tie_embeddings="target_output", source_vocab_size=11, attention_bias=True),
    ],
    ids=str,
)
def test_marian_and_pegasus_both_ways(changes):
    config = tiny_config(**changes)
    flat = flatten(unroll(random_parameters(config)))
    table = marian.mapping(config)
    tensors = table.theirs(flat)
    plain = replace(config, scan_layers=False)
    model, back = trimmed(table.ours(tensors, "x"), marian.whole(config), plain, marian.leaves(plain))
    assert model == plain
    assert_equal(back, flat)
    assert_equal(table.theirs(back), tensors)


@pytest.mark.parametrize(
    "changes",
    [
        dict(attention_bias=True),
        dict(tie_embeddings=False, feed_forward_bias=False),
        dict(end_begins=True, attention_bias=True),
    ],
    ids=str,
)
def test_gpt2_both_ways(changes):
    config = text_config(**changes)
    flat = flatten(text_parameters(config))
    table = gpt2.mapping(config)
    tensors = table.theirs(flat)
    model, back = trimmed(table.ours(tensors, "x"), gpt2.whole(config), config, gpt2.leaves(config))
    assert model == config
    if config.end_begins:  # three tokens have no part in the model
        assert len(tensors["transformer.wte.weight"]) == config.vocab_size - 3
        table_here = flat["embedding/embedding"].copy()
        table_here[[0, 2, 3]] = 0
        flat["embedding/embedding"] = table_here
    assert_equal(back, flat)
    assert_equal(gpt2.mapping(config).theirs(back), tensors)


def test_biases_that_a_config_does_not_have_come_back_when_they_have_been_trained():
    config = tiny_config(norm_placement="post")
    tensors = marian.mapping(config).theirs(flatten(random_parameters(config)))
    name = "model.encoder.layers.1.self_attn.k_proj.bias"
    assert not tensors[name].any()
    tensors[name] = tensors[name] + np.float32(0.5)
    flat = marian.mapping(config).ours(tensors, "x")
    model, back = trimmed(flat, marian.whole(config), config, marian.leaves(config))
    assert model.attention_bias
    assert (back["encoder/layer_1/self_attention/key/bias"] == 0.5).all()


def test_ctranslate2_has_every_parameter_once_more_from_its_variables():
    config = tiny_config(norm_placement="pre", positions="learned", tie_embeddings="none", attention_bias=True)
    flat = flatten(random_parameters(config))
    table = ctranslate2.translation_mapping(config)
    back = table.ours(table.theirs(flat), "x")
    assert_equal({path: back[path] for path in flat}, flat)
    assert not back["output_bias/bias"].any()
    text = text_config(tie_embeddings=False, attention_bias=True)
    table, flat = ctranslate2.text_mapping(text), flatten(text_parameters(text))
    assert_equal(table.ours(table.theirs(flat), "x"), flat)


def test_tensors_that_do_not_fit_are_named():
    config = tiny_config(norm_placement="post")
    table = marian.mapping(config)
    tensors = table.theirs(flatten(random_parameters(config)))
    name = "model.decoder.layers.1.fc1.weight"
    without = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(UserError, match=r"FOLDER lacks model\.decoder\.layers\.1\.fc1\.weight"):
        table.ours(without, "FOLDER")
    with pytest.raises(UserError, match=r"FOLDER has what its config has no place for: model\.more"):
        table.ours(tensors | {"model.more": np.zeros(3)}, "FOLDER")
    with pytest.raises(UserError, match=r"fc1\.weight is \(24, 15\); its config asks for \(24, 16\)"):
        table.ours(tensors | {name: tensors[name][:, 1:]}, "FOLDER")
    copied = replace(table, pairs=[*table.pairs, Pair("lm_head.weight", ("shared_embedding/embedding",))])
    same = tensors | {"lm_head.weight": tensors["model.shared.weight"]}
    assert_equal(copied.ours(same, "FOLDER"), table.ours(tensors, "FOLDER"))
    with pytest.raises(UserError, match=r"model\.shared\.weight and lm_head\.weight differ"):
        copied.ours(same | {"lm_head.weight": -tensors["model.shared.weight"]}, "FOLDER")
