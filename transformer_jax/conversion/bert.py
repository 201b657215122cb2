"""BERT (`BertForMaskedLM`, and those that classify sentences or tokens): a linear layer is [out, in]."""

import dataclasses
import json
from collections.abc import Mapping as ReadMapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, processors

from transformer_jax.conversion.format import Bundle, Described, Format, require, switches
from transformer_jax.conversion.mapping import Flat, Leaf, Mapping, Pair, flatten, leaves_of
from transformer_jax.conversion.tensors import Tensors, read_json, read_tensors
from transformer_jax.conversion.text_files import BUILDERS
from transformer_jax.data.byte_level import SPECIAL as OURS
from transformer_jax.data.text_tokenizers import TextTokenizer, save_text_tokenizer
from transformer_jax.data.wordpiece import SPECIAL, WordPieceTokenizer
from transformer_jax.errors import UserError
from transformer_jax.models.encoder import Classifier, ClassifierConfig, Encoder, EncoderConfig, MaskedLanguageModel
from transformer_jax.models.layers import UNLIKELY
from transformer_jax.models.tokens import PAD_ID

ACTIVATIONS = {"gelu_exact": "gelu", "gelu": "gelu_new", "relu": "relu", "silu": "silu"}
READ_ACTIVATIONS = {theirs: ours for ours, theirs in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu"}
ALLOWED = {
    "model.norm_placement": ("post",),
    "model.norm": ("layer_norm",),
    "model.positions": ("learned",),
    "model.activation": tuple(ACTIVATIONS),
    "model.attention_bias": (True,),
    "model.feed_forward_bias": (True,),
    "model.num_kv_heads": (None,),
    "model.embedding_norm": (True,),
    "model.scale_embeddings": (False,),
}
READ = {
    "hidden_act": tuple(READ_ACTIVATIONS),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "tie_word_embeddings": (True,),
}
EMBEDDINGS = {"embedding": "word_embeddings", "positions": "position_embeddings", "types": "token_type_embeddings"}
LAYER = {
    "self_attention/query": "attention.self.query",
    "self_attention/key": "attention.self.key",
    "self_attention/value": "attention.self.value",
    "self_attention/output": "attention.output.dense",
    "feed_forward/input": "intermediate.dense",
    "feed_forward/output": "output.dense",
}
NORMS = {"self_attention_norm": "attention.output.LayerNorm", "feed_forward_norm": "output.LayerNorm"}
POOLER = "bert.pooler.dense."
LEVELS = {"BertForSequenceClassification": "sentence", "BertForTokenClassification": "token"}
COPIES = {"cls.predictions.decoder.weight": "embedding/embedding", "cls.predictions.decoder.bias": "output_bias/bias"}
"""Tensors that some checkpoints have beside the one that they equal, and what they are here."""
OF_TRAINING = ("cls.seq_relationship.", "bert.embeddings.position_ids")
"""What checkpoints have that is no part of the model: next-sentence prediction, and a buffer."""


def leaves(config: EncoderConfig) -> dict[str, Leaf]:
    model = Classifier if isinstance(config, ClassifierConfig) else MaskedLanguageModel
    made: Encoder = model(dataclasses.replace(config, scan_layers=False, remat="none"))  # type: ignore[arg-type]
    return leaves_of(made, 2)


def mapping(config: EncoderConfig, numbers: np.ndarray | None = None) -> Mapping:
    """The table of a model's parameters and the tensors of BERT.

    Args: numbers: the tokens here that the tokens there are, in their order; None: the same.
    """
    pairs = [Pair(f"bert.embeddings.{theirs}.weight", (f"{ours}/embedding",)) for ours, theirs in EMBEDDINGS.items()]
    pairs += norm("bert.embeddings.LayerNorm", "embedding_norm")
    for i in range(config.num_layers):
        here, there = f"encoder/layer_{i}", f"bert.encoder.layer.{i}"
        for ours, theirs in LAYER.items():
            pairs += linear(f"{there}.{theirs}", f"{here}/{ours}")
        for ours, theirs in NORMS.items():
            pairs += norm(f"{there}.{theirs}", f"{here}/{ours}")
    if config.pooler:
        pairs += linear("bert.pooler.dense", "pooler")
    if isinstance(config, ClassifierConfig):
        pairs += linear("classifier", "labels")
    else:
        pairs += linear("cls.predictions.transform.dense", "transform")
        pairs += norm("cls.predictions.transform.LayerNorm", "transform_norm")
        pairs.append(Pair("cls.predictions.bias", ("output_bias/bias",)))
    orders = {} if numbers is None else {"vocab": numbers}
    return Mapping(pairs, leaves(config), orders, {"output_bias/bias": UNLIKELY})


def norm(there: str, here: str) -> list[Pair]:
    return [Pair(f"{there}.weight", (f"{here}/scale",)), Pair(f"{there}.bias", (f"{here}/bias",))]


def linear(there: str, here: str) -> list[Pair]:
    return [Pair(f"{there}.weight", (f"{here}/kernel",), transposed=True), Pair(f"{there}.bias", (f"{here}/bias",))]


def settings_of(config: EncoderConfig, labels: Sequence[str] = ()) -> dict[str, Any]:
    """config.json. Raises: UserError for a model that is not BERT's, naming the switch."""
    require("BERT", switches(config), ALLOWED)
    if not config.num_types:
        raise UserError("model.num_types is 0; BERT has a table of types.")
    what = "BertForMaskedLM"
    if isinstance(config, ClassifierConfig):
        what = next(name for name, level in LEVELS.items() if level == config.level)
        require("BERT", switches(config), {"model.pooling": ("first",), "model.pooler": (config.level == "sentence",)})
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return {
        "architectures": [what],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        "type_vocab_size": config.num_types,
        "pad_token_id": PAD_ID,
        "dtype": "float32",
        **(named if labels else {}),
    }


def config_of(there: ReadMapping[str, Any], pooler: bool) -> EncoderConfig:
    """The hyperparameters that a ``config.json`` describes.

    Args: pooler: whether the checkpoint has one.
    Raises: UserError for a variant that this model is not, naming the key.
    """
    require("this project's model of BERT", there, READ)
    dropout = there.get("hidden_dropout_prob", 0.1)
    return EncoderConfig(
        vocab_size=there["vocab_size"],
        num_layers=there["num_hidden_layers"],
        d_model=there["hidden_size"],
        d_ff=there["intermediate_size"],
        num_heads=there["num_attention_heads"],
        max_length=there["max_position_embeddings"],
        norm_placement="post",
        norm_epsilon=there.get("layer_norm_eps", 1e-12),
        positions="learned",
        activation=READ_ACTIVATIONS[there.get("hidden_act", "gelu")],  # type: ignore[arg-type]
        attention_bias=True,
        dropout_rate=dropout,
        embedding_dropout_rate=dropout,
        attention_dropout_rate=there.get("attention_probs_dropout_prob", 0.1),
        num_types=there.get("type_vocab_size", 2),
        embedding_norm=True,
        scale_embeddings=False,
        pooler=pooler,
        initializer="bert",
    )


def tokenizer_files(tokenizer: TextTokenizer, max_length: int) -> dict[str, bytes]:
    """Files by name. The ids are those here; texts are put between [CLS] and [SEP]."""
    first, end = (OURS[3], OURS[1]) if tokenizer.kind in BUILDERS else (SPECIAL[3], SPECIAL[1])
    if isinstance(tokenizer, WordPieceTokenizer):
        engine, names = tokenizer.engine, SPECIAL
    else:
        engine, names = BUILDERS[tokenizer.kind](tokenizer), (*OURS, SPECIAL[4])
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    marks = [(name, engine.token_to_id(name)) for name in (first, end)]
    engine.post_processor = processors.TemplateProcessing(f"{first} $A {end}", f"{first} $A {end} $B:1 {end}:1", marks)
    keys = ("pad_token", "sep_token", "unk_token", "cls_token", "mask_token")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    settings |= dict(zip(keys, names, strict=True))
    return {
        "tokenizer.json": engine.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def export(run: Any) -> Bundle:
    """A run of masked_lm, or of classification with one of its tokenizers, as BERT."""
    config = run.model.config
    if not hasattr(run.tokenizer, "kind"):
        raise UserError(f"{run.directory.path} has the tokenizer of a translation, which is not written for BERT.")
    settings = settings_of(config, getattr(run, "labels", ()))
    files = tokenizer_files(run.tokenizer, config.max_length)
    files["config.json"] = json.dumps(settings, indent=2).encode()
    return Bundle(files, mapping(config).theirs(flatten(run.params)))


def read_wordpiece(folder: Path, there: ReadMapping[str, Any]) -> tuple[WordPieceTokenizer, np.ndarray]:
    """The tokenizer of a folder of BERT, from vocab.txt, and for each of its ids there the one here.

    Raises: UserError for a missing file, or one that does not fit config.json.
    """
    file = folder / "vocab.txt"
    if not file.is_file():
        raise UserError(f"{folder} has no vocab.txt, which is what is read of BERT's tokenizer: download it too.")
    names = file.read_text(encoding="utf-8").splitlines()
    if len(names) > there["vocab_size"] or len(set(names)) != len(names) or not set(SPECIAL) <= set(names):
        raise UserError(
            f"{file} does not fit the vocab_size of config.json, {there['vocab_size']}: download both again."
        )
    names += [f"[without name {i}]" for i in range(len(names), there["vocab_size"])]
    settings = folder / "tokenizer_config.json"
    lowercase = read_json(settings).get("do_lower_case", True) if settings.is_file() else True
    tokenizer = WordPieceTokenizer.make([name for name in names if name not in SPECIAL], lowercase)
    numbers = {name: i for i, name in enumerate(tokenizer.names)}
    return tokenizer, np.asarray([numbers[name] for name in names])


def read_weights(folder: Path) -> Tensors:
    """The tensors that belong to the model, under the names that they have today."""
    found = {}
    for name, tensor in read_tensors(folder).items():
        current = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        current = f"bert.{current}" if current.startswith(("embeddings.", "encoder.", "pooler.")) else current
        if not current.startswith(OF_TRAINING):
            found[current] = tensor
    return found


def describe(folder: Path, there: ReadMapping[str, Any]) -> Described:
    """What a folder of BERT holds."""
    tokenizer, _ = read_wordpiece(folder, there)
    model = config_of(there, f"{POOLER}weight" in read_weights(folder))
    section = {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size}
    settings = {"batching.length": min(model.max_length, 512)}
    return Described(model, section, lambda directory: save_text_tokenizer(tokenizer, directory), settings)


def describe_classifier(folder: Path, there: ReadMapping[str, Any]) -> Described:
    """What a folder of BERT that classifies holds."""
    require("this project's classifier", there, {"problem_type": (None, "single_label_classification")})
    found, level = describe(folder, there), next(LEVELS[name] for name in there["architectures"] if name in LEVELS)
    named = there.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # two are not written
    labels = tuple(named[number] for number in sorted(named, key=int))
    encoder: dict[str, Any] = {**dataclasses.asdict(found.model), "pooler": level == "sentence"}
    model = ClassifierConfig(**encoder, num_labels=len(labels), level=level, pooling="first")  # type: ignore[arg-type]
    settings = {
        "dataset.name": "labelled_files" if level == "sentence" else "column_files",
        "batching.max_length": min(model.max_length, 512),
    }
    return found._replace(model=model, settings=settings, labels=labels)


def load(folder: Path, there: ReadMapping[str, Any], model: EncoderConfig) -> tuple[EncoderConfig, Flat]:
    """The parameters of a folder of BERT."""
    tensors = read_weights(folder)
    if isinstance(model, ClassifierConfig) and model.level == "token":  # which does not read the pooler that some have
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(POOLER)}
    numbers = read_wordpiece(folder, there)[1] if (folder / "vocab.txt").is_file() else None
    table = mapping(model, numbers)
    copies = [Pair(theirs, (ours,)) for theirs, ours in COPIES.items() if theirs in tensors]
    return model, dataclasses.replace(table, pairs=[*table.pairs, *copies]).ours(tensors, str(folder))


BERT = Format("bert", "masked_lm", lambda model: True, export, "bert", describe, load)
BERT_CLASSIFIER = Format(
    "bert", "classification", lambda model: True, export, "bert", describe_classifier, load, classes=tuple(LEVELS)
)
