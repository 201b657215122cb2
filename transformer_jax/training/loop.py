"""The training loop, the same for every family: evaluate → save → next batch → step.

A run starts from the newest good checkpoint in its directory, else from the parameters of another run if its config
names one, else from scratch. What is written at a step is a pure function of the config and the step, so an
interrupted run ends where an uninterrupted one does.
"""

import dataclasses
import functools
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transformer_jax.data.batches import START, BatchSpec
from transformer_jax.data.cache import cache_directory
from transformer_jax.distributed import from_main, is_main, main_first, peers
from transformer_jax.errors import RunFailed, UserError
from transformer_jax.experiment import EvaluationConfig, RunConfig, parse_config, plain
from transformer_jax.families.family import Experiment
from transformer_jax.families.registry import find_family
from transformer_jax.progress import Progress
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import make_mesh, own_blocks, place_batch
from transformer_jax.training import replay, tracking
from transformer_jax.training.checkpoints import AVERAGED, EVALUATED, Checkpoints
from transformer_jax.training.guard import GuardState
from transformer_jax.training.initialization import adopt_tokenizer, initialize
from transformer_jax.training.metric_writer import MetricWriter, NoMetrics, read_metrics
from transformer_jax.training.optimizers import evaluation_parameters
from transformer_jax.training.program import make_program
from transformer_jax.training.resuming import safe_changes
from transformer_jax.training.saved_steps import SavedSteps, to_stderr
from transformer_jax.training.signals import StopRequests, Terminated
from transformer_jax.training.step import (
    TrainState,
    TrainStep,
    abstract_batch,
    batch_kind,
)
from transformer_jax.training.window import CompileCounter, Step, Window

MADE_FIRST = (
    "config.json",
    "environment.json",
    "pinned.json",
    "initialization.json",
    "labels.json",
    tracking.RECORD,
)


OnEvaluation = Callable[[int, Mapping[str, float]], bool]
"""Is given the step and the metrics of each evaluation, before that step's checkpoint; True ends the call there.

With several processes the main one alone is asked.
"""


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


def train(mapping: Any, workdir: str | Path, on_evaluation: OnEvaluation = lambda step, metrics: False) -> Outcome:
    """Trains the experiment of a config in ``workdir``, or continues what stands there.

    What ``on_evaluation`` ends is saved as an interruption is, so that another call continues it.

    Raises: UserError for anything wrong with the config, the data or the directory, before work starts, and for a
    disk that cannot be written; RunFailed when training cannot go on.
    """
    config, workdir = parse_config(mapping), Path(workdir).expanduser()
    tracking.check_installed(config.tracking)
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    fresh = not os.path.exists(workdir / "config.json")  # Path.exists raises without permission
    with StopRequests() as stop, peers():
        try:
            opened = main_first(
                lambda: RunDirectory.create_or_resume(workdir, plain(mapping), safe=safe_changes(workdir, config)),
                others=lambda: _open_shared(workdir),
            )
            with opened as run, _nothing_half_made(run, fresh):
                enable_compilation_cache()
                from_main(lambda: adopt_tokenizer(config.initialize, run))
                # The main process first: what it downloads, makes and caches, the others then find.
                experiment = main_first(lambda: find_family(config.family).prepare(config, run))
                return Trainer(config, run, mesh, experiment, stop, on_evaluation).train()
        except Terminated:
            return Outcome(SavedSteps(workdir / "checkpoints").latest_step() or 0, finished=False)


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
    """Bad input, or an interruption while data is prepared, leaves a directory that is no run."""
    try:
        yield
    except RunFailed:  # the input was good enough to train with
        raise
    except (UserError, KeyboardInterrupt):
        if fresh and run.is_held() and not run.checkpoints.exists() and not run.metrics.exists():
            for entry in run.path.iterdir():
                if entry == run.tokenizer or entry.name in tracking.FOLDERS:
                    shutil.rmtree(entry)
                elif entry.name in MADE_FIRST:
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


class Trainer:
    """One run: its state on the devices, its place in the data, and all that is written of it."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDirectory,
        mesh: Mesh,
        experiment: Experiment,
        stop: StopRequests,
        on_evaluation: OnEvaluation,
    ) -> None:
        self.config, self.run, self.mesh, self.experiment, self.stop = config, run, mesh, experiment, stop
        self.on_evaluation = on_evaluation
        self.task, self.batches = experiment.task, experiment.batches
        self.program = program = make_program(config, self.task, mesh)
        self.optimizer, self.shapes, self.step = program.optimizer, program.shapes, program.step
        self.checkpoints = Checkpoints(
            run.checkpoints,
            config.checkpoints.keep_latest,
            config.checkpoints.keep_best,
            best_mode=config.evaluation.best_mode,
            best_metric=config.evaluation.metric,
        )
        self.rollbacks = 0
        self.state: TrainState

    def train(self) -> Outcome:
        """Continues from the newest good checkpoint, or starts; returns when the run is complete or asked to stop."""
        total, evaluation, compiles = self.config.training.total_steps, self.config.evaluation, CompileCounter()
        with self.checkpoints, ThreadPoolExecutor(1) as beside:
            found = self.checkpoints.restore_latest(self.shapes)
            self.first, restored, position = found if found else (0, None, None)
            complete = lambda: exhausted(_until(self.run.metrics, self.first), evaluation)
            if self.first >= total or (found and from_main(complete)):
                return Outcome(self.first, finished=True)
            started = beside.submit(lambda: restored or self._start())  # what makes a state is compiled beside the step
            if self.config.initialize.run:
                started.result()  # may refuse: before anything is written
            self.number, self.iterator = self.first, self._data(position)
            self.evaluator = self.experiment.make_evaluator(self.mesh)  # may refuse: before anything is written
            with (
                self._metric_writer(self.first if found else -1) as self.writer,
                Progress(total, self.first, silent=not is_main()) as self.progress,
            ):
                parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.shapes.params))
                self.progress.message(self.batches.describe())
                processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
                devices = f"{self.mesh.size} device(s){processes}, mesh {dict(self.mesh.shape)}"
                self.progress.message(f"parameters     {parameters:,} on {devices}")
                if found:
                    self.progress.message(f"continuing     from step {self.first} of {total}")
                begin = time.monotonic()
                self.compiled = compile_shapes(self.step, self.shapes, self.mesh, self.batches.specs)
                self.progress.message(
                    f"compiled       {len(self.compiled)} batch shapes in {time.monotonic() - begin:.1f} s"
                )
                self.state = started.result()
                self.window = Window(
                    self.writer, self.progress, self.config.training.log_every_steps, compiles, self.task
                )
                if found:
                    self._recall(self.first)
                self.stop.finish_steps()
                return self._loop()

    def _loop(self) -> Outcome:
        training, evaluation = self.config.training, self.config.evaluation
        while True:
            number = self.number
            last, stopping = number == training.total_steps, self.stop.agreed()
            due = number > self.first and (last or number % evaluation.every_steps == 0)
            planned = due or number % self.config.checkpoints.every_steps == 0  # what has been judged can be loaded
            if due or planned or stopping:
                self.window.flush()
            if number % training.log_every_steps == 0 or due or planned or stopping:
                self.run.check_held()
            if self.window.skipped_in_a_row >= self.config.guard.rollback_after:
                self._roll_back()
                continue
            self.window.pause()
            weights, averaged = self._evaluation_weights() if due else (self.state.params, [])
            metrics = self._evaluate(weights) if due else {}
            if due:  # which may have taken long
                stopping = self.stop.agreed() or stopping
            early = due and from_main(lambda: exhausted(read_metrics(self.run.metrics), evaluation))
            unwanted = due and from_main(functools.partial(self.on_evaluation, number, metrics))
            ending = last or early or unwanted or stopping
            if number > self.first and (ending or planned):
                self._save(metrics, weights, averaged, interim=not (planned or early))
            if ending:
                self.checkpoints.wait()
                if early:
                    self.progress.message(
                        f"stopped early: no better {evaluation.metric} in {evaluation.patience} evaluations"
                    )
                return Outcome(number, finished=last or early)
            self.window.resume()
            self._step()

    def _step(self) -> None:
        batch = next(self.iterator)
        placed = place_batch(self.mesh, batch)
        step = self.compiled[batch_kind(placed)]
        every = self.config.guard.replay_every_steps
        self.number += 1
        if every and self.number % every == 0:
            before = self.state
            self.state, measured, different = replay.twice(step, before, placed)
            if different:
                self._stop_irreproducible(before, placed, measured, different)
        else:
            self.state, measured = step(self.state, placed)
        self.window.add(Step(self.number, batch, placed[self.batches.counted].size, self.iterator.position, measured))

    def _data(self, position: Mapping[str, int] | None) -> Any:
        """Batches from a position on, None being the first."""
        return self.batches.iterator(position or START, *own_blocks(self.mesh))

    def _metric_writer(self, resume_step: int) -> MetricWriter:
        if not is_main():
            return NoMetrics()
        trackers = tracking.open_trackers(self.config.tracking, self.run.path, self.run.config)
        return MetricWriter(self.run.path, resume_step, trackers)

    def _start(self) -> TrainState:
        """The state of step 0."""
        state = self.program.create()
        if self.config.initialize.run:
            state, report = initialize(self.config.initialize, self.run, self.task, state, self.optimizer)
            if is_main():
                to_stderr(str(report))
        return state

    def _recall(self, step: int) -> None:
        """Takes up what was known at a checkpoint."""
        known = self.checkpoints.metrics(step)
        self.window.restore(known)
        self.rollbacks = int(known["rollbacks"])

    def _evaluate(self, params: Any) -> dict[str, float]:
        metrics = dict(self.evaluator(params))
        self.writer.write(self.number, "validation", metrics)
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "seconds" not in name)
        self.progress.message(f"step {self.number}: validation {text}")
        return metrics

    def _save(self, metrics: Mapping[str, float], weights: Any, averaged: list[int], interim: bool) -> None:
        """A state from amidst skipped steps is nothing to go back to, so it does not last either."""
        own = weights is self.state.params or weights is self.state.ema_params
        saved = {**vars(self.state), **({} if own else {EVALUATED: weights})}
        means = {f"{AVERAGED}{step}": 1.0 for step in averaged}
        facts = {**metrics, **means, **self.window.partial(), "rollbacks": self.rollbacks}
        interim = interim or self.window.skipped_in_a_row > 0
        self.checkpoints.save(self.number, saved, self.iterator.position, facts, interim=interim)

    def _evaluation_weights(self) -> tuple[Any, list[int]]:
        """The parameters to evaluate, and the steps that they are the mean of, where they are one of checkpoints."""
        config, state, checkpoints = self.config, self.state, self.checkpoints
        if config.evaluation.weights == "ema":
            return state.ema_params, []
        params = evaluation_parameters(config.optimizer, state.opt_state, state.params)
        if config.evaluation.weights == "average":
            # Not what an interruption saved in between: the mean is the same as in a run without one.
            earlier = checkpoints.good(config.evaluation.average - 1)
            for step in earlier:
                params = _sum(params, checkpoints.restore_parameters(step, like=params))
            return _quotient(params, len(earlier) + 1), [*earlier, self.number]
        return params, []

    def _roll_back(self) -> None:
        """Back to the last good checkpoint, and on with the data after the steps that were skipped."""
        bad = self.window.latest
        assert bad is not None
        if self.rollbacks == self.config.guard.max_rollbacks:
            self._give_up(bad)
        self.checkpoints.discard_interim()
        found = self.checkpoints.restore_latest(self.shapes)
        self.first, self.state, _ = found if found else (0, self._start(), None)
        self.number, self.iterator = self.first, self._data(bad.position)
        self.writer.rewind(self.first if found else -1)
        rollbacks = self.rollbacks + 1
        self.window.restore(self.checkpoints.metrics(self.first) if found else {})
        self.rollbacks = rollbacks
        self.writer.write(self.first, "train", {"rollbacks": rollbacks})
        self.progress.message(
            f"step {bad.number}: {self.config.guard.rollback_after} updates in a row were skipped; back to step "
            f"{self.first}, and on with the data after them (rollback {rollbacks} of at most "
            f"{self.config.guard.max_rollbacks})"
        )

    def _give_up(self, bad: Step) -> None:
        # From the first of the skipped steps on the state has changed in its counters alone.
        since = self.number - bad.number + 1
        guard = self.state.guard
        guard = GuardState(guard.average_norm, guard.skipped - since, guard.in_a_row - since)
        before = dataclasses.replace(self.state, step=self.state.step - since, guard=guard)
        command = replay.save_bundle(
            self.run, bad.number, before, place_batch(self.mesh, bad.batch), bad.position, bad.metrics
        )
        raise RunFailed(
            f"Step {bad.number}: {self.config.guard.rollback_after} updates in a row were skipped, after "
            f"{self.rollbacks} rollbacks. Their loss or gradients are not finite, or explode: a lower "
            "optimizer.peak_learning_rate, a longer warm-up or optimizer.clip_norm may help, in a new run. The step "
            f"is kept; make it again with: {command}"
        )

    def _stop_irreproducible(self, before: TrainState, placed: Any, measured: Any, different: dict[str, int]) -> None:
        values = {name: float(value) for name, value in jax.device_get(measured).items()}
        command = replay.save_bundle(self.run, self.number, before, placed, self.iterator.position, values)
        worst = ", ".join(f"{path} ({count})" for path, count in list(different.items())[:5])
        raise RunFailed(
            f"Step {self.number} came out differently when it was made twice, in {len(different)} arrays (elements): "
            f"{worst}. Suspect the memory or the processor of {jax.local_devices()[0]}, or a kernel that is not "
            f"deterministic. The step is kept; make it again with: {command}"
        )


@jax.jit
def _sum(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)


@jax.jit
def _quotient(params: Any, count: int) -> Any:
    return jax.tree.map(lambda p: p / count, params)


def compile_shapes(step: TrainStep, shapes: TrainState, mesh: Mesh, specs: Sequence[BatchSpec]) -> dict[Any, TrainStep]:
    """The step compiled for kinds of batches, several at a time: for all there can be, none is compiled later."""

    def gradients(batch: Any) -> Any:
        return step.gradients.lower(shapes.params, batch, shapes.step).compile()

    kinds = [abstract_batch(mesh, spec) for spec in specs]
    sums = jax.eval_shape(step.gradients, shapes.params, kinds[0], shapes.step)[0]
    everywhere = shapes.step.sharding
    sums = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere), sums)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        update = pool.submit(lambda: step.update.lower(shapes, sums, shapes.params).compile())
        compiled = list(pool.map(gradients, kinds))
        return {batch_kind(kind): TrainStep(one, update.result()) for kind, one in zip(kinds, compiled, strict=True)}


def _until(metrics: Path, step: int) -> list[dict[str, Any]]:
    return [row for row in read_metrics(metrics) if row["step"] <= step]


def exhausted(history: list[dict[str, Any]], evaluation: EvaluationConfig) -> bool:
    """Whether the last ``patience`` validation values of the metric brought no new best."""
    metric, patience = evaluation.metric, evaluation.patience
    sign = -1 if evaluation.best_mode == "min" else 1
    values = [sign * row["value"] for row in history if row["split"] == "validation" and row["name"] == metric]
    return bool(patience) and len(values) > patience and max(values[-patience:]) <= max(values[:-patience])
