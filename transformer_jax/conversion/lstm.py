"""LSTM encoder-decoders with PyTorch's names and layout:

    encoder.*      as an nn.LSTM(D, D/2, num_layers=L, bidirectional=True) has them
    decoder.*      as an nn.LSTM(D or 2D, D, num_layers=L) has them; of 2D inputs the first D are the embedding
    attention.*    linear layers without a bias: key, join and, for Bahdanau's, query and score
    *_embedding.weight, output.bias

There a gate has two biases, which are added up: what is read is their sum, what is written has zeros for the second.
"""

import dataclasses
import json
from collections.abc import Mapping as ReadMapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.config import build
from transformer_jax.conversion.format import Bundle, Described, Format
from transformer_jax.conversion.mapping import Flat, Mapping, Pair, flatten, leaves_of
from transformer_jax.conversion.tensors import Tensors, read_tensors
from transformer_jax.errors import UserError
from transformer_jax.models.recurrent import RecurrentConfig, RecurrentEncoderDecoder

FIRST, SECOND = "bias_ih", "bias_hh"


def mapping(config: RecurrentConfig) -> Mapping:
    """The table, without the second biases."""
    last = config.num_layers - 1
    leaves, pairs = leaves_of(RecurrentEncoderDecoder(config=config), 2), []
    for path in leaves:
        stack, *rest = path.split("/")
        if stack not in ("encoder", "decoder"):
            name = f"{stack}.weight" if rest == ["embedding"] else "output.bias"
            pairs.append(Pair(name, (path,)))
        elif rest[1] == "cross_attention":
            assert rest[0] == f"layer_{last}"
            pairs.append(Pair(f"attention.{rest[2]}.weight", (path,), transposed=True))
        else:
            kind = {"input": "weight_ih", "recurrent": "weight_hh", "bias": FIRST}[rest[2]]
            where = f"{rest[0].removeprefix('layer_')}{'_reverse' if rest[1] == 'backward' else ''}"
            pairs.append(Pair(f"{stack}.{kind}_l{where}", (path,), transposed=kind != FIRST))
    return Mapping(pairs, leaves)


def to_torch(params: Any, config: RecurrentConfig) -> Tensors:
    """The parameters as tensors of PyTorch."""
    tensors = mapping(config).theirs(flatten(params))
    return tensors | {name.replace(FIRST, SECOND): np.zeros_like(t) for name, t in tensors.items() if FIRST in name}


def from_torch(tensors: ReadMapping[str, np.ndarray], config: RecurrentConfig, what: str) -> Flat:
    """The parameters, by path, that tensors of PyTorch are. Raises: UserError as `Mapping.ours` does."""
    found, known = dict(tensors), mapping(config).pairs
    for first in [pair.theirs for pair in known if FIRST in pair.theirs]:
        second = first.replace(FIRST, SECOND)
        if first in found and second in found and found[first].shape == found[second].shape:
            found[first] = found[first] + found.pop(second)
    return mapping(config).ours(found, what)


def export(run: Any) -> Bundle:
    """A translation run, its hyperparameters in config.json."""
    settings = {"model_type": LSTM.model_type, **dataclasses.asdict(run.model.config)}
    return Bundle({"config.json": json.dumps(settings, indent=2).encode()}, to_torch(run.params, run.model.config))


def describe(folder: Path, there: ReadMapping[str, Any]) -> Described:
    raise UserError(
        f"{folder} has no folder transformer_jax with the tokenizers, of which PyTorch's LSTM knows nothing; export a "
        "run of the same vocabulary, and replace its model.safetensors."
    )


def load(folder: Path, there: ReadMapping[str, Any], model: RecurrentConfig) -> tuple[RecurrentConfig, Flat]:
    """The parameters of a folder of the same hyperparameters."""
    settings = build(RecurrentConfig, {name: value for name, value in there.items() if name != "model_type"}, "model")
    return settings, from_torch(read_tensors(folder), settings, str(folder))


LSTM = Format(
    name="lstm",
    family="translation",
    architecture="lstm",
    suits=lambda model: True,
    export=export,
    model_type="lstm_encoder_decoder",
    describe=describe,
    load=load,
)
