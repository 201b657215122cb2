"""Locks between workers. The system frees them when their holder dies, however it dies: no lock outlives a process.

The folder of a study must be seen by all of its workers, and so must the locks in it. Network file systems can be
mounted so that locks hold on each machine alone; `Presence` finds that out before a trial is trained twice.
"""

import contextlib
import fcntl
import os
import platform
import threading
import time
import uuid
from pathlib import Path
from typing import Self

from optuna.storages.journal import JournalFileOpenLock

from transformer_jax.errors import UserError

BEAT_SECONDS = 5.0


class FileLock:
    """An exclusive lock on a file, held until release() or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    @classmethod
    def take(cls, path: Path) -> Self:
        """Waits for the lock.

        Raises: UserError where the file system has no locks.
        """
        lock = cls._open(path, 0)
        assert lock is not None
        return lock

    @classmethod
    def take_if_free(cls, path: Path) -> Self | None:
        """The lock, or None if another holds it. Raises as `take`."""
        return cls._open(path, fcntl.LOCK_NB)

    @classmethod
    def _open(cls, path: Path, how: int) -> Self | None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            raise UserError(
                f"{path} cannot be locked: {error.strerror}. A study needs a file system with locks (flock), which all "
                "of its workers see: mount this one with them, or choose another folder."
            ) from error
        return cls(path, descriptor)

    def release(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class JournalLock(JournalFileOpenLock):
    """The lock of Optuna's journal. Optuna's own is a file, which a killed holder leaves behind for 30 seconds."""

    def __init__(self, journal: Path) -> None:
        self._path = journal.with_name(f".{journal.name}.lock")
        self._held: FileLock | None = None

    def acquire(self) -> bool:
        self._held = FileLock.take(self._path)
        return True

    def release(self) -> None:
        assert self._held is not None
        self._held.release()


class Presence:
    """A worker's sign of life: a file that it holds locked and writes to every BEAT_SECONDS.

    A file that beats, and yet can be locked by another, shows that locks do not reach from machine to machine.
    """

    def __init__(self, folder: Path, machine: str = "") -> None:
        self._folder, self._machine = folder, machine or this_machine()
        self._path = folder / f"{self._machine}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self._end = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._lock = FileLock.take(self._path)
        self._beats.start()
        try:
            self._check_others()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._beats.join()
        self._path.unlink(missing_ok=True)
        self._lock.release()

    def _beat(self) -> None:
        count = 0
        while not self._end.is_set():
            count += 1
            os.pwrite(self._lock.descriptor, b"%d\n" % count, 0)
            os.fsync(self._lock.descriptor)
            self._end.wait(BEAT_SECONDS)

    def _check_others(self) -> None:
        """Removes the files of dead workers; takes a few beats where a worker of another machine looks dead.

        Raises: UserError if one that looks dead is not.
        """
        dead = []
        for path in self._folder.iterdir():
            if path != self._path and (lock := FileLock.take_if_free(path)):
                dead.append((path, lock))
        with contextlib.ExitStack() as locks:
            for _, lock in dead:
                locks.enter_context(lock)
            foreign = [path for path, _ in dead if not path.name.startswith(f"{self._machine}-")]
            before = {path: _content(path) for path in foreign}
            if foreign:
                time.sleep(3 * BEAT_SECONDS)
            for path in foreign:
                if _content(path) != before[path]:
                    raise UserError(
                        f"Locks in {self._folder} do not reach from machine to machine: the worker "
                        f"{path.name} is alive, and yet its lock was free here. Mount the file system with shared "
                        "locks (flock), or run all workers of this study on one machine."
                    )
            for path, _ in dead:
                path.unlink(missing_ok=True)


def this_machine() -> str:
    """The machine, told apart from others of its name by what its kernel drew at boot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()}-{boot.read_text()[:8]}" if boot.exists() else platform.node()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()  # opening anew: network file systems cache what stat says
    except FileNotFoundError:
        return b""
