"""Marian (`MarianMTModel`), and Pegasus (`PegasusForConditionalGeneration`), the same with norms before sublayers.

A linear layer is [out, in]. Marian's sinusoidal positions have all sines before all cosines, ours have them in turn:
so every axis of the residual stream is in that order there. Pegasus keeps its table of positions in the checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping as ReadMapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.conversion.format import Bundle, Described, Format, require, switches, trimmed
from transformer_jax.conversion.mapping import Flat, Leaf, Mapping, Pair, flatten, leaves_of
from transformer_jax.conversion.pieces import LANGUAGE, SPACE, SPECIAL, piece_files, read_names, read_pieces
from transformer_jax.conversion.tensors import read_json, read_tensors
from transformer_jax.errors import UserError
from transformer_jax.models.layers import UNLIKELY
from transformer_jax.models.positions import sinusoidal
from transformer_jax.models.tokens import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from transformer_jax.models.transformer import EncoderDecoder, TransformerConfig

EPSILON = 1e-5
"""Of every norm there; it is no setting."""
ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "silu": "swish"}
READ_ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "swish": "silu", "silu": "silu"}
ALLOWED = {
    "model.norm": ("layer_norm",),
    "model.activation": tuple(ACTIVATIONS),
    "model.num_kv_heads": (None,),
}
POSITIONS = "model.{}.embed_positions.weight"
TABLES = {  # tensors there and parameters here, by model.tie_embeddings
    "all": {"model.shared": "shared"},
    "target_output": {"model.encoder.embed_tokens": "source", "model.decoder.embed_tokens": "target"},
    "source_target": {
        "model.shared": "shared",
        "model.encoder.embed_tokens": "shared",
        "model.decoder.embed_tokens": "shared",
        "lm_head": "output",
    },
    "none": {
        "model.encoder.embed_tokens": "source",
        "model.decoder.embed_tokens": "target",
        "lm_head": "output",
    },
}
COPIES = {
    "model.shared": ("shared", "source"),
    "model.encoder.embed_tokens": ("source", "shared"),
    "model.decoder.embed_tokens": ("target", "shared"),
    "lm_head": ("output", "target", "shared"),
}
"""Tensors that some checkpoints have beside the one that they equal, and what they may be here."""
TIES = {(True, True): "all", (False, True): "target_output", (True, False): "source_target", (False, False): "none"}
"""By share_encoder_decoder_embeddings and tie_word_embeddings."""


def whole(config: TransformerConfig) -> TransformerConfig:
    """The same model with every bias."""
    biases = dict.fromkeys(("attention_bias", "feed_forward_bias", "output_bias"), True)
    return dataclasses.replace(config, **biases, scan_layers=False, remat="none")  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def leaves(config: TransformerConfig) -> dict[str, Leaf]:
    return leaves_of(EncoderDecoder(config), 2)


def mapping(config: TransformerConfig, numbers: np.ndarray | None = None) -> Mapping:
    """The table of a model's parameters and tensors there.

    Args: numbers: the tokens here that the tokens there are, in their order; None: the same.
    """
    pre = config.norm_placement == "pre"
    known, half = leaves(whole(config)), np.arange(config.d_model).reshape(-1, 2).T.reshape(-1)
    residual = np.arange(config.d_model) if pre else half
    pairs = [Pair("final_logits_bias", ("output_bias/bias",), leading=1)]
    pairs += [Pair(f"{t}.weight", (f"{o}_embedding/embedding",)) for t, o in TABLES[config.tie_embeddings].items()]
    for stack, side in (("encoder", "source"), ("decoder", "target")):
        if pre:
            pairs += norm(f"model.{stack}.layer_norm", f"{stack}/final_norm")
        if config.positions == "learned":
            pairs.append(Pair(POSITIONS.format(stack), (f"{side}_positions/embedding",)))
        for i in range(getattr(config, f"num_{stack}_layers")):
            here, there = f"{stack}/layer_{i}", f"model.{stack}.layers.{i}"
            blocks = {"self_attention": "self_attn"}
            if stack == "decoder":
                blocks["cross_attention"] = "encoder_attn"
            for ours, theirs in blocks.items():
                pairs += norm(f"{there}.{theirs}_layer_norm", f"{here}/{ours}_norm")
                for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
                    pairs += linear(f"{there}.{theirs}.{name}_proj", f"{here}/{ours}/{part}")
            pairs += norm(f"{there}.final_layer_norm", f"{here}/feed_forward_norm")
            pairs += linear(f"{there}.fc1", f"{here}/feed_forward/input")
            pairs += linear(f"{there}.fc2", f"{here}/feed_forward/output")
    orders = {"embed": residual, "norm": residual}
    if numbers is not None:
        orders["vocab"] = numbers
    return Mapping(pairs, known, orders, {"output_bias/bias": UNLIKELY})


def norm(there: str, here: str) -> list[Pair]:
    return [Pair(f"{there}.weight", (f"{here}/scale",)), Pair(f"{there}.bias", (f"{here}/bias",))]


def linear(there: str, here: str) -> list[Pair]:
    return [Pair(f"{there}.weight", (f"{here}/kernel",), transposed=True), Pair(f"{there}.bias", (f"{here}/bias",))]


def require_switches(config: TransformerConfig, joint: bool) -> None:
    """Raises: UserError for a model that is neither Marian's nor Pegasus', naming the switch."""
    pre = config.norm_placement == "pre"
    what = "Pegasus" if pre else "Marian"
    allowed = ALLOWED | {"model.positions": ("sinusoidal", "learned") if pre else ("sinusoidal",)}
    require(what, switches(config), allowed)
    if not abs(config.norm_epsilon - EPSILON) <= EPSILON:
        raise UserError(
            f"model.norm_epsilon is {config.norm_epsilon}; {what} can only express {EPSILON}, or nearly so."
        )
    if pre and not joint:
        raise UserError(f"tokenizer.joint is False; {what} can only express True, one vocabulary for both sides.")


def export(run: Any, placement: str) -> Bundle:
    """A translation run as Marian or Pegasus, with its tokenizers."""
    config, joint = run.model.config, run.config.tokenizer.joint
    name = "marian" if placement == "post" else "pegasus"
    require(name, switches(config), {"model.architecture": ("transformer",)})
    if config.norm_placement != placement:
        other = "pegasus" if name == "marian" else "marian"
        raise UserError(
            f"model.norm_placement is {config.norm_placement!r}; {name} can only express {placement!r}. Use "
            f"--format={other}."
        )
    require_switches(config, joint)
    params = flatten(run.params)
    size, numbers = config.target_vocab_size, np.arange(config.target_vocab_size)
    ids = {"pad": PAD_ID, "eos": EOS_ID, "unk": UNK_ID, "bos": BOS_ID}
    if joint and config.output_bias and params["output_bias/bias"][PAD_ID] <= UNLIKELY / 2:
        # As in published checkpoints: there is no token for padding but the one that decoding starts from.
        numbers = np.asarray([EOS_ID, UNK_ID, *range(BOS_ID + 1, size), BOS_ID])
        ids = {"pad": size - 2, "eos": 0, "unk": 1, "bos": size - 2}
    tensors = mapping(config, numbers).theirs(params)
    if placement == "pre" and config.positions == "sinusoidal":
        table = sinusoidal(config.max_length, config.d_model)
        tensors |= {POSITIONS.format(stack): table for stack in ("encoder", "decoder")}
    languages = run.config.dataset
    special = {"source_lang": languages.source_language, "target_lang": languages.target_language}
    pieces = run.tokenizers.target.pieces([EOS_ID, UNK_ID, PAD_ID])
    special |= dict(zip(("eos_token", "unk_token", "pad_token"), pieces, strict=True))
    files = piece_files(run.tokenizers, special, numbers.tolist() if joint else range(config.source_vocab_size))
    files["config.json"] = json.dumps(settings_of(config, name, ids, len(numbers)), indent=2).encode()
    files["generation_config.json"] = json.dumps(generation_of(run, ids), indent=2).encode()
    notes = []
    if config.norm_epsilon != EPSILON:
        notes.append(
            f"norms there have an epsilon of {EPSILON}, this model's is {config.norm_epsilon}: logits differ a little"
        )
    return Bundle(files, tensors, tuple(notes))


def settings_of(config: TransformerConfig, name: str, ids: ReadMapping[str, int], size: int) -> dict[str, Any]:
    """config.json."""
    shared = config.tie_embeddings in ("all", "source_target")
    separate = config.source_vocab_size != config.target_vocab_size or not shared
    return {
        "architectures": ["MarianMTModel" if name == "marian" else "PegasusForConditionalGeneration"],
        "model_type": name,
        "is_encoder_decoder": True,
        "vocab_size": config.source_vocab_size if separate else size,
        "decoder_vocab_size": size,
        "d_model": config.d_model,
        **{f"{stack}_layers": getattr(config, f"num_{stack}_layers") for stack in ("encoder", "decoder")},
        **{f"{stack}_attention_heads": config.num_heads for stack in ("encoder", "decoder")},
        **{f"{stack}_ffn_dim": config.d_ff for stack in ("encoder", "decoder")},
        "activation_function": ACTIVATIONS[config.activation],
        "dropout": config.dropout_rate,
        "attention_dropout": config.attention_dropout_rate,
        "activation_dropout": config.activation_dropout_rate,
        "max_position_embeddings": config.max_length,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": shared,
        "tie_word_embeddings": config.tie_embeddings in ("all", "target_output"),
        "normalize_before": name == "pegasus",
        "normalize_embedding": False,
        "init_std": config.d_model**-0.5,
        "pad_token_id": ids["pad"],
        "eos_token_id": ids["eos"],
        "bos_token_id": ids["bos"],
        "decoder_start_token_id": ids["bos"],
        "forced_eos_token_id": ids["eos"],
        "dtype": "float32",
    }


def generation_of(run: Any, ids: ReadMapping[str, int]) -> dict[str, Any]:
    """generation_config.json: the run's own search as nearly as it can be said there."""
    decoding = run.config.decoding
    return {
        **{f"{name}_token_id": ids[name] for name in ("pad", "eos", "bos")},
        "decoder_start_token_id": ids["bos"],
        "forced_eos_token_id": ids["eos"],
        "suppress_tokens": sorted({ids["pad"], ids["unk"], ids["bos"]}),
        "num_beams": decoding.beam_size if decoding.method == "beam" else 1,
        "length_penalty": decoding.length_penalty,
        "early_stopping": True if decoding.patience else "never",
        "max_length": min(decoding.max_target_length + 1, run.model.config.max_length),
    }


def start_of(there: ReadMapping[str, Any]) -> int:
    """The token there that decoding starts from."""
    return int(there.get("decoder_start_token_id", there["pad_token_id"]))


def numbers_here(there: ReadMapping[str, Any], size: int, unknown: int) -> np.ndarray:
    """The tokens here that the ``size`` tokens there are.

    Where decoding starts from the token for padding, there is none for padding alone: here it is one more.
    """
    start = start_of(there)
    special = {there["pad_token_id"]: PAD_ID, start: BOS_ID, there["eos_token_id"]: EOS_ID, unknown: UNK_ID}
    if len({start, there["eos_token_id"], unknown}) < 3:
        raise UserError(f"decoder_start_token_id={start} must be neither eos_token_id nor the unknown token's id.")
    usual = iter(range(BOS_ID + 1, size + 4))
    return np.asarray([special[i] if i in special else next(usual) for i in range(size)])


def config_of(there: ReadMapping[str, Any], placement: str) -> TransformerConfig:
    """The hyperparameters that a ``config.json`` describes, without a bias on logits.

    Raises: UserError for a variant that this model is not, naming the key.
    """
    same = {f"decoder_{key}": (there[f"encoder_{key}"],) for key in ("attention_heads", "ffn_dim")}
    pre = (placement == "pre",)
    allowed: dict[str, tuple[Any, ...]] = {
        "scale_embedding": (True,),
        "normalize_before": pre,
        "add_final_layer_norm": pre,
    }
    allowed |= {"normalize_embedding": (False,), "activation_function": tuple(READ_ACTIVATIONS), **same}
    require("this project's model", {"scale_embedding": False, "activation_function": "gelu", **there}, allowed)
    size = there["vocab_size"] + (there["pad_token_id"] == start_of(there))
    joint = there.get("share_encoder_decoder_embeddings", True)
    return TransformerConfig(
        source_vocab_size=size,
        target_vocab_size=size if joint else there.get("decoder_vocab_size", size),
        num_encoder_layers=there["encoder_layers"],
        num_decoder_layers=there["decoder_layers"],
        d_model=there["d_model"],
        d_ff=there["encoder_ffn_dim"],
        num_heads=there["encoder_attention_heads"],
        max_length=there["max_position_embeddings"],
        norm_placement=placement,  # type: ignore[arg-type]
        norm_epsilon=EPSILON,
        positions="sinusoidal" if placement == "post" else "learned",
        activation=READ_ACTIVATIONS[there["activation_function"]],  # type: ignore[arg-type]
        attention_bias=True,
        dropout_rate=there.get("dropout", 0.1),
        embedding_dropout_rate=there.get("dropout", 0.1),
        attention_dropout_rate=there.get("attention_dropout", 0.0),
        activation_dropout_rate=there.get("activation_dropout", 0.0),
        tie_embeddings=TIES[joint, there.get("tie_word_embeddings", True)],  # type: ignore[arg-type]
    )


def describe(folder: Path, there: ReadMapping[str, Any], placement: str) -> Described:
    """What a folder of Marian or Pegasus with a ``MarianTokenizer`` holds."""
    model = config_of(there, placement)
    if not there.get("share_encoder_decoder_embeddings", True):
        raise UserError(f"{folder}: share_encoder_decoder_embeddings is False; one vocabulary for both sides is read.")
    vocab, size = read_names(folder), there["vocab_size"]
    if len(vocab) != size:
        raise UserError(f"{folder}/vocab.json has {len(vocab)} pieces, its config.json says {size}.")
    names = [*SPECIAL] + [""] * (model.target_vocab_size - len(SPECIAL))
    numbers = numbers_here(there, size, vocab[SPECIAL[UNK_ID]])
    for piece, place in vocab.items():
        if numbers[place] > BOS_ID:
            names[numbers[place]] = SPACE + piece if LANGUAGE.match(piece) else piece
    tokenizers = read_pieces(folder, names)
    settings_file = folder / "tokenizer_config.json"
    told = read_json(settings_file) if settings_file.is_file() else {}
    length = min(model.max_length, 256)
    settings = {
        "batching.max_length": length,
        "decoding.max_source_length": length,
        "decoding.max_target_length": length,
        "decoding.beam_size": there.get("num_beams", 4),
        "decoding.length_penalty": float(there.get("length_penalty", 1.0)),
    }
    for side in ("source", "target"):
        if told.get(f"{side}_lang"):
            settings[f"dataset.{side}_language"] = told[f"{side}_lang"]
    return Described(model, dataclasses.asdict(tokenizers.config), tokenizers.save, settings)


def load(folder: Path, there: ReadMapping[str, Any], model: TransformerConfig) -> tuple[TransformerConfig, Flat]:
    """The parameters of a folder of Marian or Pegasus."""
    tensors, numbers = read_tensors(folder), None
    size = there.get("decoder_vocab_size") or there["vocab_size"]
    if model.source_vocab_size == model.target_vocab_size:
        numbers = numbers_here(there, size, read_names(folder)[SPECIAL[UNK_ID]])
    tensors.setdefault("final_logits_bias", np.zeros((1, size), np.float32))
    table = mapping(model, numbers)
    if model.positions == "sinusoidal":
        expected = sinusoidal(model.max_length, model.d_model)[:, table.orders["embed"]]
        for name in map(POSITIONS.format, ("encoder", "decoder")):
            found = tensors.pop(name, expected)
            if found.shape != expected.shape or np.abs(found - expected).max() > 1e-5:
                raise UserError(f"{folder}: {name} is not the sinusoidal table of its config's sizes.")
    pairs = list(table.pairs)
    for copy, sides in COPIES.items():
        if f"{copy}.weight" in tensors and copy not in TABLES[model.tie_embeddings]:
            paths = [f"{side}_embedding/embedding" for side in sides]
            pairs.append(Pair(f"{copy}.weight", (next(path for path in paths if path in table.leaves),)))
    flat = dataclasses.replace(table, pairs=pairs).ours(tensors, str(folder))
    return trimmed(flat, whole(model), model, leaves(model))


def make(name: str, placement: str) -> Format:
    return Format(
        name=name,
        family="translation",
        suits=lambda model: getattr(model, "norm_placement", None) == placement,
        export=partial(export, placement=placement),
        model_type=name,
        describe=partial(describe, placement=placement),
        load=load,
    )


MARIAN, PEGASUS = make("marian", "post"), make("pegasus", "pre")
