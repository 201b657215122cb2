"""The weights of a `RecurrentEncoderDecoder` under PyTorch's names and in its layout, both ways.

    encoder.*      as an nn.LSTM(D, D/2, num_layers=L, bidirectional=True) has them
    decoder.*      as an nn.LSTM(D or 2D, D, num_layers=L) has them; of 2D inputs the first D are the embedding
    attention.*    linear layers without a bias: key, join and, for Bahdanau's, query and score
    *_embedding.weight

There a gate is a row of a matrix [4H, inputs], and has two biases that are added up: what is read is their sum, what is
written has zeros for the second.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from transformer_jax.errors import UserError
from transformer_jax.models.recurrent import RecurrentConfig

Tensors = dict[str, np.ndarray]


def lstms(config: RecurrentConfig) -> Iterator[tuple[str, str, int, int]]:
    """Of every LSTM the name there with %s for the kind, the path here, its inputs and its units."""
    D = config.d_model
    for i in range(config.num_layers):
        yield f"encoder.%s_l{i}", f"encoder/layer_{i}/forward", D, D // 2
        yield f"encoder.%s_l{i}_reverse", f"encoder/layer_{i}/backward", D, D // 2
        yield f"decoder.%s_l{i}", f"decoder/layer_{i}/cell", 2 * D if i == 0 and config.attention != "none" else D, D


def matrices(config: RecurrentConfig) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Of every other parameter the name there, the path here, and the shape there; linear layers are transposed."""
    D, V, S = config.d_model, config.target_vocab_size, config.source_vocab_size
    tied = {
        "all": ("shared",),
        "source_target": ("shared", "output"),
        "target_output": ("source", "target"),
        "none": ("source", "target", "output"),
    }
    for table in tied[config.tie_embeddings]:
        path = f"{table}_embedding/embedding"
        yield f"{table}_embedding.weight", path, (S if table == "source" else V, D)
    shapes = {"key": (D, D), "join": (D, 2 * D)} if config.attention != "none" else {}
    if config.attention == "bahdanau":
        shapes |= {"query": (D, D), "score": (1, D)}
    for name, shape in shapes.items():
        path = f"decoder/layer_{config.num_layers - 1}/cross_attention/{name}/kernel"
        yield f"attention.{name}.weight", path, shape


def to_torch(params: Any, config: RecurrentConfig) -> Tensors:
    """The parameters as tensors of PyTorch."""
    ours = flatten_dict(params, sep="/")
    tensors: Tensors = {}
    for there, here, inputs, units in lstms(config):
        for kind, name, size in (("weight_ih", "input", inputs), ("weight_hh", "recurrent", units)):
            tensors[there % kind] = np.asarray(ours[f"{here}/{name}/kernel"]).reshape(size, 4 * units).T
        tensors[there % "bias_ih"] = np.asarray(ours[f"{here}/bias"]).reshape(4 * units)
        tensors[there % "bias_hh"] = np.zeros(4 * units, np.float32)
    for there, here, _ in matrices(config):
        tensors[there] = np.asarray(ours[here]).T if here.endswith("kernel") else np.asarray(ours[here])
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def from_torch(tensors: Mapping[str, np.ndarray], config: RecurrentConfig) -> Any:
    """The parameters that tensors of PyTorch are.

    Raises: UserError for a tensor that is missing, has another shape than the config asks for, or has no place in it.
    """
    left, ours = dict(tensors), {}

    def take(name: str, *shape: int) -> np.ndarray:
        found = left.pop(name, None)
        if found is None:
            raise UserError(f"LSTM weights: there is no tensor {name}; the config has {config.num_layers} layers.")
        if found.shape != shape:
            raise UserError(f"LSTM weights: {name} is {found.shape}; the config asks for {shape}.")
        return np.asarray(found)

    for there, here, inputs, units in lstms(config):
        for kind, name, size in (("weight_ih", "input", inputs), ("weight_hh", "recurrent", units)):
            kernel = take(there % kind, 4 * units, size).T.reshape(size, 4, units)
            ours[f"{here}/{name}/kernel"] = np.ascontiguousarray(kernel)
        bias = take(there % "bias_ih", 4 * units) + take(there % "bias_hh", 4 * units)
        ours[f"{here}/bias"] = bias.reshape(4, units)
    for there, here, shape in matrices(config):
        tensor = take(there, *shape)
        ours[here] = np.ascontiguousarray(tensor.T) if here.endswith("kernel") else tensor
    if left:
        raise UserError(f"LSTM weights: the config has no place for {', '.join(sorted(left)[:5])}.")
    return unflatten_dict(ours, sep="/")
