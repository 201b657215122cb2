"""The folder of a run's checkpoints: which steps are in it, which of them stay, and what becomes of damaged ones.

A step is made in .unfinished-STEP and renamed once it is whole and sealed; it is renamed again before it is removed.
So a folder named STEP is never half a checkpoint, whenever a process is killed.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from transformer_jax.errors import UserError
from transformer_jax.training.digests import CheckpointDamaged, read_json, seal, verify

UNFINISHED, REMOVED, DAMAGED = ".unfinished-", ".removed-", "damaged-"


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class SavedSteps:
    """The checkpoints in a directory, as files. A reader changes nothing; one writer at a time may.

    Args:
      directory: where the folders STEP are; made at the first save.
      keep_latest: the newest that many stay.
      keep_best: so do that many with the best value of best_metric. NaN is never best.
      best_mode: "max" if more is better, "min" if less is.
      best_metric: a key of save's metrics.
      report: told what a person should know, such as a damaged checkpoint.
    """

    def __init__(
        self,
        directory: str | Path,
        keep_latest: int = 1,
        keep_best: int = 0,
        best_mode: Literal["max", "min"] = "max",
        best_metric: str | None = None,
        report: Callable[[str], None] = to_stderr,
    ) -> None:
        if keep_latest < 1 or keep_best < 0 or (keep_best and not best_metric):
            raise UserError(
                f"keep_latest={keep_latest}, keep_best={keep_best}, best_metric={best_metric!r}: keep at "
                "least the latest one, and name the metric where the best are kept."
            )
        self.directory = Path(directory).absolute()
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._best_sign, self._best_metric = {"max": 1, "min": -1}[best_mode], best_metric
        self._report = report

    def steps(self) -> list[int]:
        """The finished checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdecimal())

    def lasting(self) -> list[int]:
        """Those of `steps` that were not saved as interim."""
        return [step for step in self.steps() if not self._facts(step)["interim"]]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def _unfinished(self, step: int) -> Path:
        return self.directory / f"{UNFINISHED}{step}"

    def _begin(self, step: int, facts: Mapping[str, Any]) -> None:
        """Makes the unfinished folder of a step, with its facts."""
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not newer than the saved step {latest}")
        for pattern in (f"{UNFINISHED}*", f"{REMOVED}*"):
            for leftover in self.directory.glob(pattern):
                shutil.rmtree(leftover)
        self.directory.mkdir(exist_ok=True)  # not its parents: a run directory that was removed stays so
        self._unfinished(step).mkdir()
        (self._unfinished(step) / "step.json").write_text(json.dumps(facts, sort_keys=True))

    def _seal(self, step: int) -> None:
        """Makes an unfinished step one of `steps`, and removes what need not be kept."""
        seal(self._unfinished(step))
        self._unfinished(step).rename(self.directory / str(step))
        for other in self.steps():
            try:
                self._facts(other)
            except CheckpointDamaged as error:
                self._set_aside(error)
        keep = {*self.lasting()[-self._keep_latest :], *self.steps()[-1:]}
        if self._keep_best:
            keep |= {step for _, step in sorted(self._ranked())[-self._keep_best :]}
        for other in set(self.steps()) - keep:
            self._remove(other)

    def _remove(self, step: int) -> None:
        gone = self.directory / f"{REMOVED}{step}"
        (self.directory / str(step)).rename(gone)
        shutil.rmtree(gone)

    def _remove_after(self, step: int) -> None:
        for later in self.steps():
            if later > step:
                self._remove(later)

    def _newest_good(self) -> int | None:
        """Sets aside the damaged steps that are newer. Raises: UserError if there are only damaged ones."""
        for step in reversed(self.steps()):
            try:
                self._verify(step)
            except CheckpointDamaged as error:
                self._set_aside(error)
            else:
                return step
        damaged = sorted(folder.name for folder in self.directory.glob(f"{DAMAGED}*"))
        if damaged:
            raise UserError(
                f"None of the checkpoints in {self.directory} is good: {', '.join(damaged)} are not what was "
                "written. Restore one from a copy under its number, or remove them to start from scratch."
            )
        return None

    def _whole(self, count: int) -> list[int]:
        """The newest that many lasting steps, oldest first; those found damaged on the way are set aside."""
        found: list[int] = []
        for step in reversed(self.steps()):
            if len(found) == count:
                break
            try:
                self._verify(step)
            except CheckpointDamaged as error:
                self._set_aside(error)
            else:
                found += [] if self._facts(step)["interim"] else [step]
        return found[::-1]

    def _set_aside(self, error: CheckpointDamaged) -> None:
        names = (f"{DAMAGED}{error.step}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        aside = next(self.directory / name for name in names if not (self.directory / name).exists())
        self._report(
            f"Checkpoint {error.step} is damaged: {error.file.relative_to(self.directory)} {error.problem}. It is "
            f"set aside as {aside}."
        )
        try:
            (self.directory / str(error.step)).rename(aside)
        except OSError as failure:
            raise UserError(f"{error} It cannot be set aside: {failure.strerror}.") from error

    def _ranked(self) -> list[tuple[float, int]]:
        """(value, step) of the steps that can be best; a better value is a larger one."""
        ranked = []
        for step in self.steps():
            try:
                facts = self._facts(step)
            except CheckpointDamaged:
                if step in self.steps():
                    raise
                continue  # just removed by the writer
            value = float(facts["metrics"].get(self._best_metric, math.nan))
            if math.isfinite(value) and not facts["interim"]:
                ranked.append((self._best_sign * value, step))
        return ranked

    def _facts(self, step: int) -> dict[str, Any]:
        return read_json(self._folder(step), "step.json", step)

    def _folder(self, step: int) -> Path:
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"There is no checkpoint of step {step} in {self.directory}. Steps there: {known}.")
        return self.directory / str(step)

    def _verify(self, step: int) -> None:
        verify(self._folder(step), step)
