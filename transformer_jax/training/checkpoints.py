"""Checkpoints: saved in the background, whole or not at all, and verified by digest before they are trusted.

    checkpoints/STEP/state/         the train state, written by Orbax, which is used here alone
    checkpoints/STEP/step.json      the data position, and the metrics that say which checkpoints are best
    checkpoints/STEP/digests.json   the SHA-256 of every other file

A save is made in .unfinished-STEP and renamed once its digests are written, so a folder named STEP is whole.
"""

import concurrent.futures
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from transformer_jax.distributed import from_main, is_main
from transformer_jax.errors import UserError

State = TypeVar("State")
SEALING_SECONDS = 1800  # most that the other processes wait for the main one to compute digests
UNFINISHED, REMOVED = ".unfinished-", ".removed-"
EVALUATED = "evaluated"
"""Part of a saved state that no training state has: the parameters that were evaluated, where they are others."""


class CheckpointDamaged(UserError):
    """A checkpoint is not as it was written. `step` says which, `file` what is wrong in it."""

    def __init__(self, step: int, file: Path, problem: str) -> None:
        super().__init__(
            f"Checkpoint {step} is damaged: {file} {problem}. Move the checkpoint away to use another one."
        )
        self.step = step
        self.file = file


class Checkpoints:
    """The checkpoints of a run. A reader needs only the directory; one writer at a time may save.

    Args:
      directory: where the folders STEP are; made at the first save.
      keep_latest: the newest that many stay.
      keep_best: so do that many with the best value of best_metric. NaN is never best.
      best_mode: "max" if more is better, "min" if less is.
      best_metric: a key of save's metrics.
    """

    def __init__(
        self,
        directory: str | Path,
        keep_latest: int = 1,
        keep_best: int = 0,
        best_mode: Literal["max", "min"] = "max",
        best_metric: str | None = None,
    ) -> None:
        if keep_latest < 1 or keep_best < 0 or (keep_best and not best_metric):
            raise UserError(
                f"keep_latest={keep_latest}, keep_best={keep_best}, best_metric={best_metric!r}: keep at "
                "least the latest one, and name the metric where the best are kept."
            )
        self.directory = Path(directory).absolute()
        self._keep_latest, self._keep_best = keep_latest, keep_best
        self._best_sign, self._best_metric = {"max": 1, "min": -1}[best_mode], best_metric
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def steps(self) -> list[int]:
        """The finished checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdecimal())

    def lasting(self) -> list[int]:
        """Those of `steps` that were not saved as interim."""
        return [step for step in self.steps() if not self._facts(step).get("interim")]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step with the best best_metric, the later of equals; None if none has a finite one."""
        self.wait()
        return max(self._ranked(), default=(0.0, None))[1]

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics given to save; floats, finite or not."""
        self.wait()
        return {name: float(value) for name, value in self._facts(step)["metrics"].items()}

    def save(
        self,
        step: int,
        state: Any,
        position: Mapping[str, int],
        metrics: Mapping[str, float],
        interim: bool = False,
    ) -> None:
        """Copies the state from its devices and returns; writes it in the background.

        Waits first for the save before it. The state's buffers may be donated or changed right after.

        Args:
          step: must be newer than all saved ones.
          state: pytree of jax or numpy arrays. Python numbers are refused: they would come back as arrays.
          position: the data position, as the pipeline gives it.
          metrics: what is known of this step; may be empty.
          interim: saved off the schedule, by an interruption: it is never best, pushes out no other one, and
            goes when a newer one is there. So an interrupted run keeps what an uninterrupted one does.

        Raises:
          UserError: this save or the one before it cannot be written.
        """
        self.wait()
        latest = self.latest_step()
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not newer than the saved step {latest}")
        for path, leaf in _leaves(state).items():
            if not isinstance(leaf, (jax.Array, np.ndarray)):
                raise TypeError(f"{path} in the state is a {type(leaf).__name__}, an array is wanted")
        folder = self.directory / f"{UNFINISHED}{step}"
        facts = {
            "position": {name: int(value) for name, value in position.items()},
            "metrics": {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in metrics.items()},
            "interim": interim,
        }
        try:
            if is_main():
                self._remove_leftovers()
                folder.mkdir(parents=True)
                (folder / "step.json").write_text(json.dumps(facts, sort_keys=True))
            self._orbax.save(folder / "state", args=ocp.args.PyTreeSave(state))
        except OSError as error:
            raise self._unwritable(step, error) from error
        self._pending = self._background.submit(self._finish, step, folder)

    def wait(self) -> None:
        """Returns when nothing is being written; raises what went wrong in the background."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def restore(self, step: int, abstract_state: State) -> tuple[State, dict[str, int]]:
        """Returns the state, bit for bit as saved, and the data position.

        Args:
          abstract_state: the state wanted: a pytree of arrays or ShapeDtypeStructs. Their shardings say where
            the arrays go, whatever devices wrote them; without one, to this process's first device.

        Raises:
          CheckpointDamaged: a file is missing or is not what was written.
          UserError: there is no such step, or its arrays are not those of abstract_state; names what differs.
        """
        folder = self._verified(step)
        stored = {k: v for k, v in _leaves(self._stored(folder)).items() if not k.startswith(f"{EVALUATED}/")}
        differences = _compare(stored, _leaves(abstract_state))
        if differences:
            more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise UserError(
                f"Checkpoint {folder} does not match this config's model and optimizer; use the config that "
                "it was trained with. Different:\n  " + "\n  ".join(differences[:5]) + more
            )
        return self._read(folder, abstract_state), self._facts(step)["position"]

    def restore_latest(self, abstract_state: State) -> tuple[int, State, dict[str, int]] | None:
        """Restores the newest checkpoint as (step, state, position); None if there is none at all."""
        step = self.latest_step()
        return None if step is None else (step, *self.restore(step, abstract_state))

    def restore_parameters(self, step: int, path: str = "params", like: Any = None) -> dict[str, Any]:
        """Returns one part of the state as nested dicts of arrays, on this process's first device or as `like` lies.

        Nothing need be known of the state: names and shapes come from the checkpoint. Only that part is read,
        though all files are verified.

        Args:
          path: where in the state, with slashes: "params", "ema_params", "params/encoder".
          like: a tree of arrays or ShapeDtypeStructs, whose shardings say where the arrays go.

        Raises:
          CheckpointDamaged, UserError: as restore; or nothing is at path.
        """
        folder = self._verified(step)
        node = self._stored(folder)
        wanted: dict[str, Any] = {}
        inner = wanted
        parts = path.split("/")
        for i, part in enumerate(parts):
            if not isinstance(node, dict) or node.get(part) is None:
                known = ", ".join(k for k, v in node.items() if v is not None) if isinstance(node, dict) else "none"
                place = "/".join(parts[:i]) or "its top"
                raise UserError(f"Checkpoint {folder} has no {path}: at {place} there is {known}.")
            node = node[part]
            inner[part] = {} if i < len(parts) - 1 else node if like is None else like
            inner = inner[part]
        restored = self._read(folder, wanted)
        for part in parts:
            restored = restored[part]
        return restored

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._orbax.close()

    def _finish(self, step: int, folder: Path) -> None:
        """Background: seals a save once Orbax has written it, and removes what need not be kept."""
        try:
            self._orbax.wait_until_finished()
            try:
                if is_main():
                    (folder / "digests.json").write_text(json.dumps(_digests(folder), sort_keys=True))
                    folder.rename(self.directory / str(step))
                    self._remove_old()
            finally:
                # No process goes on before the checkpoint is there for all.
                sealed = ocp.multihost.get_barrier_sync_fn()
                sealed(key=f"sealed {folder}", timeout_ms=1000 * SEALING_SECONDS)
            if not (self.directory / str(step)).is_dir():
                raise OSError("the main process could not finish it")
        except OSError as error:
            raise self._unwritable(step, error) from error

    def _remove_old(self) -> None:
        keep = {*self.lasting()[-self._keep_latest :], *self.steps()[-1:]}
        if self._keep_best:
            keep |= {step for _, step in sorted(self._ranked())[-self._keep_best :]}
        for step in set(self.steps()) - keep:
            gone = self.directory / f"{REMOVED}{step}"
            (self.directory / str(step)).rename(gone)  # at once: a reader never sees half a checkpoint
            shutil.rmtree(gone)

    def _remove_leftovers(self) -> None:
        for pattern in (f"{UNFINISHED}*", f"{REMOVED}*"):
            for folder in self.directory.glob(pattern):
                shutil.rmtree(folder)

    def _ranked(self) -> list[tuple[float, int]]:
        ranked = []
        for step in self.steps():
            try:
                facts = self._facts(step)
                value = float(facts["metrics"].get(self._best_metric, math.nan))
            except CheckpointDamaged:  # or just removed by the writer: restoring it says so, best it is not
                continue
            if math.isfinite(value) and not facts.get("interim"):
                ranked.append((self._best_sign * value, step))
        return ranked

    def _facts(self, step: int) -> dict[str, Any]:
        file = self._folder(step) / "step.json"
        try:
            return json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointDamaged(step, file, f"cannot be read ({error})") from error

    def _folder(self, step: int) -> Path:
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"There is no checkpoint of step {step} in {self.directory}. Steps there: {known}.")
        return self.directory / str(step)

    def _verified(self, step: int) -> Path:
        self.wait()
        folder = self._folder(step)
        problem = from_main(lambda: _problem(folder))  # one process reads it all, not each
        if problem is not None:
            raise CheckpointDamaged(step, folder / problem[0], problem[1])
        return folder

    def _stored(self, folder: Path) -> dict[str, Any]:
        """The saved tree, with shape and dtype at its leaves."""
        return self._orbax.metadata(folder / "state").item_metadata.tree

    def _read(self, folder: Path, wanted: Any) -> Any:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def target(leaf: Any) -> jax.ShapeDtypeStruct:
            sharding = getattr(leaf, "sharding", None)
            return jax.ShapeDtypeStruct(
                leaf.shape,
                leaf.dtype,
                sharding=sharding if isinstance(sharding, jax.sharding.Sharding) else here,
            )

        targets = jax.tree.map(target, wanted)
        arguments = ocp.checkpoint_utils.construct_restore_args(targets)
        return self._orbax.restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(targets, restore_args=arguments, partial_restore=True),
        )

    def _unwritable(self, step: int, error: OSError) -> UserError:
        return UserError(
            f"Checkpoint {step} cannot be written to {self.directory}: {error.strerror or error}. Make room "
            "or change the permissions and run the same command again: it continues from the last checkpoint."
        )


def _problem(folder: Path) -> tuple[str, str] | None:
    """The first file that is not as it was written, and what is wrong with it."""
    record = "digests.json"
    try:
        expected = json.loads((folder / record).read_text())
    except FileNotFoundError:
        return record, "is missing"
    except (OSError, ValueError) as error:
        return record, f"cannot be read ({error})"
    found = _digests(folder)
    for name in sorted({*expected, *found}):
        if name not in found:
            return name, "is missing"
        if name not in expected:
            return name, "was not there when it was saved"
        if found[name] != expected[name]:
            return name, "is not what was written"
    return None


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path, of all files but the record itself."""
    digests = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != folder / "digests.json":
            with file.open("rb") as stream:
                digests[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def _leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _compare(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One line for each array that is not the same in both; parameters first."""

    def show(leaf: Any) -> str:
        return f"{np.dtype(leaf.dtype).name}[{', '.join(map(str, leaf.shape))}]" if leaf is not None else "absent"

    lines = []
    for path in sorted({*stored, *wanted}, key=lambda path: (not path.startswith("params"), path)):
        there, here = show(stored.get(path)), show(wanted.get(path))
        if there != here:
            lines.append(f"{path}: {there} in the checkpoint, {here} wanted")
    return lines
