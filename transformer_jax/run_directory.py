"""A run is a directory: what lies where in it, what made it, and who may write to it."""

import datetime
import difflib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from transformer_jax.config import differences
from transformer_jax.errors import UserError

# Keys, or sections ending in a dot, that a resumed run may change: none of them alters a step that was taken, but for
# the rounding of other devices and other portions.
SAFE_TO_CHANGE: tuple[str, ...] = (
    "training.log_every_steps",
    "checkpoints.",
    "evaluation.",
    "decoding.",
    "guard.",
    "mesh.",
    "tracking.",
    "training.accumulation",
    "task.loss_chunk",
    "model.remat",
    "dataset.path",  # of this and the next two, the text itself is compared when the run continues
    "dataset.distilled",
    "dataset.back_translated",
)

LOCK = ".lock"
AVERAGED = "averaged.json"
"""In a run that is a mean of checkpoints: of which."""


class RunDirectory:
    """The paths of a run, and its config.

    Made by create_or_resume for writing, which holds a lock until close() or the end of the process, or by
    open for reading, which needs no lock and changes nothing.
    """

    def __init__(self, path: Path, lock: IO[str] | None = None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        config: dict[str, Any],
        devices: Sequence[str] | None = None,
        safe: Sequence[str] = (),
    ) -> Self:
        """Starts a run in an empty or new directory, or continues the run of the same config that is there.

        Args:
          config: the resolved config, data only (dicts, lists, strings, numbers, None).
          safe: keys that may differ from those of the run that is there, besides SAFE_TO_CHANGE.
          devices: what environment.json lists; default the kinds of jax.devices().

        Raises:
          UserError: the path is a file, not writable, not empty and no run, holds a run of another config, or
            is in use by another live process.
        """
        path = Path(path).expanduser().absolute()  # a shell leaves the ~ of --workdir=~/runs as it is
        text = _json_text(config)
        lock = _lock(_make_writable(path))
        try:
            run = cls(path, lock)
            if run._is_run():
                changed = run.check_same_experiment(json.loads(text), safe)
            else:
                _refuse_other_contents(path)
                changed = []
            if changed or not run._is_run():
                write_text(path / "config.json", text)
            run._record_environment(changed, devices)
        except BaseException:
            lock.close()
            raise
        return run

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Opens an existing run for reading.

        Raises:
          UserError: there is no run at path; the message names runs that are near.
        """
        run = cls(Path(path).expanduser().absolute())
        if not run._is_run():
            raise UserError(f"{path} is no run: it has no config.json. {_runs_near(run.path)}")
        return run

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config the run was started with, or last resumed with."""
        return _read_json(self.path / "config.json")

    @property
    def environments(self) -> list[dict[str, Any]]:
        """One entry for the start and each resume: command, time, versions, devices, git commit."""
        file = self.path / "environment.json"
        return _read_json(file) if file.exists() else []

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def scores(self) -> Path:
        return self.path / "scores"

    @property
    def translations(self) -> Path:
        return self.path / "translations"

    @property
    def replay(self) -> Path:
        return self.path / "replay"

    def inside(self, name: str) -> Path:
        """The path of an output with a name from a config or a command line.

        Raises: UserError when it would lie outside the run directory, also by way of a link.
        """
        path = (self.path / name).resolve()
        if not path.is_relative_to(self.path.resolve()) or path == self.path.resolve():
            raise UserError(f"{name!r} lies outside the run directory {self.path}; give a name within it.")
        return path

    @contextmanager
    def new_tokenizer(self) -> Iterator[Path]:
        """A folder to write into, which is `tokenizer` once all is written: not half of it, whenever a process dies.

        Raises: UserError when it cannot be written.
        """
        unfinished = self.path / ".tokenizer.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir()
            yield unfinished
            unfinished.rename(self.tokenizer)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise UserError(
                f"{self.tokenizer} cannot be written: {error.strerror or error}. Make room or change the permissions, "
                "and run the same command again."
            ) from error

    def pin(self, name: str, value: str) -> None:
        """Records what must never change in this run, in pinned.json; from then on it is compared.

        Raises: UserError when it is not what it was.
        """
        file = self.path / "pinned.json"
        pinned = _read_json(file) if file.exists() else {}
        if name not in pinned:
            write_json(file, {**pinned, name: value})
        elif pinned[name] != value:
            raise UserError(
                f"The {name} of {self.path} changed since it was started: its digest was {pinned[name][:12]}, now it "
                f"is {value[:12]}. Put back what was there, or use another --workdir."
            )

    def is_held(self) -> bool:
        """Whether the directory at the path is still the one that this process took."""
        try:
            return self._lock is not None and os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / LOCK))
        except OSError:
            return False

    def check_held(self) -> None:
        """Raises: UserError when the directory that this process took has been removed, moved or replaced."""
        if self._lock is not None and not self.is_held():
            raise UserError(
                f"The run directory {self.path} was removed or replaced while this run was using it. Nothing more "
                "is written; put it back and run the same command again, or choose another --workdir."
            )

    def holder(self) -> str | None:
        """The process that is writing to the run, as "process 7 on host"; None if none is."""
        try:
            with (self.path / LOCK).open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return file.read().strip() or "another process"
        except OSError:
            pass  # no lock was ever taken, or it is not for us to read
        return None

    def close(self) -> None:
        """Lets another process continue the run."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_run(self) -> bool:
        return (self.path / "config.json").is_file()

    def check_same_experiment(self, config: dict[str, Any], safe: Sequence[str] = ()) -> list[str]:
        """The differences between the run's config and this one, if a resumed run may have them.

        Args: safe: keys that may differ besides SAFE_TO_CHANGE.
        Raises: UserError when another differs; names what does.
        """
        changes = differences(self.config, config)
        unsafe = [line for line in changes if not _is_safe(line.split(":")[0], (*SAFE_TO_CHANGE, *safe))]
        if unsafe:
            more = f"\n  and {len(unsafe) - 10} more" if len(unsafe) > 10 else ""
            raise UserError(
                f"{self.path} holds a run of another config. Use another --workdir, or that run's config."
                " Different (there -> here):\n  " + "\n  ".join(unsafe[:10]) + more
            )
        return changes

    def _record_environment(self, changed: list[str], devices: Sequence[str] | None) -> None:
        if devices is None:
            import jax  # slow, and a directory must be checked fast

            devices = [f"{device.platform} {device.id}: {device.device_kind}" for device in jax.devices()]
        entry = {
            "command": shlex.join([sys.executable, *sys.argv]),
            "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "config_changes": changed,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": list(devices),
            "git": git_state(Path(__file__).resolve().parents[1]),
            "packages": dict(sorted((d.metadata["Name"], d.version) for d in importlib.metadata.distributions())),
        }
        write_json(self.path / "environment.json", [*self.environments, entry])


def write_json(path: Path, data: Any) -> None:
    """Writes data as sorted, indented JSON; a reader sees the old file or the new one, never half of it.

    Raises:
      UserError: data has something that JSON cannot hold, or the file cannot be written.
    """
    write_text(path, _json_text(data))


def write_text(path: Path, text: str) -> None:
    """Writes a file in one go, as write_json does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def git_state(checkout: Path) -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None where there is no git or `checkout` is not its root."""

    def git(*words: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True, timeout=20
        )
        return result.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return None  # the package is installed somewhere inside another project
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _is_safe(key: str, allowed: Sequence[str]) -> bool:
    return any(key == safe or (safe.endswith(".") and key.startswith(safe)) for safe in allowed)


def _make_writable(path: Path) -> Path:
    for parent in [path, *path.parents]:
        # Path.exists raises where a folder above may not be entered.
        if os.path.exists(parent) and not os.path.isdir(parent):
            raise UserError(f"The run directory {path} cannot be: {parent} is a file. Choose another --workdir.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The run directory {path} cannot be made: {error.strerror}. Choose another --workdir."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"The run directory {path} is not writable. Change its permissions or choose another --workdir."
        )
    return path


def _lock(path: Path) -> IO[str]:
    """Takes the directory for this process; the system frees it when the process dies, however it dies."""
    try:
        file = (path / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The run directory {path} is not writable: {error.strerror}. Choose another --workdir."
        ) from error
    try:
        _take(file)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{path} is in use by {holder}. Wait for it, stop it, or choose another --workdir.") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}\n")
    file.flush()
    return file


def _take(file: IO[str]) -> None:
    """Locks the file; tries again for a moment, in which somebody may only be looking (`RunDirectory.holder`)."""
    for _ in range(4):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _refuse_other_contents(path: Path) -> None:
    others = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK and not entry.name.endswith(".tmp"))
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise UserError(f"{path} is not empty and holds no run (it has {shown}). Choose another --workdir.")


def _runs_near(path: Path) -> str:
    for parent in path.parents:
        if (parent / "config.json").is_file():
            return f"The run is {parent}."
    folder = next(parent for parent in [path, *path.parents] if parent.is_dir())
    runs = [str(file.parent) for depth in ("*", "*/*") for file in folder.glob(f"{depth}/config.json")]
    if not runs:
        return f"There are no runs in {folder}."
    near = difflib.get_close_matches(str(path), runs, n=1)
    start = f"Did you mean {near[0]}? " if near else ""
    return f"{start}Runs in {folder}: {', '.join(os.path.relpath(run, folder) for run in sorted(runs)[:10])}."


def _json_text(data: Any) -> str:
    try:
        return json.dumps(data, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"This cannot be stored as JSON, data only is wanted: {error}.") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Restore it from a copy, or remove the run.") from error
