"""GPT-2 (`GPT2LMHeadModel`): a linear layer is [in, out], and queries, keys and values are one matrix [D, 3D]."""

import dataclasses
import json
import re
from collections.abc import Mapping as ReadMapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.conversion.format import Bundle, Format, Imported, require, switches, trimmed
from transformer_jax.conversion.mapping import Leaf, Mapping, Pair, flatten, leaves_of
from transformer_jax.conversion.tensors import read_json, read_tensors
from transformer_jax.conversion.text_files import read_text_tokenizer, text_tokenizer_files
from transformer_jax.errors import UserError
from transformer_jax.models.language_model import LanguageModel, LanguageModelConfig
from transformer_jax.models.transformer import BOS_ID, EOS_ID, PAD_ID, UNK_ID

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
READ = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
MASKS = re.compile(r"\.attn\.(masked_)?bias$")
"""Buffers of old checkpoints: the causal mask."""


def whole(config: LanguageModelConfig) -> LanguageModelConfig:
    """The same model with every parameter that GPT-2 has."""
    return dataclasses.replace(
        config, attention_bias=True, feed_forward_bias=True, scan_layers=False, remat="none"
    )


def leaves(config: LanguageModelConfig) -> dict[str, Leaf]:
    return leaves_of(LanguageModel(config), 1)


def mapping(config: LanguageModelConfig) -> Mapping:
    """The table of a model's parameters and the tensors of a ``GPT2LMHeadModel``."""
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
    return Mapping(pairs, leaves(whole(config)), {"vocab": order(config)})


def order(config: LanguageModelConfig) -> np.ndarray:
    """The tokens here that the tokens there are: all, or where documents begin with their end, that one last."""
    if not config.end_begins:
        return np.arange(config.vocab_size)
    return np.append(np.arange(BOS_ID + 1, config.vocab_size), EOS_ID)


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


def config_of(there: ReadMapping[str, Any], tied: bool, end_begins: bool) -> LanguageModelConfig:
    """The hyperparameters that a ``config.json`` describes, with all biases.

    Raises: UserError for a variant that this model is not, naming the key.
    """
    require("this project's model of GPT-2", there, READ)
    activation = there.get("activation_function", "gelu_new")
    return LanguageModelConfig(
        vocab_size=there["vocab_size"] + (3 if end_begins else 0),
        num_layers=there["n_layer"],
        d_model=there["n_embd"],
        d_ff=there.get("n_inner") or 4 * there["n_embd"],
        num_heads=there["n_head"],
        max_length=there["n_positions"],
        norm_placement="pre",
        norm_epsilon=there.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        activation="gelu" if activation.startswith("gelu") else "silu" if activation == "swish" else activation,
        attention_bias=True,
        dropout_rate=there.get("resid_pdrop", 0.1),
        embedding_dropout_rate=there.get("embd_pdrop", 0.1),
        attention_dropout_rate=there.get("attn_pdrop", 0.1),
        tie_embeddings=tied,
        scale_embeddings=False,
        initializer="gpt2",
        end_begins=end_begins,
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


def load(folder: Path, there: ReadMapping[str, Any]) -> Imported:
    """A folder of GPT-2 as a language model."""
    what = str(folder)
    tensors = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in read_tensors(folder).items()
        if not MASKS.search(name)
    }
    tied = there.get("tie_word_embeddings", True)
    head = tensors.pop("lm_head.weight", None) if tied else None
    if head is not None and not np.array_equal(head, tensors.get("transformer.wte.weight")):
        raise UserError(f"{what}: lm_head.weight and transformer.wte.weight differ; the config says they are one.")
    tokenizer = read_text_tokenizer(folder, there)
    config = config_of(there, tied, tokenizer.end_begins)
    config = dataclasses.replace(config, **tokenizer.model)
    flat = mapping(config).ours(tensors, what)
    wanted = dataclasses.replace(config, **tokenizer.model)
    model, flat = trimmed(flat, whole(config), wanted, leaves)
    length = model.max_length
    settings = {
        "batching.length": min(length, 1024),
        "evaluation.stride": min(length, 1024),
        "decoding.max_tokens": max(1, length // 4),
    }
    return Imported(model, flat, tokenizer.section, tokenizer.save, settings)


GPT2 = Format(
    name="gpt2",
    family="language_model",
    suits=lambda config: True,
    export=export,
    load=load,
    model_type="gpt2",
)
__all__ = ["GPT2", "mapping", "partial"]
