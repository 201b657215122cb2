"""Tokens/s of training and of greedy decoding against the length of sentences: random weights, random tokens."""

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from experiments.command_line import load_config
from experiments.long_range.trials import CONFIGS, Results, machine
from transformer_jax.analysis.benchmark import force_length
from transformer_jax.decoding.batching import Decoder
from transformer_jax.experiment import parse_config
from transformer_jax.families.translation import ARCHITECTURES, TranslationConfig, model_config
from transformer_jax.sharding import make_mesh, place_batch
from transformer_jax.training.optimizers import learning_rate, make_optimizer
from transformer_jax.training.step import abstract_state, make_train_step
from transformer_jax.training.tasks import TranslationTask

TOKENS = 4096
"""Target tokens of a training batch, and of all outputs of a decoding."""
STEPS = 8
"""Training steps timed at a time."""


def measure_speed(folder: Path, networks: Sequence[str], lengths: Sequence[int], rounds: int) -> Iterator[str]:
    """Measures what is missing, in turn of the networks, and adds it to the results; yields a line for each."""
    results = Results(folder)
    for length in lengths:
        left = [name for name in networks if results.find("speed", network=name, length=length) is None]
        timers = {name: _timers(name, length) for name in left}
        seconds: dict[str, dict[str, list[float]]] = {name: {"training": [], "decoding": []} for name in left}
        for _ in range(rounds):
            for name in left:
                for what, timer in timers[name].items():
                    seconds[name][what].append(timer())
        for name in left:
            rates = {what: TOKENS / statistics.median(times) for what, times in seconds[name].items()}
            results.add({"kind": "speed", "network": name, "length": length, **rates, "rounds": rounds, **machine()})
            told = ", ".join(f"{what} {rate:,.0f} tokens/s" for what, rate in rates.items())
            yield f"{name}, {length} tokens: {told}"
        jax.clear_caches()


def _timers(network: str, length: int) -> dict[str, Any]:
    """For training and decoding a function that gives the seconds that TOKENS tokens take, compiled already."""
    config: TranslationConfig = parse_config(
        load_config(f"{CONFIGS / 'long_range.py'}:copy/{network}", [f"model.max_length={max(64, length + 1)}"])
    )
    size, rows = config.tokenizer.vocab_size, TOKENS // length
    hyperparameters = model_config(config, size, size)
    model = ARCHITECTURES[hyperparameters.architecture][1](config=hyperparameters)
    tokens = np.random.default_rng(0).integers(4, size, (rows, length)).astype(np.int32)
    tokens[:, -1] = 1  # the end

    mesh, task = make_mesh(config.mesh), TranslationTask(model, config.task)
    optimizer = make_optimizer(config.optimizer, 1000)
    shapes, create = abstract_state(task, optimizer, mesh, seed=0, ema=False)
    step = make_train_step(
        task,
        optimizer,
        learning_rate(config.optimizer, 1000),
        mesh,
        shapes,
        seed=0,
        accumulation=1,
        ema_decay=0.0,
        guard=config.guard,
    )
    batch = place_batch(mesh, {"source": tokens, "target": tokens})
    state = create()

    def train() -> float:
        nonlocal state
        begin = time.monotonic()
        for _ in range(STEPS):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return (time.monotonic() - begin) / STEPS

    decoding = force_length(config.decoding, length)
    decoding = dataclasses.replace(decoding, max_source_length=length, batch_size=min(128, rows))
    decoder = Decoder(model.incremental(), decoding, mesh if mesh.size > 1 else None)
    params = nn.unbox(task.init(jax.random.key(0)))

    def decode() -> float:
        begin = time.monotonic()
        decoder.decode(params, [row[:-1].tolist() for row in tokens])
        return time.monotonic() - begin

    for timer in (train, decode):
        timer()
    return {"training": train, "decoding": decode}
