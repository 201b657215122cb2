"""Metrics of a run: a JSON object a line in metrics.jsonl, TensorBoard events beside it, figures as files.

What else is to see them, such as Weights & Biases, is given as trackers.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.utils import figure_to_image

from transformer_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from transformer_jax.training.tracking import Tracker

LOWER_IS_BETTER = ("loss", "nll", "image_nll", "perplexity", "bits_per_byte", "error")
"""The metrics of which less is better; of all others more is."""


def best_mode(metric: str) -> Literal["max", "min"]:
    """Which value of a metric is best."""
    return "min" if metric in LOWER_IS_BETTER else "max"


class MetricWriter:
    """Appends to the metrics of a run. One process at a time may write.

    Args:
      directory: the run directory; gets metrics.jsonl, TensorBoard's events.* and figures/.
      resume_step: the step of the checkpoint that training continues from. What an interrupted process wrote
        of later steps is dropped, since it is about to be written again: all of it with -1, for a start from
        scratch. So write all metrics of a step before its checkpoint is saved. None keeps everything.
      trackers: get everything, too, and are closed with the writer.

    Raises:
      UserError: metrics.jsonl has a line, other than a torn last one, that no MetricWriter wrote; or, here and in
        all methods, the disk is full or a file cannot be written.
    """

    def __init__(
        self, directory: str | Path, resume_step: int | None = None, trackers: "Sequence[Tracker]" = ()
    ) -> None:
        self._trackers = trackers
        self._directory = Path(directory)
        with self._writing():
            self._directory.mkdir(parents=True, exist_ok=True)
        self._open(resume_step)

    def _open(self, resume_step: int | None) -> None:
        path = self._directory / "metrics.jsonl"
        with self._writing():
            if path.exists():
                _rewrite(path, math.inf if resume_step is None else resume_step)
            self._file = path.open("a", encoding="utf-8")
            # Not through SummaryWriter: its thread would die of a full disk, and its queue then block for ever.
            suffix = f".{os.getpid()}.{len(list(self._directory.glob('events.*')))}"
            self._events = EventsWriter(str(self._directory / "events"), suffix)
            if resume_step is not None:
                self._events.write_event(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def rewind(self, step: int) -> None:
        """Drops what was written of the steps after ``step``: they are about to be written again."""
        self._close_files()
        self._open(step)

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Appends a line {"step", "split", "name", "value"} for each metric, and flushes the files.

        JSON has no NaN and no infinity: such values are written as the strings "nan", "inf", "-inf".
        """
        lines, values = [], []
        for name, value in metrics.items():
            number = float(value)
            stored = number if math.isfinite(number) else str(number)
            lines.append(json.dumps({"step": int(step), "split": split, "name": name, "value": stored}) + "\n")
            values.append(summary.Summary.Value(tag=f"{split}/{name}", simple_value=number))
        with self._writing():
            self._file.write("".join(lines))
            self._file.flush()
            self._events.write_event(
                Event(step=int(step), wall_time=time.time(), summary=summary.Summary(value=values))
            )
            self._events.flush()
        for tracker in self._trackers:
            tracker.log(int(step), {f"{split}/{name}": float(value) for name, value in metrics.items()})

    def figure(self, step: int, name: str, figure: "Figure") -> Path:
        """Saves a figure as figures/NAME-STEP.png and shows it in TensorBoard; returns the file's path."""
        path = self._directory / "figures" / f"{name}-{int(step):08d}.png"
        image = summary.image(name, figure_to_image(figure), dataformats="CHW")
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, bbox_inches="tight")
            self._events.write_event(Event(step=int(step), wall_time=time.time(), summary=image))
        for tracker in self._trackers:
            tracker.figure(int(step), name, path)
        return path

    def close(self, failed: bool = False) -> None:
        """Ends all of it; ``failed``: what it was about ended with an error, which trackers show."""
        self._close_files()
        for tracker in self._trackers:
            tracker.close(failed)

    def _close_files(self) -> None:
        with self._writing():
            self._file.close()
            self._events.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The metrics in {self._directory} cannot be written: {error.strerror or error}. Make room or change "
                "the permissions and run the same command again: it continues from the last checkpoint."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


class NoMetrics(MetricWriter):
    """Writes nothing: for every process of a run but the main one."""

    def __init__(self) -> None:
        pass

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        pass

    def rewind(self, step: int) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        pass


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, in order, every value a float. A last line torn by a kill is left out.

    Raises:
      UserError: the file is missing, or another line is not one of MetricWriter's.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty or torn
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"]), "value": float(record["value"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}, line {number} is no metric: {line[:80]!r}. Remove that line.") from error
    return records


def _rewrite(path: Path, last_step: float) -> None:
    """Drops a torn last line and the lines of steps after last_step, atomically."""
    keep = read_metrics(path)
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    text = "".join(f"{line}\n" for line, record in zip(whole, keep, strict=True) if record["step"] <= last_step)
    temporary = path.with_name(".metrics.jsonl.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
