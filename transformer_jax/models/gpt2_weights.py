"""The weights of a `LanguageModel` under the names and in the layout of Hugging Face's GPT-2, both ways and exactly.

There a linear layer is [in, out], and queries, keys and values are one matrix [D, 3D].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer_jax.errors import UserError
from transformer_jax.models.language_model import LanguageModelConfig

Tensors = dict[str, np.ndarray]
NORMS = {"ln_1": "self_attention_norm", "ln_2": "feed_forward_norm"}
REQUIRED = {
    "norm_placement": "pre",
    "norm": "layer_norm",
    "positions": "learned",
    "activation": "gelu",
    "attention_bias": True,
    "feed_forward_bias": True,
    "tie_embeddings": True,
    "scale_embeddings": False,
    "num_kv_heads": None,
}


def check_gpt2(config: LanguageModelConfig) -> None:
    """Raises: UserError for a model that is not GPT-2's, naming the switch."""
    for name, wanted in REQUIRED.items():
        if getattr(config, name) != wanted:
            raise UserError(f"model.{name} is {getattr(config, name)!r}; GPT-2's is {wanted!r}.")


def config_of_gpt2(there: Mapping[str, Any]) -> LanguageModelConfig:
    """The hyperparameters that a Hugging Face ``config.json`` of GPT-2 describes.

    Raises: UserError for a variant of it that this model does not have.
    """
    allowed = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for name, values in allowed.items():
        if there.get(name, values[0]) not in values:
            raise UserError(f"GPT-2 config: {name} is {there[name]!r}; it may be {' or '.join(map(repr, values))}.")
    return LanguageModelConfig(
        vocab_size=there["vocab_size"],
        num_layers=there["n_layer"],
        d_model=there["n_embd"],
        d_ff=there.get("n_inner") or 4 * there["n_embd"],
        num_heads=there["n_head"],
        max_length=there["n_positions"],
        norm_placement="pre",
        norm_epsilon=there.get("layer_norm_epsilon", 1e-5),
        positions="learned",
        activation="gelu",
        attention_bias=True,
        dropout_rate=there.get("resid_pdrop", 0.1),
        embedding_dropout_rate=there.get("embd_pdrop", 0.1),
        attention_dropout_rate=there.get("attn_pdrop", 0.1),
        tie_embeddings=True,
        scale_embeddings=False,
        initializer="gpt2",
    )


def to_gpt2(params: Any, config: LanguageModelConfig) -> Tensors:
    """Unrolled parameters as the tensors of a ``GPT2LMHeadModel``.

    Raises: UserError for a model that is not GPT-2's.
    """
    check_gpt2(config)
    D = config.d_model
    tensors = {
        "transformer.wte.weight": params["embedding"]["embedding"],
        "transformer.wpe.weight": params["positions"]["embedding"],
        "transformer.ln_f.weight": params["decoder"]["final_norm"]["scale"],
        "transformer.ln_f.bias": params["decoder"]["final_norm"]["bias"],
    }
    for i in range(config.num_layers):
        layer, there = params["decoder"][f"layer_{i}"], f"transformer.h.{i}"
        for theirs, ours in NORMS.items():
            tensors[f"{there}.{theirs}.weight"] = layer[ours]["scale"]
            tensors[f"{there}.{theirs}.bias"] = layer[ours]["bias"]
        attention, feed_forward = layer["self_attention"], layer["feed_forward"]
        parts = [attention[name] for name in ("query", "key", "value")]
        tensors[f"{there}.attn.c_attn.weight"] = np.concatenate(
            [np.reshape(part["kernel"], (D, D)) for part in parts], axis=1
        )
        tensors[f"{there}.attn.c_attn.bias"] = np.concatenate([np.reshape(part["bias"], D) for part in parts])
        tensors[f"{there}.attn.c_proj.weight"] = np.reshape(attention["output"]["kernel"], (D, D))
        tensors[f"{there}.attn.c_proj.bias"] = attention["output"]["bias"]
        for theirs, ours in (("c_fc", "input"), ("c_proj", "output")):
            tensors[f"{there}.mlp.{theirs}.weight"] = feed_forward[ours]["kernel"]
            tensors[f"{there}.mlp.{theirs}.bias"] = feed_forward[ours]["bias"]
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def from_gpt2(tensors: Mapping[str, np.ndarray], config: LanguageModelConfig) -> Any:
    """The unrolled parameters of a ``GPT2LMHeadModel``'s tensors; names may lack "transformer.".

    Raises: UserError for a missing tensor or a shape that is not the config's, naming it.
    """
    check_gpt2(config)
    D, H, K = config.d_model, config.num_heads, config.head_dim

    def take(name: str, *shape: int) -> np.ndarray:
        found = tensors.get(f"transformer.{name}", tensors.get(name))
        if found is None:
            raise UserError(f"GPT-2 weights: there is no tensor {name}; the config has {config.num_layers} layers.")
        if found.shape != shape:
            raise UserError(f"GPT-2 weights: {name} is {found.shape}; the config asks for {shape}.")
        return np.asarray(found)

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": take(f"{name}.weight", D), "bias": take(f"{name}.bias", D)}

    decoder: dict[str, Any] = {"final_norm": norm("ln_f")}
    for i in range(config.num_layers):
        kernels = np.split(take(f"h.{i}.attn.c_attn.weight", D, 3 * D), 3, axis=1)
        biases = np.split(take(f"h.{i}.attn.c_attn.bias", 3 * D), 3)
        attention = {
            name: {"kernel": kernel.reshape(D, H, K), "bias": bias.reshape(H, K)}
            for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        output = take(f"h.{i}.attn.c_proj.weight", D, D).reshape(H, K, D)
        decoder[f"layer_{i}"] = {
            **{ours: norm(f"h.{i}.{theirs}") for theirs, ours in NORMS.items()},
            "self_attention": attention | {"output": {"kernel": output, "bias": take(f"h.{i}.attn.c_proj.bias", D)}},
            "feed_forward": {
                "input": {
                    "kernel": take(f"h.{i}.mlp.c_fc.weight", D, config.d_ff),
                    "bias": take(f"h.{i}.mlp.c_fc.bias", config.d_ff),
                },
                "output": {
                    "kernel": take(f"h.{i}.mlp.c_proj.weight", config.d_ff, D),
                    "bias": take(f"h.{i}.mlp.c_proj.bias", D),
                },
            },
        }
    return {
        "embedding": {"embedding": take("wte.weight", config.vocab_size, D)},
        "positions": {"embedding": take("wpe.weight", config.max_length, D)},
        "decoder": decoder,
    }
