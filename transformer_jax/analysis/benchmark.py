"""How fast training and decoding are: the programs that `train` and a run's translator use, and a clock.

Compiling is timed apart and is never inside what is measured.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from transformer_jax.analysis.flops import model_flops
from transformer_jax.analysis.memory import step_memory
from transformer_jax.analysis.peak import matmul_peaks
from transformer_jax.analysis.tables import Table
from transformer_jax.data.batches import START, Batches
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
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.loop import check_rows, compile_shapes
from transformer_jax.training.program import Program, make_program
from transformer_jax.training.step import abstract_batch, batch_kind
from transformer_jax.training.tasks import Task, TranslationTask

Result = dict[str, Any]

MOST_WARM_STEPS = 100
"""In which every shape that is not rare has its turn before training is timed."""

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


@dataclass(frozen=True)
class _Prepared:
    """What a config trains, before anything is compiled."""

    config: Any
    mesh: Mesh
    task: Task
    batches: Batches
    program: Program


def _prepare(mapping: Any) -> _Prepared:
    config = parse_config(mapping)
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    experiment = find_family(config.family).prepare(config, None)
    program = make_program(config, experiment.task, mesh)
    return _Prepared(config, mesh, experiment.task, experiment.batches, program)


def measure_training(mapping: Any, seconds: float, windows: int) -> Result:
    """Trains an experiment of a config for a while, from the first batch of its stream, and keeps nothing.

    Args:
      mapping: the config.
      seconds: of all windows together, which follow each other without a gap in the stream.
      windows: each is timed on its own.
    Returns: target tokens/s without padding, model FLOP/s (`model_flops`, padding included) and their shares of the
      machine's peaks (`matmul_peaks`, measured right after), and what stands beside them. Memory in bytes.
    Raises: UserError as `train` does.
    """
    _positive(seconds=seconds, windows=windows)
    begin = time.monotonic()
    made = _prepare(mapping)
    config, mesh, task, batches, program = made.config, made.mesh, made.task, made.batches, made.program
    prepared, compiles = time.monotonic(), _Compiles()
    compiled = compile_shapes(program.step, program.shapes, mesh, batches.specs)
    state: Any = program.create()
    iterator = batches.iterator()
    ready = time.monotonic()
    kinds: Counter[Any] = Counter()  # steps of each kind of batch

    def run(least_steps: int, least_seconds: float) -> Result:
        """Steps, and their sums; metrics are fetched a step late, as in training."""
        nonlocal state
        sums: dict[str, float] = {}
        cells = steps = 0
        pending: Any = None
        start = time.monotonic()
        while steps < least_steps or time.monotonic() < start + least_seconds:
            batch = place_batch(mesh, next(iterator))
            kind = batch_kind(batch)
            state, measured = compiled[kind](state, batch)
            kinds[kind] += 1
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
    for _ in range(MOST_WARM_STEPS):  # a shape's first step may load and capture what later ones need not
        if len(kinds) == len(compiled):
            break
        run(1, 0.0)
    before = dict(compiles.counts)
    kinds.clear()
    timed = [run(1, seconds / windows) for _ in range(windows)]
    extra = compiles.counts["programs"] - before["programs"]
    rates = [window["tokens"] / window["seconds"] for window in timed]
    total = {name: sum(window[name] for window in timed) for name in ("steps", "seconds", "cells", "tokens")}
    conditions, state = _conditions(), None  # before the peak takes memory of its own
    share = total["tokens"] / total["cells"]
    shapes = {batch_kind(spec): spec for spec in (abstract_batch(mesh, spec) for spec in batches.specs)}
    flops = sum(kinds[kind] * model_flops(config, task, mesh, shapes[kind], share) for kind in kinds)
    peaks = matmul_peaks()
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
        "padding": 1.0 - share,
        "loss": timed[-1]["loss"],
        "model_flops_per_second": flops / total["seconds"],
        "matmul_peaks": peaks,
        "utilisation": {dtype: flops / total["seconds"] / peak["flops"] for dtype, peak in peaks.items()},
        "predicted_step_bytes": max(step_memory(step, program.shapes) or 0 for step in compiled.values()) or None,
        "prepare_seconds": prepared - begin,
        "compile": {"seconds": ready - prepared, **before, "shapes": len(compiled)},
        "programs_compiled_while_measuring": extra,
        **conditions,
    }


def measure_pipeline(mapping: Any, seconds: float) -> Result:
    """Takes batches of a config's training stream for a while, from its beginning, and computes nothing.

    Returns: batches and positions (of the counted array, padding included) a second.
    Raises: UserError as `train` does.
    """
    _positive(seconds=seconds)
    config = parse_config(mapping)
    begin = time.monotonic()
    batches = find_family(config.family).prepare(config, None).batches
    prepared = time.monotonic()
    iterator, count, cells = batches.iterator(), 0, 0
    next(iterator)
    start = time.monotonic()
    while time.monotonic() < start + seconds or not count:
        cells += next(iterator)[batches.counted].size
        count += 1
    elapsed = time.monotonic() - start
    return {
        "measured": "pipeline",
        "config": config.name,
        "batches_per_second": count / elapsed,
        "positions_per_second": cells / elapsed,
        "batches": count,
        "prepare_seconds": prepared - begin,
        **_conditions(),
    }


def measure_checkpoints(mapping: Any, repeats: int) -> Result:
    """Saves and restores the train state of a config, in a temporary folder (of TMPDIR), which is removed.

    Returns: medians of seconds for which a save holds up training, until it is whole with its digests, and of a
      restore, digests verified and arrays on their devices; bytes on disk.
    Raises: UserError as `train` does.
    """
    _positive(repeats=repeats)
    made = _prepare(mapping)
    state = made.program.create()
    held_up, whole, restores = [], [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / "checkpoints") as checkpoints:
        for step in range(repeats + 1):
            jax.block_until_ready(state)
            begin = time.monotonic()
            checkpoints.save(step, vars(state), START, {})
            held_up.append(time.monotonic() - begin)
            checkpoints.wait()
            whole.append(time.monotonic() - begin)
            begin = time.monotonic()
            jax.block_until_ready(checkpoints.restore_latest(made.program.shapes))
            restores.append(time.monotonic() - begin)
        size = sum(file.stat().st_size for file in (Path(folder) / "checkpoints" / str(repeats)).rglob("*"))
    median = lambda seconds: statistics.median(seconds[1:])  # the first one compiles and imports
    return {
        "measured": "checkpoints",
        "config": made.config.name,
        "bytes": size,
        "save_blocking_seconds": median(held_up),
        "save_seconds": median(whole),
        "restore_seconds": median(restores),
        "repeats": repeats,
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
    params = nn.unbox(jax.jit(TranslationTask(model, config.task).init)(jax.random.key(config.seed)))
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


def describe(result: Result) -> list[tuple[str, str]]:
    """What was measured, line by line: its name, and the numbers."""
    rows = _ROWS[result["measured"]](result)
    if "compile" in result:
        rows.append(("compiled later", f"{result['programs_compiled_while_measuring']} programs while measuring"))
    if "device_peak_bytes" in result:
        rows.append(("device memory", f"{result['device_peak_bytes'] / 2**20:,.0f} MiB at most on one"))
    if "peak_rss_bytes" in result:
        rows.append(("peak memory", f"{result['peak_rss_bytes'] / 2**20:,.0f} MiB resident"))
        rows.append(("devices", f"{result['devices']}, {result['cores']} cores, load {result['load_average']:.2f}"))
    return rows


def result_table(result: Result) -> Table:
    """The result, or all of several."""
    results = result["results"] if result["measured"] == "all" else [result]
    rows = [(each["measured"] if k == 0 else "", *row) for each in results for k, row in enumerate(describe(each))]
    return Table(result.get("config", ""), ("", "what", "measured"), rows, left=("what", "measured"))


def _start_rows(result: Result) -> list[tuple[str, str]]:
    rows = []
    for state, parts in result["starts"].items():
        split = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items() if name != "all")
        rows.append((state, f"{parts['all']:.2f} s from the start of the process" + (f": {split}" if split else "")))
    return rows


def _training_rows(result: Result) -> list[tuple[str, str]]:
    rate, compile_ = result["target_tokens_per_second"], result["compile"]
    peaks = ", ".join(f"{peak['flops'] / 1e9:,.0f} in {dtype}" for dtype, peak in result["matmul_peaks"].items())
    shares = ", ".join(f"{share:.1%} of the {dtype} peak" for dtype, share in result["utilisation"].items())
    rows = [
        ("target tokens/s", f"{rate['median']:,.0f} median, {rate['best']:,.0f} best, without padding"),
        ("windows", " ".join(f"{value:,.0f}" for value in rate["windows"])),
        ("step", f"{1000 * result['step_seconds']:.1f} ms, {result['steps']} steps"),
        ("padding", f"{result['padding']:.1%} of target positions"),
        ("model GFLOP/s", f"{result['model_flops_per_second'] / 1e9:,.0f}, padding included: {shares}"),
        ("peak GFLOP/s", f"{peaks}: square matrix products"),
        ("parameters", f"{result['parameters']:,}"),
        ("compile", f"{compile_['seconds']:.1f} s for {compile_['shapes']} shapes: {_programs(compile_)}"),
    ]
    if result["predicted_step_bytes"]:
        rows.append(("predicted memory", f"{result['predicted_step_bytes'] / 2**20:,.0f} MiB a device, by XLA's plan"))
    return rows


def _decoding_rows(result: Result) -> list[tuple[str, str]]:
    rate, search, alone = (
        result[name] for name in ("lines_per_second", "search_lines_per_second", "single_line_seconds")
    )
    lengths, decoding, compile_ = result["output_tokens"], result["decoding"], result["compile"]
    beam = f" {decoding['beam_size']}" if decoding["method"] == "beam" else ""
    return [
        ("lines/s", f"{rate['median']:,.1f} median, {rate['best']:,.1f} best, text to text"),
        ("search", f"{search['median']:,.1f} median, {search['best']:,.1f} best, tokens to tokens"),
        ("single line", f"{1000 * alone['median']:.1f} ms median, {1000 * alone['worst']:.1f} ms worst"),
        ("outputs", f"{lengths['mean']:.1f} tokens, {lengths['least']} to {lengths['most']}, without ends"),
        ("decoding", f"{decoding['method']}{beam}, {result['lines']} lines"),
        ("compile", f"first call {compile_['first_call_seconds']:.1f} s: {_programs(compile_)}"),
    ]


def _pipeline_rows(result: Result) -> list[tuple[str, str]]:
    rates = f"{result['batches_per_second']:,.1f} batches/s, {result['positions_per_second']:,.0f} target positions/s"
    return [("input pipeline", rates), ("prepared in", f"{result['prepare_seconds']:.1f} s")]


def _checkpoint_rows(result: Result) -> list[tuple[str, str]]:
    save, whole, restore = (result[f"{name}_seconds"] for name in ("save_blocking", "save", "restore"))
    return [
        ("save", f"{1000 * save:.0f} ms held up, {1000 * whole:.0f} ms until whole, digests included"),
        ("restore", f"{1000 * restore:.0f} ms, verified and on the devices"),
        ("checkpoint", f"{result['bytes'] / 2**20:,.1f} MiB"),
    ]


_ROWS: dict[str, Callable[[Result], list[tuple[str, str]]]] = {
    "training": _training_rows,
    "decoding": _decoding_rows,
    "pipeline": _pipeline_rows,
    "checkpoints": _checkpoint_rows,
    "start": _start_rows,
}


def _programs(compile_: Result) -> str:
    return f"{compile_['programs']} programs, {compile_['from_cache']} of them from the cache"


def _conditions() -> Result:
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    return {
        **({"device_peak_bytes": max(used)} if used else {}),
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
