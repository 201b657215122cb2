"""Checkpoints that Transformers wrote: the logits of its own models, and what is said of those that do not fit."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from safetensors.flax import save_file

from tests.conversion.checkpoints import piece_model, read_fixture, write_folder
from transformer_jax.conversion import gpt2, marian
from transformer_jax.conversion.mapping import unflatten
from transformer_jax.conversion.registry import format_of_folder
from transformer_jax.conversion.tensors import read_tensors, write_tensors
from transformer_jax.data.tokenizers import load_tokenizers
from transformer_jax.errors import UserError
from transformer_jax.models.language_model import LanguageModel
from transformer_jax.models.transformer import EncoderDecoder

VOCABULARY = 32
LINES = ["one ten net", "ten tone one", "neon note ten", "tent net eon"] * 30


def vocabulary(folder, pieces: list[str]):
    """vocab.json as published checkpoints have it: the end first, padding last."""
    pieces = ["</s>", "<unk>", *pieces]
    pieces += [f"filler {i}" for i in range(VOCABULARY - 1 - len(pieces))] + ["<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    return pieces


@pytest.mark.parametrize("name", ["marian", "marian_apart", "pegasus"])
def test_logits_equal_those_of_marian_and_pegasus(name, tmp_path):
    """In Transformers decoding starts from padding; here that is the token for beginnings, and one more is padding."""
    folder = write_folder(name, tmp_path / name)
    vocabulary(folder, [])
    there, tensors, given = read_fixture(name)
    found = format_of_folder(there, folder)
    described = marian.config_of(there, "pre" if name == "pegasus" else "post")
    if name == "marian_apart":  # the tokens for padding and beginnings are counted once for each table
        described = replace(described, target_vocab_size=described.source_vocab_size)
    model, flat = found.load(folder, there, described)
    assert model.output_bias
    numbers = marian.numbers_here(there, VOCABULARY, 1)
    source, target = numbers[given["source"]], numbers[given["target"]]
    source[given["source"] == VOCABULARY - 1] = 0
    apply = jax.jit(EncoderDecoder(model).apply)
    logits = np.asarray(apply({"params": unflatten(flat)}, source, target))
    assert given["logits"].std() > 0.5
    np.testing.assert_allclose(logits[..., numbers], given["logits"], atol=1e-4)
    assert (logits[..., 0] < -1e3).all()
    again = marian.mapping(model, numbers).theirs(flat)
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert again[key].tobytes() == tensor.tobytes(), key


def test_logits_equal_those_of_gpt2(tmp_path):
    there, tensors, given = read_fixture("gpt2")
    for end in (31, 5):  # which the last token is in published ones
        config = gpt2.config_of(there)
        table = gpt2.mapping(config, end)
        params = unflatten(table.ours(tensors, "x"))
        numbers = gpt2.order(config, end)
        assert numbers[end] == 1
        apply = jax.jit(LanguageModel(config).apply)
        inputs = numbers[given["inputs"]]
        logits = np.asarray(apply({"params": params}, inputs))
        np.testing.assert_allclose(logits[..., numbers], given["logits"], atol=1e-4)
        assert (logits[..., [0, 2, 3]] < -1e3).all()
        inputs[inputs == 1] = 3
        np.testing.assert_array_equal(apply({"params": params}, inputs), logits)
        for key, tensor in table.theirs(table.ours(tensors, "x")).items():
            assert tensor.tobytes() == tensors[key].tobytes()


def test_sentencepiece_models_with_a_vocabulary_beside_them(tmp_path):
    """The ids of a text are those that the pieces, looked up in the vocabulary as Transformers does, come to."""
    folder = write_folder("marian", tmp_path / "marian")
    models = {side: piece_model([line.translate(table) for line in LINES], 14) for side, table in
              (("source", {}), ("target", str.maketrans("aeiou", "äëïöü")))}  # fmt: skip
    processors = {}
    for side, model in models.items():
        (folder / f"{side}.spm").write_bytes(model)
        processors[side] = sentencepiece.SentencePieceProcessor(model_proto=model)
    own = {side: [p.id_to_piece(i) for i in range(3, p.get_piece_size())] for side, p in processors.items()}
    union = list(dict.fromkeys([">>de<<", *own["source"][:-1], *own["target"]]))  # one piece is not in it
    pieces = vocabulary(folder, union)
    number = {piece: i for i, piece in enumerate(pieces)}
    there = json.loads((folder / "config.json").read_text())
    described = marian.describe(folder, there, "post")
    described.save_tokenizer(tmp_path / "tokenizer")
    tokenizers = load_tokenizers(tmp_path / "tokenizer")
    assert tokenizers.config.joint
    assert tokenizers.source.vocab_size == tokenizers.target.vocab_size == VOCABULARY + 1
    to_here = marian.numbers_here(there, VOCABULARY, 1)
    for side, line in (
        ("source", "one ten note"),
        ("target", "önë tën nötë"),
        ("source", "ten xylophone"),
        ("source", "të në"),
    ):
        tokenizer = getattr(tokenizers, side)
        expected = [number.get(piece, 1) for piece in processors[side].encode(line, out_type=str)]
        (found,) = tokenizer.encode([line])
        assert found == to_here[expected].tolist()
        if 2 not in found:
            assert tokenizer.decode([found]) == [line]
    (coded,) = tokenizers.source.encode([">>de<< ten one"])
    assert coded == [to_here[number[">>de<<"]], *tokenizers.source.encode(["ten one"])[0]]


def test_what_this_projects_models_are_not_is_named(tmp_path):
    there, _, _ = read_fixture("marian")
    for change, message in (
        ({"scale_embedding": False}, "scale_embedding is False; .* can only express True"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"decoder_ffn_dim": 25}, "decoder_ffn_dim is 25; .* 24"),
        ({"decoder_start_token_id": 0}, "decoder_start_token_id=0"),
    ):
        folder = write_folder("marian", tmp_path / next(iter(change)), **change)
        vocabulary(folder, [])
        with pytest.raises(UserError, match=message):
            marian.describe(folder, there | change, "post")
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx is True"):
        gpt2.config_of({**read_fixture("gpt2")[0], "scale_attn_by_inverse_layer_idx": True})
    with pytest.raises(UserError, match="model_type 'bart'; what can be imported is"):
        format_of_folder({"model_type": "bart"}, tmp_path)


def test_shards_and_half_precision_are_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: jnp.asarray(rng.standard_normal((3, 4)), dtype) for name, dtype in
              (("a", "bfloat16"), ("b", "float16"), ("c", "float32"))}  # fmt: skip
    save_file({"a": arrays["a"], "mask": jnp.ones(3, bool)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": arrays["b"], "c": arrays["c"]}, tmp_path / "model-00002-of-00002.safetensors")
    files = {name: f"model-0000{1 + (name != 'a')}-of-00002.safetensors" for name in arrays}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    found = read_tensors(tmp_path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], np.asarray(array, np.float32))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is missing"):
        read_tensors(tmp_path)


def test_pickles_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        read_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=r"pytorch_model\.bin .*can run code.*save_pretrained"):
        read_tensors(tmp_path)
    write_tensors(tmp_path / "model.safetensors", {"a": np.ones(300, np.float32)})
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-9])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        read_tensors(tmp_path)
