"""Progress of long work: a bar on a terminal, a plain line every so often where output is piped."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def counted(
    items: Iterable[Item], description: str, total: int | None = None, unit: str = "lines", seconds: float = 20.0
) -> Iterator[Item]:
    """The items, counted on stderr as they come; piped, nothing is said of work of less than ``seconds``."""
    if sys.stderr.isatty():
        yield from tqdm(items, description, total, unit=f" {unit}", leave=False, file=sys.stderr)
        return
    start = printed = time.monotonic()
    for count, item in enumerate(items, 1):
        now = time.monotonic()
        if count == 1:  # it waits for programs to be compiled, and others come together with it
            printed = now
        elif now - printed >= seconds:
            printed = now
            of, left = "", ""
            if total:
                of, left = f"/{total:,}", f"  {tqdm.format_interval((now - start) / count * (total - count))} left"
            print(f"{description}: {count:,}{of} {unit}{left}", file=sys.stderr, flush=True)
        yield item


class Progress:
    """Shows the step, a few numbers, and the time left.

        with Progress(total_steps, initial_step) as progress:
            progress.update(step, {"loss": 2.31, "tokens/s": 21000})
            progress.message("step 500: validation bleu 31.2")

    Args:
      total_steps: the step at which the loop ends.
      initial_step: the step it starts from: more than 0 after a resume, so that the time left stays right.
      stream: a terminal gets a bar, all else plain lines.
      seconds: between two plain lines.
      silent: shows nothing, for all processes of a run but one.
    """

    def __init__(
        self,
        total_steps: int,
        initial_step: int = 0,
        stream: TextIO | None = None,
        seconds: float = 20.0,
        silent: bool = False,
    ) -> None:
        self._silent = silent
        self._stream = sys.stderr if stream is None else stream
        self._total, self._initial, self._seconds = total_steps, initial_step, seconds
        self._start: float | None = None
        self._printed = -float("inf")
        self._bar: tqdm | None = None
        if self._stream.isatty() and not silent:
            self._bar = tqdm(
                total=total_steps, initial=initial_step, unit="step", file=self._stream, dynamic_ncols=True
            )

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells that `step` steps are done. Cheap enough for every step; metrics are host numbers."""
        if self._bar is not None:
            if self._start is None:  # time counts from here: compiling is over, and was no step
                self._start = time.monotonic()
                self._bar.unpause()
            self._bar.set_postfix_str(_format(metrics), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if self._start is None:
            self._start, self._initial = now, step
        if now - self._printed >= self._seconds or step >= self._total:
            self._printed = now
            done = step - self._initial
            left = (now - self._start) / done * (self._total - step) if done > 0 else float("nan")
            time_left = f"  {tqdm.format_interval(left)} left" if done > 0 else ""
            self.message(f"step {step}/{self._total}  {_format(metrics)}{time_left}")

    def message(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif not self._silent:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _format(metrics: Mapping[str, float]) -> str:
    """Large numbers whole and grouped, others with four significant digits."""
    return "  ".join(
        f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.4g}" for name, value in metrics.items()
    )
