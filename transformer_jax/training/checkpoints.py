"""Checkpoints: saved in the background, whole or not at all, and verified by digest before they are trusted.

    checkpoints/STEP/state/         the train state, written by Orbax, which is used here alone
    checkpoints/STEP/step.json      the data position, and the metrics that say which checkpoints are best
    checkpoints/STEP/digests.json   the SHA-256 of every other file
    checkpoints/damaged-STEP/       one that was found not to be what was written

Several processes write into the same folder, which all of them see; the first one seals, names and removes.
"""

import concurrent.futures
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from transformer_jax.distributed import from_main, is_main, together
from transformer_jax.errors import UserError
from transformer_jax.training.saved_steps import SavedSteps

State = TypeVar("State")
EVALUATED = "evaluated"
"""Part of a saved state that no training state has: the parameters that were evaluated, where they are others."""
AVERAGED = "averaged/"
"""Before a step, among what is known of a checkpoint: one of those that EVALUATED is the mean of."""
BATCH = "batch"
"""Another: the batch of a step that is to be reproduced."""
WRITING = (OSError, ValueError, jax.errors.JaxRuntimeError)
"""What Orbax and its storage raise when a file cannot be written, among other things: see `_reason`."""


class Checkpoints(SavedSteps):
    """The checkpoints of a run: `SavedSteps`, with train states in them. Saving and restoring take all processes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def best_step(self) -> int | None:
        """The step with the best best_metric, the later of equals; None if none has a finite one.

        Raises: CheckpointDamaged for one whose metric cannot be trusted.
        """
        self.wait()
        return max(self._ranked(), default=(0.0, None))[1]

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics given to save; floats, finite or not."""
        self.wait()
        return {name: float(value) for name, value in self._facts(step)["metrics"].items()}

    def averaged(self, step: int) -> list[int]:
        """The steps that the parameters evaluated at this step are the mean of; empty where they are no such mean."""
        return sorted(int(name.removeprefix(AVERAGED)) for name in self.metrics(step) if name.startswith(AVERAGED))

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
        for path, leaf in _leaves(state).items():
            if not isinstance(leaf, (jax.Array, np.ndarray)):
                raise TypeError(f"{path} in the state is a {type(leaf).__name__}, an array is wanted")
        facts = {
            "position": {name: int(value) for name, value in position.items()},
            "metrics": {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in metrics.items()},
            "interim": interim,
        }
        if jax.process_count() == 1:
            # Orbax would cut each array into a part for every device that holds it, which costs more than writing.
            state = jax.tree.map(np.array, jax.device_get(state))
        from_main(lambda: self._begin(step, facts))
        try:
            self._orbax.save(self._unfinished(step) / "state", args=ocp.args.PyTreeSave(state))
        except WRITING as error:
            self._fail(step, error)
        self._pending = self._background.submit(self._finish, step)

    def _begin(self, step: int, facts: Mapping[str, Any]) -> None:
        try:
            super()._begin(step, facts)
        except OSError as error:
            self._fail(step, error)

    def _finish(self, step: int) -> None:
        """In the background."""
        try:
            self._orbax.wait_until_finished()
            if is_main():
                self._seal(step)
        except WRITING as error:
            self._fail(step, error)

    def _fail(self, step: int, error: Exception) -> NoReturn:
        reason = _reason(error)
        if reason is None:
            raise error
        raise UserError(
            f"Checkpoint {step} cannot be written to {self.directory}: {reason}. Make room or change the "
            "permissions and run the same command again: it continues from the last checkpoint."
        ) from error

    def wait(self) -> None:
        """Returns when nothing is being written, by any process; raises what went wrong in the background."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            together(pending.result)

    def restore(self, step: int, abstract_state: State) -> tuple[State, dict[str, int]]:
        """Returns the state, bit for bit as saved, and the data position.

        Args:
          abstract_state: the state wanted: a pytree of arrays or ShapeDtypeStructs. Their shardings say where
            the arrays go, whatever devices wrote them; without one, to this process's first device.

        Raises:
          CheckpointDamaged: a file is missing or is not what was written.
          UserError: there is no such step, or its arrays are not those of abstract_state; names what differs.
        """
        self.wait()
        from_main(lambda: self._verify(step))
        return self._restore(step, abstract_state)

    def restore_latest(self, abstract_state: State) -> tuple[int, State, dict[str, int]] | None:
        """Restores the newest good checkpoint as (step, state, position); None if there never was one.

        Damaged ones that are newer are reported and renamed to damaged-STEP.

        Raises:
          UserError: there are checkpoints, and none is good; or the good one is not of this config.
        """
        self.wait()
        step = from_main(self._newest_good)
        return None if step is None else (step, *self._restore(step, abstract_state))

    def discard_after(self, step: int) -> None:
        """Removes the checkpoints newer than step."""
        self.wait()
        from_main(lambda: self._remove_after(step))

    def discard_interim(self) -> None:
        """Removes the checkpoints newer than the last one that was saved to stay."""
        self.wait()
        from_main(lambda: self._remove_after(max(self._whole(1), default=-1)))

    def good(self, count: int) -> list[int]:
        """The newest that many of the steps that were saved to stay and are whole; sets aside those that are not."""
        self.wait()
        return from_main(lambda: self._whole(count))

    def parts(self, step: int) -> list[str]:
        """What `restore_parameters` can be asked for at the top."""
        return [name for name, part in self._stored(self._folder(step)).items() if part is not None]

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
        self.wait()
        from_main(lambda: self._verify(step))
        folder = self._folder(step)
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

    def _restore(self, step: int, abstract_state: State) -> tuple[State, dict[str, int]]:
        """Of a step that has been verified."""
        folder = self._folder(step)
        stored = _leaves(self._stored(folder))
        differences = _compare(
            {k: v for k, v in stored.items() if k.split("/")[0] not in (EVALUATED, BATCH)}, _leaves(abstract_state)
        )
        if differences:
            more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise UserError(
                f"Checkpoint {folder} does not match this config's model and optimizer; use the config that "
                "it was trained with. Different:\n  " + "\n  ".join(differences[:5]) + more
            )
        return self._read(folder, abstract_state), self._facts(step)["position"]

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


def _reason(error: Exception) -> str | None:
    """What the operating system had against a file; None if the error is something else."""
    if isinstance(error, TimeoutError):
        return "it took too long, or the clock of this machine was put forward meanwhile"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else None


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
