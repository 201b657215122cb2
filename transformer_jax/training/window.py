"""Metrics of the steps since the last log line; fetched a step late, so that the device never waits for Python."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from transformer_jax.host import peak_memory
from transformer_jax.progress import Progress
from transformer_jax.training.metric_writer import MetricWriter
from transformer_jax.training.tasks import Task

NO_SUMS = ("gradient_norm", "learning_rate", "skipped_steps", "skipped_in_a_row")


class CompileCounter:
    """Counts the programs compiled, cached or not, since it was made."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"


def device_memory() -> dict[str, float]:
    """The most bytes that any device of this process has had in use; nothing where devices do not say.

    The devices of a CPU have the memory of the process.
    """
    if jax.default_backend() == "cpu":
        return {"device_memory_bytes": float(peak_memory())}
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return {"device_memory_bytes": float(max(peaks))} if any(peaks) else {}


@dataclass(frozen=True)
class Step:
    """A step that was dispatched: its number, what it was given, and what it measured."""

    number: int
    batch: Mapping[str, Any]
    cells: int  # positions in the batch, padding included
    position: Mapping[str, int]  # of the batch after it
    metrics: Mapping[str, Any]  # arrays on the device, or floats once fetched


class Window:
    """Sums up steps and writes a line every so many. `latest` is the newest step whose metrics have been fetched."""

    def __init__(
        self, writer: MetricWriter, progress: Progress, every: int, compiles: CompileCounter, task: Task
    ) -> None:
        self._writer, self._progress, self._every, self._compiles = writer, progress, every, compiles
        self._task = task
        self._pending: Step | None = None
        self._shown: dict[str, float] = {}
        self._seconds, self._since = 0.0, time.monotonic()
        self.latest: Step | None = None
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._cells = self._steps = 0
        self._seconds = 0.0

    @property
    def skipped_in_a_row(self) -> float:
        """Of the steps up to the latest."""
        return self.latest.metrics["skipped_in_a_row"] if self.latest else 0.0

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
        """Starts anew from the sums that `partial` gave, so that the next line is that of an uninterrupted run."""
        self._pending = self.latest = None
        self._reset()
        if "window/steps" in metrics:
            start = "window/sums/"
            self._sums = {name.removeprefix(start): v for name, v in metrics.items() if name.startswith(start)}
            self._cells, self._steps = int(metrics["window/cells"]), int(metrics["window/steps"])
            self._seconds = metrics["window/seconds"]

    def add(self, step: Step) -> None:
        """Takes a step that has been dispatched, and fetches the metrics of the one before it."""
        self.flush()
        self._pending = step

    def flush(self) -> None:
        """Fetches what is pending, and writes a line when its step is a multiple of ``every``."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        self.latest = Step(step.number, step.batch, step.cells, step.position, values)
        self._last = {name: values[name] for name in ("gradient_norm", "learning_rate", "skipped_steps")}
        self._steps += 1
        if values["skipped_in_a_row"]:
            self._progress.message(
                f"step {step.number}: update skipped, loss {values['loss'] / max(values['tokens'], 1.0):.4g}, "
                f"gradient norm {values['gradient_norm']:.4g}"
            )
        else:
            for name, value in values.items():
                if name not in NO_SUMS:
                    self._sums[name] = self._sums.get(name, 0.0) + value
            self._cells += step.cells
        if step.number % self._every == 0:
            self._write(step.number)
        self._progress.update(step.number, self._shown or {"loss": values["loss"] / max(values["tokens"], 1.0)})

    def _write(self, number: int) -> None:
        self.pause()
        seconds = max(self._seconds, 1e-9)
        means = self._task.summarise(self._sums) if self._sums else {"loss": np.nan}  # nan: all steps were skipped
        tokens = self._sums.get("tokens", 0.0)
        line = {
            **means,
            **self._last,
            "target_tokens_per_second": tokens / seconds,
            "padding": 1.0 - tokens / max(self._cells, 1),
            "step_seconds": seconds / self._steps,
            "compile_count": float(self._compiles.count),
            **device_memory(),
        }
        self._writer.write(number, "train", line)
        self._shown = {"loss": line["loss"], "tokens/s": line["target_tokens_per_second"]}
        self._reset()
