"""GPT-2 (`GPT2LMHeadModel`): a linear layer is [in, out], and queries, keys and values are one matrix [D, 3D]."""

import dataclasses
import json
import re
from collections.abc import Mapping as ReadMapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.conversion.format import Bundle, Described, Format, require, switches, trimmed
from transformer_jax.conversion.mapping import Flat, Leaf, Mapping, Pair, flatten, leaves_of
from transformer_jax.conversion.tensors import read_tensors
from transformer_jax.conversion.text_files import read_byte_level, text_tokenizer_files
from transformer_jax.models.language_model import LanguageModel, LanguageModelConfig
from transformer_jax.models.tokens import BOS_ID, EOS_ID, PAD_ID, UNK_ID

ALLOWED = {
    "model.norm_placement": ("pre",),
    "model.norm": ("layer_norm",),
    "model.positions": ("learned",),
    "model.activation": ("gelu", "relu", "silu"),
    "model.scale_embeddings": (False,),
    "model.num_kv_heads": (None,),
}
"""What GPT-2 is; biases and an output table of its own it can do without."""
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu"}
READ_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}
READ = {
    "activation_function": tuple(READ_ACTIVATIONS),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
MASKS = re.compile(r"\.attn\.(masked_)?bias$")
"""Buffers of old checkpoints: the causal mask."""


def whole(config: LanguageModelConfig) -> LanguageModelConfig:
    """The same model with every parameter that GPT-2 has."""
    return dataclasses.replace(config, attention_bias=True, feed_forward_bias=True, scan_layers=False, remat="none")


@lru_cache(maxsize=8)
def leaves(config: LanguageModelConfig) -> dict[str, Leaf]:
    return leaves_of(LanguageModel(config), 1)


def mapping(config: LanguageModelConfig, end: int | None = None) -> Mapping:
    """The table of a model's parameters and the tensors of a ``GPT2LMHeadModel``; ``end`` as for `order`."""
    pairs = [
        Pair("transformer.wte.weight", ("embedding/embedding",)),
        Pair("transformer.wpe.weight", ("positions/embedding",)),
        *norm("transformer.ln_f", "decoder/final_norm"),
    ]
    if not config.tie_embeddings:
        pairs.append(Pair("lm_head.weight", ("output_embedding/embedding",)))
    for i in range(config.num_layers):
        here, there = f"decoder/layer_{i}", f"transformer.h.{i}"
        pairs += norm(f"{there}.ln_1", f"{here}/self_attention_norm")
        pairs += norm(f"{there}.ln_2", f"{here}/feed_forward_norm")
        attention = [f"{here}/self_attention/{part}" for part in ("query", "key", "value")]
        pairs += linear(f"{there}.attn.c_attn", *attention)
        pairs += linear(f"{there}.attn.c_proj", f"{here}/self_attention/output")
        pairs += linear(f"{there}.mlp.c_fc", f"{here}/feed_forward/input")
        pairs += linear(f"{there}.mlp.c_proj", f"{here}/feed_forward/output")
    return Mapping(pairs, leaves(whole(config)), {"vocab": order(config, end)})


def order(config: LanguageModelConfig, end: int | None = None) -> np.ndarray:
    """The tokens here that the tokens there are: all; or, where documents begin with their end, the usual ones and the
    end, which there has the number ``end``, or is the last.
    """
    if not config.end_begins:
        return np.arange(config.vocab_size)
    usual = np.arange(BOS_ID + 1, config.vocab_size)
    return np.insert(usual, len(usual) if end is None else end, EOS_ID)


def norm(there: str, here: str) -> list[Pair]:
    return [Pair(f"{there}.weight", (f"{here}/scale",)), Pair(f"{there}.bias", (f"{here}/bias",))]


def linear(there: str, *here: str) -> list[Pair]:
    return [
        Pair(f"{there}.weight", tuple(f"{name}/kernel" for name in here)),
        Pair(f"{there}.bias", tuple(f"{name}/bias" for name in here)),
    ]


def settings_of(config: LanguageModelConfig) -> dict[str, Any]:
    """config.json. Raises: UserError for a model that is not GPT-2's, naming the switch."""
    require("GPT-2", switches(config), ALLOWED)
    size = len(order(config))
    end = size - 1 if config.end_begins else EOS_ID
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": size,
        "n_positions": config.max_length,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_ff,
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout_rate,
        "embd_pdrop": config.embedding_dropout_rate,
        "attn_pdrop": config.attention_dropout_rate,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": end if config.end_begins else BOS_ID,
        "eos_token_id": end,
        "pad_token_id": None if config.end_begins else PAD_ID,
        "dtype": "float32",
    }


def config_of(there: ReadMapping[str, Any]) -> LanguageModelConfig:
    """The hyperparameters that a ``config.json`` of a published GPT-2 describes.

    Raises: UserError for a variant that this model is not, naming the key.
    """
    require("this project's model of GPT-2", there, READ)
    return LanguageModelConfig(
        vocab_size=there["vocab_size"] + BOS_ID,  # the end is one of them, the other three special tokens are not
        num_layers=there["n_layer"],
        d_model=there["n_embd"],
        d_ff=there.get("n_inner") or 4 * there["n_embd"],
        num_heads=there["n_head"],
        max_length=there["n_positions"],
        norm_placement="pre",
        norm_epsilon=there.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        activation=READ_ACTIVATIONS[there.get("activation_function", "gelu_new")],  # type: ignore[arg-type]
        attention_bias=True,
        dropout_rate=there.get("resid_pdrop", 0.1),
        embedding_dropout_rate=there.get("embd_pdrop", 0.1),
        attention_dropout_rate=there.get("attn_pdrop", 0.1),
        tie_embeddings=there.get("tie_word_embeddings", True),
        scale_embeddings=False,
        initializer="gpt2",
        end_begins=True,
    )


def export(run: Any) -> Bundle:
    """A language model's run as GPT-2, with its tokenizer."""
    config, decoding = run.model.config, run.config.decoding
    settings = settings_of(config)
    generation = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation["suppress_tokens"] = None if config.end_begins else [PAD_ID, UNK_ID, BOS_ID]
    generation |= {"max_new_tokens": decoding.max_tokens, "do_sample": decoding.method == "sample"}
    if decoding.method == "sample":
        generation |= {
            "temperature": decoding.sampling.temperature,
            "top_k": decoding.sampling.top_k,
            "top_p": decoding.sampling.top_p,
        }
    files = text_tokenizer_files(run.tokenizer, config.end_begins, config.max_length)
    for name, content in (("config.json", settings), ("generation_config.json", generation)):
        files[name] = json.dumps(content, indent=2).encode()
    return Bundle(files, mapping(config).theirs(flatten(run.params)))


def describe(folder: Path, there: ReadMapping[str, Any]) -> Described:
    """What a folder of GPT-2 holds."""
    tokenizer = read_byte_level(folder, there)
    model = config_of(there)
    length = min(model.max_length, 1024)
    settings = {"batching.length": length, "evaluation.stride": length, "decoding.max_tokens": max(1, length // 4)}
    section = {"kind": "byte_bpe", "vocab_size": tokenizer.tokenizer.vocab_size}
    return Described(model, section, tokenizer.save, settings)


def load(folder: Path, there: ReadMapping[str, Any], model: LanguageModelConfig) -> tuple[LanguageModelConfig, Flat]:
    """The parameters of a folder of GPT-2; names of tensors may lack "transformer."."""
    named = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in read_tensors(folder).items()
        if not MASKS.search(name)
    }
    pairs = list(mapping(model).pairs)
    if model.tie_embeddings and "lm_head.weight" in named:
        pairs.append(Pair("lm_head.weight", ("embedding/embedding",)))
    end = read_byte_level(folder, there).end if model.end_begins else None
    table = dataclasses.replace(mapping(model, end), pairs=pairs)
    return trimmed(table.ours(named, str(folder)), whole(model), model, leaves(model))


GPT2 = Format(
    name="gpt2",
    family="language_model",
    suits=lambda model: True,
    export=export,
    model_type="gpt2",
    describe=describe,
    load=load,
)
