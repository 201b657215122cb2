"""The training loop, the same for every family: evaluate → save → next batch → step.

A run starts from the newest checkpoint in its directory, else from scratch. What is written at a step is a pure
function of the config and the step, so an interrupted run ends where an uninterrupted one does.
"""

import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transformer_jax.data.batches import START, Batches
from transformer_jax.data.cache import cache_directory
from transformer_jax.distributed import from_main, is_main, main_first
from transformer_jax.errors import UserError
from transformer_jax.experiment import EvaluationConfig, RunConfig, parse_config, plain
from transformer_jax.families.family import Experiment
from transformer_jax.families.registry import find_family
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import make_mesh, own_blocks, place_batch
from transformer_jax.training.checkpoints import EVALUATED, Checkpoints
from transformer_jax.training.metric_writer import MetricWriter, NoMetrics, read_metrics
from transformer_jax.training.optimizers import evaluation_parameters, learning_rate, make_optimizer
from transformer_jax.training.progress import Progress
from transformer_jax.training.step import (
    TrainState,
    TrainStep,
    abstract_batch,
    abstract_state,
    batch_kind,
    make_train_step,
)
from transformer_jax.training.tasks import Task


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended: at which step, and whether the run is complete."""

    step: int
    finished: bool


def enable_compilation_cache() -> None:
    """Keeps compiled programs between processes. They are code, so the folder is private (mode 0700)."""
    folder = cache_directory() / "compiled"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def train(mapping: Any, workdir: str | Path) -> Outcome:
    """Trains the experiment of a config in ``workdir``, or continues what stands there.

    Raises: UserError for anything wrong with the config, the data or the directory, before work starts.
    """
    config = parse_config(mapping)
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    fresh = not os.path.exists(Path(workdir) / "config.json")  # Path.exists raises without permission
    opened = main_first(
        lambda: RunDirectory.create_or_resume(workdir, plain(mapping)), others=lambda: _open_shared(workdir)
    )
    with opened as run, _nothing_half_made(run, fresh):
        enable_compilation_cache()
        # The main process first: what it downloads, makes and caches, the others then find.
        experiment = main_first(lambda: find_family(config.family).prepare(config, run))
        return _train(config, run, mesh, experiment)


def _open_shared(workdir: str | Path) -> RunDirectory:
    try:
        return RunDirectory.open(workdir)
    except UserError as error:
        raise UserError(
            f"{workdir} is not there on {platform.node()}, although the main process made it: all processes of a run "
            "need one directory, on a file system that they share."
        ) from error


@contextmanager
def _nothing_half_made(run: RunDirectory, fresh: bool) -> Iterator[None]:
    """Bad input found before the first checkpoint of a new run leaves a directory that is no run."""
    try:
        yield
    except UserError:
        if fresh and is_main() and not run.checkpoints.exists():
            for entry in run.path.iterdir():
                if entry == run.tokenizer:
                    shutil.rmtree(entry)
                elif entry.name in ("config.json", "environment.json"):
                    entry.unlink()
        raise


def check_rows(config: RunConfig, mesh: Mesh) -> None:
    """Raises: UserError unless every batch splits evenly over devices and microbatches."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.training.accumulation
    key, rows = config.rows
    if rows % parts:
        raise UserError(
            f"{key}={rows} does not divide over "
            f"mesh.data={mesh.shape['data']} * mesh.fsdp={mesh.shape['fsdp']} * training.accumulation="
            f"{config.training.accumulation}; set it to a multiple of {parts}."
        )


class CompileCounter:
    """Counts the programs compiled, cached or not, since it was made."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or Ctrl-C sets; a second Ctrl-C leaves at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _train(config: RunConfig, run: RunDirectory, mesh: Mesh, experiment: Experiment) -> Outcome:
    training, evaluation = config.training, config.evaluation
    task, batches = experiment.task, experiment.batches
    total = training.total_steps
    optimizer = make_optimizer(config.optimizer, total)
    schedule = learning_rate(config.optimizer, total)
    shapes, create = abstract_state(task, optimizer, mesh, config.seed, ema=training.ema_decay > 0)
    compiles = CompileCounter()
    with (
        stop_requests() as stop,
        Checkpoints(
            run.checkpoints,
            config.checkpoints.keep_latest,
            config.checkpoints.keep_best,
            best_mode=evaluation.best_mode,
            best_metric=evaluation.metric,
        ) as checkpoints,
    ):
        found = checkpoints.restore_latest(shapes)
        first, state, position = found if found else (0, create(), None)
        if first >= total or (found and from_main(lambda: exhausted(_until(run.metrics, first), evaluation))):
            return Outcome(first, finished=True)
        iterator = batches.iterator(position or START, *own_blocks(mesh))
        with (
            MetricWriter(run.path, resume_step=first if found else -1) if is_main() else NoMetrics() as writer,
            Progress(total, first, silent=not is_main()) as progress,
        ):
            parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes.params))
            progress.message(batches.describe())
            processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
            devices = f"{mesh.size} device(s){processes}, mesh {dict(mesh.shape)}"
            progress.message(f"parameters     {parameters:,} on {devices}")
            if found:
                progress.message(f"continuing     from step {first} of {total}")
            step = make_train_step(
                task,
                optimizer,
                schedule,
                mesh,
                shapes,
                seed=config.seed,
                accumulation=training.accumulation,
                ema_decay=training.ema_decay,
            )
            begin = time.monotonic()
            compiled = compile_shapes(step, shapes, mesh, batches)
            progress.message(f"compiled       {len(compiled)} batch shapes in {time.monotonic() - begin:.1f} s")
            evaluator = experiment.make_evaluator(mesh)

            def evaluate(number: int, params: Any) -> dict[str, float]:
                metrics = dict(evaluator(params))
                writer.write(number, "validation", metrics)
                text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "seconds" not in name)
                progress.message(f"step {number}: validation {text}")
                return metrics

            window = Window(writer, progress, training.log_every_steps, compiles, task)
            if found:
                window.restore(checkpoints.metrics(first))
            number = first
            while True:
                due = number > first and (number == total or number % evaluation.every_steps == 0)
                planned = number == total or number % config.checkpoints.every_steps == 0
                if due or planned:
                    window.flush()
                window.pause()
                weights = _evaluation_weights(config, state, checkpoints) if due else state.params
                metrics = evaluate(number, weights) if due else {}
                early = due and from_main(lambda: exhausted(read_metrics(run.metrics), evaluation))
                ending = number == total or early or stop.is_set()
                if ending:
                    window.flush()
                if number > first and (ending or planned):
                    own = weights is state.params or weights is state.ema_params
                    saved = {**vars(state), **({} if own else {EVALUATED: weights})}
                    facts = {**metrics, **window.partial()}
                    checkpoints.save(number, saved, iterator.position, facts, interim=not (planned or early))
                if ending:
                    checkpoints.wait()
                    if early:
                        progress.message(
                            f"stopped early: no better {evaluation.metric} in {evaluation.patience} evaluations"
                        )
                    return Outcome(number, finished=number == total or early)
                window.resume()
                batch = place_batch(mesh, next(iterator))
                state, measured = compiled[batch_kind(batch)](state, batch)
                number += 1
                window.add(number, batch[batches.counted].size, measured)


def compile_shapes(step: TrainStep, shapes: TrainState, mesh: Mesh, batches: Batches) -> dict[Any, TrainStep]:
    """The step compiled for every kind of batch there can be, several at a time, so that none is compiled later."""

    def gradients(batch: Any) -> Any:
        return step.gradients.lower(shapes.params, batch, shapes.step).compile()

    kinds = [abstract_batch(mesh, spec) for spec in batches.specs]
    sums = jax.eval_shape(step.gradients, shapes.params, kinds[0], shapes.step)[0]
    everywhere = shapes.step.sharding
    sums = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), sums)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        update = pool.submit(lambda: step.update.lower(shapes, sums, shapes.params).compile())
        compiled = list(pool.map(gradients, kinds))
        return {batch_kind(kind): TrainStep(one, update.result()) for kind, one in zip(kinds, compiled, strict=True)}


def _evaluation_weights(config: RunConfig, state: TrainState, checkpoints: Checkpoints) -> Any:
    if config.evaluation.weights == "ema":
        return state.ema_params
    params = evaluation_parameters(config.optimizer, state.opt_state, state.params)
    if config.evaluation.weights == "average":
        checkpoints.wait()
        # Not what an interruption saved in between: the mean is the same as in a run without one.
        earlier = checkpoints.lasting()[-(config.evaluation.average - 1) :] if config.evaluation.average > 1 else []
        for step in earlier:
            tree = checkpoints.restore_parameters(step, like=params)
            params = jax.tree.map(jnp.add, params, tree)
        params = jax.tree.map(lambda p: p / (len(earlier) + 1), params)
    return params


def _until(metrics: Path, step: int) -> list[dict[str, Any]]:
    return [row for row in read_metrics(metrics) if row["step"] <= step]


def exhausted(history: list[dict[str, Any]], evaluation: EvaluationConfig) -> bool:
    """Whether the last ``patience`` validation values of the metric brought no new best."""
    metric, patience = evaluation.metric, evaluation.patience
    sign = -1 if evaluation.best_mode == "min" else 1
    values = [sign * row["value"] for row in history if row["split"] == "validation" and row["name"] == metric]
    return bool(patience) and len(values) > patience and max(values[-patience:]) <= max(values[:-patience])


class Window:
    """Metrics of the steps since the last log line; fetched a step late, so that the device never waits for Python."""

    def __init__(
        self, writer: MetricWriter, progress: Progress, every: int, compiles: CompileCounter, task: Task
    ) -> None:
        self._writer, self._progress, self._every, self._compiles = writer, progress, every, compiles
        self._task = task
        self._pending: tuple[int, dict[str, Any], int] | None = None
        self._shown: dict[str, float] = {}
        self._seconds, self._since = 0.0, time.monotonic()
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._cells = self._steps = 0
        self._seconds = 0.0

    def pause(self) -> None:
        """Stops the clock: evaluating and saving is no training time."""
        self._seconds += time.monotonic() - self._since
        self._since = time.monotonic()

    def resume(self) -> None:
        self._since = time.monotonic()

    def partial(self) -> dict[str, float]:
        """What has been summed up since the last line, for `restore` after an interruption."""
        if not self._steps:
            return {}
        counts = {"cells": self._cells, "steps": self._steps, "seconds": self._seconds}
        sums = {f"sums/{name}": value for name, value in self._sums.items()}
        return {f"window/{name}": float(value) for name, value in {**sums, **counts}.items()}

    def restore(self, metrics: Mapping[str, float]) -> None:
        """Continues the sums that `partial` gave, so that the next line is that of an uninterrupted run."""
        if "window/steps" in metrics:
            start = "window/sums/"
            self._sums = {name.removeprefix(start): v for name, v in metrics.items() if name.startswith(start)}
            self._cells, self._steps = int(metrics["window/cells"]), int(metrics["window/steps"])
            self._seconds = metrics["window/seconds"]

    def add(self, step: int, cells: int, metrics: dict[str, Any]) -> None:
        """Takes the metrics of a step that has been dispatched, and fetches those of the step before it.

        ``cells``: positions of its batch, padding included.
        """
        self.flush()
        self._pending = (step, metrics, cells)

    def flush(self) -> None:
        """Fetches what is pending, and writes a line when its step is a multiple of ``every``."""
        if self._pending is None:
            return
        step, metrics, cells = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._last = {name: values.pop(name) for name in ("gradient_norm", "learning_rate")}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._cells += cells
        self._steps += 1
        if step % self._every == 0:
            self.pause()
            seconds = max(self._seconds, 1e-9)
            stats = jax.local_devices()[0].memory_stats() or {}
            memory = {"device_memory_bytes": float(stats["peak_bytes_in_use"])} if "peak_bytes_in_use" in stats else {}
            line = {
                **self._task.summarise(self._sums),
                **self._last,
                "target_tokens_per_second": self._sums["tokens"] / seconds,
                "padding": 1.0 - self._sums["tokens"] / self._cells,
                "step_seconds": seconds / self._steps,
                "compile_count": float(self._compiles.count),
                **memory,
            }
            self._writer.write(step, "train", line)
            self._shown = {"loss": line["loss"], "tokens/s": line["target_tokens_per_second"]}
            self._reset()
        self._progress.update(step, self._shown or {"loss": values["loss"] / max(values["tokens"], 1.0)})
