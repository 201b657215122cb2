"""The weights of an encoder under the names and in the layout of Hugging Face's BERT, both ways and exactly.

There a linear layer is [out, in]. One table of names is read in both directions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from transformer_jax.errors import UserError
from transformer_jax.models.encoder import Classifier, ClassifierConfig, Encoder, EncoderConfig, MaskedLanguageModel

Tensors = dict[str, np.ndarray]
REQUIRED = {
    "norm_placement": "post",
    "norm": "layer_norm",
    "positions": "learned",
    "attention_bias": True,
    "feed_forward_bias": True,
    "embedding_norm": True,
    "scale_embeddings": False,
    "num_kv_heads": None,
}
ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "relu": "relu", "silu": "silu"}
LAYER = {
    "self_attention/query": "attention.self.query",
    "self_attention/key": "attention.self.key",
    "self_attention/value": "attention.self.value",
    "self_attention/output": "attention.output.dense",
    "self_attention_norm": "attention.output.LayerNorm",
    "feed_forward/input": "intermediate.dense",
    "feed_forward/output": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
OF_TRAINING = ("cls.seq_relationship.", "bert.embeddings.position_ids", "cls.predictions.decoder.")
"""What a checkpoint has besides: next-sentence prediction, a buffer, and the tied output layer once more."""


def model_of(config: EncoderConfig) -> Encoder:
    """The model whose weights these are: a classifier's, or a masked language model's."""
    return Classifier(config) if isinstance(config, ClassifierConfig) else MaskedLanguageModel(config)


def check_bert(config: EncoderConfig) -> None:
    """Raises: UserError for a model that is not BERT's, naming the switch."""
    for name, wanted in REQUIRED.items():
        if getattr(config, name) != wanted:
            raise UserError(f"model.{name} is {getattr(config, name)!r}; BERT's is {wanted!r}.")
    if config.num_types < 1:
        raise UserError("model.num_types is 0; BERT has a table of types: set it to 2.")
    if config.activation not in ACTIVATIONS.values():
        allowed = ", ".join(map(repr, ACTIVATIONS.values()))
        raise UserError(f"model.activation is {config.activation!r}; BERT's may be {allowed}.")
    if isinstance(config, ClassifierConfig):
        wanted_pooler = config.level == "sentence"
        if config.pooler != wanted_pooler or config.pooling != "first":
            raise UserError(
                f"model.pooler={config.pooler} and pooling={config.pooling!r}; a BERT that classifies a "
                f"{config.level} has {wanted_pooler} and 'first'."
            )


def config_of_bert(there: Mapping[str, Any], pooler: bool) -> EncoderConfig:
    """The hyperparameters that a Hugging Face ``config.json`` of BERT describes.

    Args: pooler: whether the checkpoint has one.
    Raises: UserError for a variant of it that this model does not have.
    """
    allowed = {
        "hidden_act": (*ACTIVATIONS, "gelu_pytorch_tanh"),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "tie_word_embeddings": (True,),
    }
    for name, values in allowed.items():
        if there.get(name, values[0]) not in values:
            raise UserError(f"BERT config: {name} is {there[name]!r}; it may be {' or '.join(map(repr, values))}.")
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
        activation=ACTIVATIONS.get(there.get("hidden_act", "gelu"), "gelu"),  # type: ignore[arg-type]
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


def settings_of_bert(config: EncoderConfig, labels: Sequence[str] = ()) -> dict[str, Any]:
    """The ``config.json`` that describes a model, as `config_of_bert` reads it.

    Args: labels: of a classifier, in the order of its outputs.
    Raises: UserError for a model that is not BERT's.
    """
    check_bert(config)
    what = "MaskedLM"
    if isinstance(config, ClassifierConfig):
        what = "SequenceClassification" if config.level == "sentence" else "TokenClassification"
    named = {"id2label": {str(i): label for i, label in enumerate(labels)}} if labels else {}
    named |= {"label2id": {label: i for i, label in enumerate(labels)}} if labels else {}  # type: ignore[misc]
    return {
        "architectures": [f"BertFor{what}"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        "type_vocab_size": config.num_types,
        **named,
    }


def names_there(config: EncoderConfig) -> dict[str, str]:
    """For the path of every parameter the name of its tensor."""
    modules = {
        "embedding": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "types": "bert.embeddings.token_type_embeddings",
        "embedding_norm": "bert.embeddings.LayerNorm",
        "pooler": "bert.pooler.dense",
        "transform": "cls.predictions.transform.dense",
        "transform_norm": "cls.predictions.transform.LayerNorm",
        "output_bias": "cls.predictions",
        "labels": "classifier",
    }
    for i in range(config.num_layers):
        modules |= {f"encoder/layer_{i}/{ours}": f"bert.encoder.layer.{i}.{theirs}" for ours, theirs in LAYER.items()}
    found = {}
    for path in shapes_of(config):
        module, _, leaf = path.rpartition("/")
        found[path] = f"{modules[module]}.{LEAVES[leaf]}"
    return found


def shapes_of(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the unrolled model, by path."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    boxed: Any = jax.eval_shape(model_of(config).init, jax.random.key(0), tokens, tokens)["params"]
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(nn.unbox(boxed), sep="/").items()}


def _matrix(path: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """A kernel's size as [in, out]."""
    inputs = 2 if path.endswith("self_attention/output/kernel") else 1
    return math.prod(shape[:inputs]), math.prod(shape[inputs:])


def to_bert(params: Any, config: EncoderConfig) -> Tensors:
    """Unrolled parameters as the tensors of a ``BertForMaskedLM``, or one that classifies.

    Raises: UserError for a model that is not BERT's.
    """
    check_bert(config)
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {}
    for path, name in names_there(config).items():
        value = np.asarray(flat[path])
        if path.endswith("/kernel"):
            value = value.reshape(_matrix(path, value.shape)).T
        elif path.startswith("encoder/") and path.endswith("/bias"):
            value = value.reshape(-1)
        tensors[name] = np.ascontiguousarray(value)
    return tensors


def from_bert(tensors: Mapping[str, np.ndarray], config: EncoderConfig) -> Any:
    """The unrolled parameters of a BERT's tensors; names may lack "bert.", or end in gamma and beta as old ones do.

    Raises: UserError for a missing tensor, one that there is no place for, or a shape that is not the config's.
    """
    check_bert(config)
    theirs = {_current(name): tensor for name, tensor in tensors.items()}
    found = {}
    for (path, name), shape in zip(names_there(config).items(), shapes_of(config).values(), strict=True):
        if name not in theirs:
            raise UserError(f"BERT weights: there is no tensor {name}; the config has {config.num_layers} layers.")
        kernel = path.endswith("/kernel")
        wanted = _matrix(path, shape)[::-1] if kernel else shape
        if path.startswith("encoder/") and not kernel:
            wanted = (math.prod(shape),)
        tensor = np.asarray(theirs.pop(name))
        if tensor.shape != wanted:
            raise UserError(f"BERT weights: {name} is {tensor.shape}; the config asks for {wanted}.")
        found[path] = (tensor.T if kernel else tensor).reshape(shape)
    left = [name for name in theirs if not name.startswith(OF_TRAINING)]
    if left:
        raise UserError(f"BERT weights: there is no place for {', '.join(sorted(left)[:5])} in a model of this config.")
    return traverse_util.unflatten_dict(found, sep="/")


def _current(name: str) -> str:
    name = name.replace(".gamma", ".weight").replace(".beta", ".bias")
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
