"""How fast training and decoding are: the programs that `train` and a run's translator use, and a clock.

Compiling is timed apart and is never inside what is measured.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.tokenizers import train_tokenizers
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.translator import Translator
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.families.translation import TranslationConfig, make_model
from transformer_jax.host import peak_memory
from transformer_jax.sharding import MeshConfig, make_mesh, place_batch
from transformer_jax.training.loop import check_rows, compile_shapes
from transformer_jax.training.program import make_program
from transformer_jax.training.step import batch_kind
from transformer_jax.training.tasks import TranslationTask

Result = dict[str, Any]

_EVENTS = {
    "/jax/core/compile/backend_compile_duration": "programs",
    "/jax/compilation_cache/cache_hits": "from_cache",
}


class _Compiles:
    """Counts programs made since it was, and how many of them came from the persistent cache."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_EVENTS.values(), 0)
        jax.monitoring.register_event_listener(self._listen)
        jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: self._listen(event))

    def _listen(self, event: str, **_: Any) -> None:
        if event in _EVENTS:
            self.counts[_EVENTS[event]] += 1


def measure_training(mapping: Any, seconds: float, windows: int) -> Result:
    """Trains an experiment of a config for a while, from the first batch of its stream, and keeps nothing.

    Args:
      mapping: the config.
      seconds: of all windows together, which follow each other without a gap in the stream.
      windows: each is timed on its own.
    Returns: target tokens/s without padding, and what stands beside them. Memory in bytes.
    Raises: UserError as `train` does.
    """
    _positive(seconds=seconds, windows=windows)
    begin = time.monotonic()
    config = parse_config(mapping)
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    experiment = find_family(config.family).prepare(config, None)
    task, batches = experiment.task, experiment.batches
    program = make_program(config, task, mesh)
    prepared, compiles = time.monotonic(), _Compiles()
    compiled = compile_shapes(program.step, program.shapes, mesh, batches)
    state, iterator = program.create(), batches.iterator()
    ready = time.monotonic()

    def run(least_steps: int, least_seconds: float) -> Result:
        """Steps, and their sums; metrics are fetched a step late, as in training."""
        nonlocal state
        sums: dict[str, float] = {}
        cells = steps = 0
        pending: Any = None
        start = time.monotonic()
        while steps < least_steps or time.monotonic() < start + least_seconds:
            batch = place_batch(mesh, next(iterator))
            state, measured = compiled[batch_kind(batch)](state, batch)
            steps, cells = steps + 1, cells + batch[batches.counted].size
            if pending is not None:
                add(sums, pending)
            pending = measured
        add(sums, pending)
        elapsed = time.monotonic() - start
        return {
            "steps": steps,
            "seconds": elapsed,
            "cells": cells,
            "tokens": sums["tokens"],
            "loss": task.summarise(sums)["loss"],
        }

    def add(sums: dict[str, float], measured: Any) -> None:
        for name, value in jax.device_get(measured).items():
            sums[name] = sums.get(name, 0.0) + float(value)

    run(2 * len(compiled), 0.0)
    before = dict(compiles.counts)
    timed = [run(1, seconds / windows) for _ in range(windows)]
    rates = [window["tokens"] / window["seconds"] for window in timed]
    total = {name: sum(window[name] for window in timed) for name in ("steps", "seconds", "cells", "tokens")}
    return {
        "measured": "training",
        "config": config.name,
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(program.shapes.params)),
        "target_tokens_per_second": {
            "median": statistics.median(rates),
            "best": max(rates),
            "windows": rates,
        },
        "steps": total["steps"],
        "step_seconds": total["seconds"] / total["steps"],
        "padding": 1.0 - total["tokens"] / total["cells"],
        "loss": timed[-1]["loss"],
        "prepare_seconds": prepared - begin,
        "compile": {"seconds": ready - prepared, **before, "shapes": len(compiled)},
        "programs_compiled_while_measuring": compiles.counts["programs"] - before["programs"],
        **_conditions(),
    }


def force_length(decoding: DecodingConfig, tokens: int) -> DecodingConfig:
    """Decoding in which every output takes exactly so many steps of the decoder, whatever the model says."""
    return dataclasses.replace(
        decoding, min_length=tokens, max_length_factor=0.0, max_length_offset=tokens, max_target_length=tokens
    )


def random_translator(config: TranslationConfig, decoding: DecodingConfig) -> Translator:
    """A translator with the initial weights of a config: as fast as a trained one if lengths are forced."""
    tokenizers = train_tokenizers(load_dataset(config.dataset), config.tokenizer)
    model = make_model(config, tokenizers).plain()
    params = nn.unbox(TranslationTask(model, config.task).init(jax.random.key(config.seed)))
    mesh = make_mesh(MeshConfig(-1, 1, 1)) if jax.device_count() > 1 else None
    return Translator(model.incremental(), params, tokenizers, decoding, mesh)


def measure_decoding(translator: Translator, lines: Sequence[str], repeats: int, singles: int) -> Result:
    """Translates lines ``repeats`` times after a warm-up, then ``singles`` of them one at a time.

    Returns: lines/s from text to text, and of the search alone (tokens to tokens); seconds for a line alone.
    Raises: UserError when there is nothing to translate.
    """
    _positive(repeats=repeats, singles=singles, lines=len(lines))
    compiles, lines = _Compiles(), list(lines)
    sources = translator.tokenizers.source.encode(lines)
    sources = [source for source in sources if len(source) < translator.config.max_source_length]

    def search() -> list[int]:
        found = translator.decoder.decode(translator.params, sources)
        return [len(best[0].tokens) for best in found]

    single = lines[:: max(1, len(lines) // singles)][:singles]
    first = _seconds(lambda: translator.translate(lines))
    _seconds(search)
    before = dict(compiles.counts)
    text = [_seconds(lambda: translator.translate(lines)) for _ in range(repeats)]
    tokens = [_seconds(search) for _ in range(repeats)]
    extra = compiles.counts["programs"] - before["programs"]
    lengths = search()
    for line in single:
        translator.translate([line])
    alone = [_seconds(partial(translator.translate, [line])) for line in single]
    return {
        "measured": "decoding",
        "lines": len(lines),
        "output_tokens": {"mean": statistics.mean(lengths), "least": min(lengths), "most": max(lengths)},
        "lines_per_second": _rates(len(lines), text),
        "search_lines_per_second": _rates(len(sources), tokens),
        "single_line_seconds": {"median": statistics.median(alone), "worst": max(alone), "lines": len(alone)},
        "compile": {"first_call_seconds": first, **before},
        "programs_compiled_while_measuring": extra,
        "decoding": dataclasses.asdict(translator.config),
        **_conditions(),
    }


def format_result(result: Result) -> str:
    """The result as a short table."""
    compile_ = result["compile"]
    programs = f"{compile_['programs']} programs, {compile_['from_cache']} of them from the cache"
    if result["measured"] == "training":
        rate = result["target_tokens_per_second"]
        windows = " ".join(f"{value:,.0f}" for value in rate["windows"])
        rows = [
            ("target tokens/s", f"{rate['median']:,.0f} median, {rate['best']:,.0f} best, without padding"),
            ("windows", windows),
            ("step", f"{1000 * result['step_seconds']:.1f} ms, {result['steps']} steps"),
            ("padding", f"{result['padding']:.1%} of target positions"),
            ("parameters", f"{result['parameters']:,}"),
            ("compile", f"{compile_['seconds']:.1f} s for {compile_['shapes']} shapes: {programs}"),
        ]
    else:
        rate, search, alone = (
            result[name] for name in ("lines_per_second", "search_lines_per_second", "single_line_seconds")
        )
        lengths, decoding = result["output_tokens"], result["decoding"]
        rows = [
            ("lines/s", f"{rate['median']:,.1f} median, {rate['best']:,.1f} best, text to text"),
            ("search", f"{search['median']:,.1f} median, {search['best']:,.1f} best, tokens to tokens"),
            ("single line", f"{1000 * alone['median']:.1f} ms median, {1000 * alone['worst']:.1f} ms worst"),
            (
                "outputs",
                f"{lengths['mean']:.1f} tokens, {lengths['least']} to {lengths['most']}, without ends",
            ),
            ("decoding", f"{decoding['method']} {decoding['beam_size']}, {result['lines']} lines"),
            ("compile", f"first call {compile_['first_call_seconds']:.1f} s: {programs}"),
        ]
    rows += [
        ("compiled later", f"{result['programs_compiled_while_measuring']} programs while measuring"),
        ("peak memory", f"{result['peak_rss_bytes'] / 2**20:,.0f} MiB resident"),
        ("devices", f"{result['devices']}, {result['cores']} cores, load {result['load_average']:.2f}"),
    ]
    return "\n".join(f"{name:<16}{text}" for name, text in rows)


def _conditions() -> Result:
    return {
        "peak_rss_bytes": peak_memory(),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "jax": jax.__version__,
    }


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def _rates(count: int, seconds: Sequence[float]) -> Result:
    rates = [count / one for one in seconds]
    return {"median": statistics.median(rates), "best": max(rates), "repeats": rates}


def _positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"benchmark: {name} is {value}; it must be more than 0.")
