"""What other toolkits are given: batches, sizes, weights and sentences, as plain arrays and JSON."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.data.pipeline import Pipeline
from transformer_jax.errors import UserError
from transformer_jax.families.translation import TranslationConfig
from transformer_jax.models.positions import sinusoidal
from transformer_jax.models.transformer import TransformerConfig

SUPPORTED = {
    "num_kv_heads": (None,),
    "norm": ("layer_norm",),
    "positions": ("sinusoidal",),
    "activation": ("relu",),
    "feed_forward_bias": (True,),
    "tie_embeddings": ("all",),
    "output_bias": (False,),
}
"""What the peers' models can be, too."""


def check_model(model: TransformerConfig) -> None:
    """Raises: UserError for a model that the peers do not have."""
    for name, allowed in SUPPORTED.items():
        found = getattr(model, name, None)  # a recurrent network has other settings
        if found not in allowed:
            raise UserError(f"model.{name} is {found!r}; a peer can only have {allowed[0]!r}.")


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name, as `np.load` reads them."""
    np.savez(path, allow_pickle=False, **arrays)  # type: ignore[arg-type]


def write_batches(path: Path, pipeline: Pipeline) -> int:
    """One epoch of training batches, in order: source_0, target_0, source_1 …, int32. Returns how many."""
    count = len(pipeline.epoch(0))
    batches = itertools.islice(pipeline.iterator(), count)
    write_arrays(path, {f"{side}_{i}": batch[side] for i, batch in enumerate(batches) for side in batch})
    return count


def training_settings(config: TranslationConfig, model: TransformerConfig, warm_steps: int) -> dict[str, Any]:
    """The model's sizes and what it is trained with."""
    optimizer = config.optimizer
    return {
        **dataclasses.asdict(model),
        "label_smoothing": config.task.label_smoothing,
        "peak_learning_rate": optimizer.peak_learning_rate,
        "warmup_steps": optimizer.warmup_steps,
        "warm_steps": warm_steps,
    }


def flat_weights(params: Any, model: TransformerConfig) -> dict[str, np.ndarray]:
    """Every weight by its path, kernels as matrices [in, out], with zeros for biases that there are not.

    ``positions`` is the table that is added to embeddings.
    """
    weights = {
        name: np.asarray(value, np.float32) for name, value in traverse_util.flatten_dict(params, sep="/").items()
    }
    for name in [name for name in weights if name.endswith("/kernel")]:
        inputs = model.d_ff if name.endswith("feed_forward/output/kernel") else model.d_model
        weights[name] = weights[name].reshape(inputs, -1)
        bias = name.removesuffix("kernel") + "bias"
        weights[bias] = weights.get(bias, np.zeros(weights[name].shape[1], np.float32)).reshape(-1)
    return weights | {"positions": sinusoidal(model.max_length, model.d_model)}


def decoding_request(run: TranslationRun, sources: list[list[int]], forced_tokens: int, repeats: int) -> dict[str, Any]:
    """The sentences as ids without ends, and how to translate them."""
    tokenizer, decoding = run.tokenizers.source, run.config.decoding
    return {
        "model": dataclasses.asdict(run.model.config),
        "pieces": tokenizer.pieces(range(tokenizer.vocab_size)),
        "sources": sources,
        "beam_size": decoding.beam_size,
        "length_penalty": decoding.length_penalty,
        "max_tokens": decoding.max_target_length,
        "forced_tokens": forced_tokens,
        "repeats": repeats,
        "compute_types": ["float32", "int8"],
    }
