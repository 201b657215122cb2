"""CTranslate2's model directory, written without it: TransformerSpec for translation, TransformerDecoderSpec for text.

A linear layer is [out, in]; queries, keys and values are one matrix [3D, D], keys and values of the source [2D, D].
The file format is that of its ``ModelSpec._serialize``, binary version 6.
"""

import io
import json
import struct
from collections.abc import Mapping as ReadMapping
from typing import Any

import numpy as np

from transformer_jax.conversion import gpt2, marian
from transformer_jax.conversion.format import Bundle, Format, require, switches
from transformer_jax.conversion.mapping import Flat, Mapping, Pair, flatten
from transformer_jax.conversion.text_files import END, text_tokenizer_files, vocabulary
from transformer_jax.errors import UserError
from transformer_jax.models.language_model import LanguageModelConfig
from transformer_jax.models.layers import UNLIKELY
from transformer_jax.models.positions import sinusoidal
from transformer_jax.models.tokens import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from transformer_jax.models.transformer import BlockConfig, TransformerConfig

BINARY_VERSION = 6
REVISIONS = {"TransformerSpec": 7, "TransformerDecoderSpec": 8}
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3}
ACTIVATIONS = {"relu": 0, "gelu": 1, "silu": 2}
ALLOWED = {
    "model.architecture": ("transformer",),
    "model.norm": ("layer_norm",),
    "model.positions": ("sinusoidal", "learned"),
    "model.activation": tuple(ACTIVATIONS),
    "model.num_kv_heads": (None,),
}
SIDES = {"encoder": "source", "decoder": "target"}
TABLES = {  # parameters here of encoder, decoder and projection, by model.tie_embeddings
    "all": ("shared", "shared", "shared"),
    "source_target": ("shared", "shared", "output"),
    "target_output": ("source", "target", "target"),
    "none": ("source", "target", "output"),
}
Variables = dict[str, np.ndarray]


def norm(there: str, here: str) -> list[Pair]:
    return [Pair(f"{there}/gamma", (f"{here}/scale",)), Pair(f"{there}/beta", (f"{here}/bias",))]


def linear(there: str, *here: str) -> list[Pair]:
    return [
        Pair(f"{there}/weight", tuple(f"{name}/kernel" for name in here), transposed=True),
        Pair(f"{there}/bias", tuple(f"{name}/bias" for name in here)),
    ]


def stack_pairs(config: BlockConfig, stack: str, depth: int, has_memory: bool) -> list[Pair]:
    """The table of one stack."""
    pairs = norm(f"{stack}/layer_norm", f"{stack}/final_norm") if config.norm_placement == "pre" else []
    for i in range(depth):
        name = f"{stack}/layer_{i}"
        own, memory, feed = (f"{name}/{block}" for block in ("self_attention", "cross_attention", "feed_forward"))
        pairs += norm(f"{own}/layer_norm", f"{own}_norm")
        pairs += linear(f"{own}/linear_0", *(f"{own}/{part}" for part in ("query", "key", "value")))
        pairs += linear(f"{own}/linear_1", f"{own}/output")
        if has_memory:
            pairs += norm(f"{name}/attention/layer_norm", f"{memory}_norm")
            pairs += linear(f"{name}/attention/linear_0", f"{memory}/query")
            pairs += linear(f"{name}/attention/linear_1", f"{memory}/key", f"{memory}/value")
            pairs += linear(f"{name}/attention/linear_2", f"{memory}/output")
        pairs += norm(f"{name}/ffn/layer_norm", f"{feed}_norm")
        pairs += linear(f"{name}/ffn/linear_0", f"{feed}/input")
        pairs += linear(f"{name}/ffn/linear_1", f"{feed}/output")
    return pairs


def translation_mapping(config: TransformerConfig) -> Mapping:
    """The table of an encoder-decoder's parameters and the variables of a ``TransformerSpec``."""
    names = ("encoder/embeddings_0/weight", "decoder/embeddings/weight", "decoder/projection/weight")
    tables = zip(names, TABLES[config.tie_embeddings], strict=True)
    pairs = [Pair(name, (f"{table}_embedding/embedding",)) for name, table in tables]
    pairs.append(Pair("decoder/projection/bias", ("output_bias/bias",)))
    for stack, side in SIDES.items():
        pairs += stack_pairs(config, stack, getattr(config, f"num_{stack}_layers"), stack == "decoder")
        if config.positions == "learned":
            pairs.append(Pair(f"{stack}/position_encodings/encodings", (f"{side}_positions/embedding",)))
    return Mapping(pairs, marian.leaves(marian.whole(config)))


def text_mapping(config: LanguageModelConfig) -> Mapping:
    """The table of a language model's parameters and the variables of a ``TransformerDecoderSpec``."""
    output = "embedding" if config.tie_embeddings else "output_embedding"
    pairs = [Pair("decoder/embeddings/weight", ("embedding/embedding",))]
    pairs.append(Pair("decoder/projection/weight", (f"{output}/embedding",)))
    pairs += stack_pairs(config, "decoder", config.num_layers, has_memory=False)
    if config.positions == "learned":
        pairs.append(Pair("decoder/position_encodings/encodings", ("positions/embedding",)))
    return Mapping(pairs, gpt2.leaves(gpt2.whole(config)))


def constants(config: BlockConfig, stack: str, scale: float) -> Variables:
    """What is no parameter: the switches of a stack, and positions that are not learned."""
    found: dict[str, Any] = {
        "activation": np.int8(ACTIVATIONS[config.activation]),
        "num_heads": np.int16(config.num_heads),
        "pre_norm": np.int8(config.norm_placement == "pre"),
        "scale_embeddings": np.float32(scale),
    }
    if stack == "encoder":
        found["embeddings_merge"] = np.int8(0)
    else:
        found |= {"alignment_heads": np.int16(1), "alignment_layer": np.int16(-1)}
        found["start_from_zero_embedding"] = np.int8(0)
    if config.positions == "sinusoidal":
        found["position_encodings/encodings"] = sinusoidal(config.max_length, config.d_model)
    return {f"{stack}/{name}": np.asarray(value) for name, value in found.items()}


def serialize(name: str, variables: ReadMapping[str, np.ndarray]) -> bytes:
    """model.bin of a specification; a variable that equals an earlier one is written as its alias."""
    file = io.BytesIO()

    def text(value: str) -> None:
        file.write(struct.pack("H", len(value) + 1) + value.encode() + b"\0")

    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for key in sorted(variables):
        value = variables[key]
        content = (value.dtype.name, value.shape, value.tobytes()) if value.ndim else (key,)
        if seen.setdefault(content, key) != key:
            aliases[key] = seen[content]
    file.write(struct.pack("I", BINARY_VERSION))
    text(name)
    file.write(struct.pack("II", REVISIONS[name], len(variables) - len(aliases)))
    for key in sorted(variables.keys() - aliases.keys()):
        value = variables[key]
        text(key)
        file.write(struct.pack("B", value.ndim) + struct.pack(f"{value.ndim}I", *value.shape))
        file.write(struct.pack("B", TYPES[value.dtype.name]) + struct.pack("I", value.nbytes) + value.tobytes())
    file.write(struct.pack("I", len(aliases)))
    for alias, key in aliases.items():
        text(alias)
        text(key)
    return file.getvalue()


def config_file(config: BlockConfig, names: ReadMapping[str, str]) -> bytes:
    return json.dumps({**names, "layer_norm_epsilon": config.norm_epsilon}, indent=2).encode()


def export_translation(run: Any) -> Bundle:
    """A translation run, and its SentencePiece models: what they make of a text is what is to be translated."""
    config = run.model.config
    require("CTranslate2", switches(config), ALLOWED)
    if run.config.tokenizer.kind == "byte":
        raise UserError("tokenizer.kind is 'byte'; this format can only express 'bpe' or 'unigram'.")
    scale = config.d_model**0.5
    variables = translation_mapping(config).theirs(flatten(run.params))
    for stack in SIDES:
        variables |= constants(config, stack, scale)
    sides = {side: getattr(run.tokenizers, side) for side in SIDES.values()}
    pieces = {side: tokenizer.pieces(range(tokenizer.vocab_size)) for side, tokenizer in sides.items()}
    files = {f"{side}.spm": tokenizer.serialize() for side, tokenizer in sides.items()}
    if run.config.tokenizer.joint:
        files["shared_vocabulary.json"] = json.dumps(pieces["target"]).encode()
    else:
        files |= {f"{side}_vocabulary.json": json.dumps(found).encode() for side, found in pieces.items()}
    special = pieces["target"]
    names = {"unk_token": special[UNK_ID], "eos_token": special[EOS_ID], "bos_token": special[BOS_ID]}
    names |= {"decoder_start_token": special[BOS_ID], "add_source_bos": False, "add_source_eos": True}  # type: ignore[dict-item]
    files |= {"config.json": config_file(config, names), "model.bin": serialize("TransformerSpec", variables)}
    return Bundle(files)


def export_text(run: Any) -> Bundle:
    """A language model's run, and its tokenizer as Transformers reads it: its tokens are those of the vocabulary."""
    config = run.model.config
    require("CTranslate2", switches(config), ALLOWED)
    params: Flat = flatten(run.params)
    if config.end_begins:
        table = params["embedding/embedding"].copy()
        table[BOS_ID] = table[EOS_ID]
        params["embedding/embedding"] = table
    variables = text_mapping(config).theirs(params)
    variables |= constants(config, "decoder", config.d_model**0.5 if config.scale_embeddings else 1.0)
    if config.end_begins:
        bias = np.zeros(config.vocab_size, np.float32)
        bias[[PAD_ID, UNK_ID, BOS_ID]] = UNLIKELY
        variables["decoder/projection/bias"] = bias
    files = text_tokenizer_files(run.tokenizer, config.end_begins, config.max_length)
    tokens = vocabulary(run.tokenizer)
    if config.end_begins:
        tokens[EOS_ID] = END
    names = {"unk_token": tokens[UNK_ID], "eos_token": tokens[EOS_ID]}
    names["bos_token"] = tokens[EOS_ID if config.end_begins else BOS_ID]
    files["vocabulary.json"] = json.dumps(tokens).encode()
    files |= {"config.json": config_file(config, names), "model.bin": serialize("TransformerDecoderSpec", variables)}
    return Bundle(files)


CTRANSLATE2 = Format(name="ctranslate2", family="translation", suits=lambda model: False, export=export_translation)
CTRANSLATE2_TEXT = Format(name="ctranslate2", family="language_model", suits=lambda model: False, export=export_text)
