"""Sharing a machine, and several: devices by lock, signs of life, nothing left behind by the dead."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from experiments.sweeping import devices, locks
from experiments.sweeping.locks import FileLock, JournalLock, Presence
from transformer_jax.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from experiments.sweeping.locks import JournalLock
JournalLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of four cores with locks of its own, on which each call of take_devices is a process of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    chosen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: chosen.append(cores))
    monkeypatch.setattr(devices, "has_accelerator", lambda: False)
    monkeypatch.setenv(devices.HELD, "another process")
    return chosen


def take(cores, monkeypatch):
    monkeypatch.setenv(devices.HELD, "another process")
    return devices.take_devices(cores)


def test_cores_are_shared_out_and_then_shared(machine, monkeypatch):
    assert take(2, monkeypatch) == "CPU cores 0, 1"
    assert devices.take_devices(2) == ""  # the same process, started anew by prepare_cpu
    assert take(1, monkeypatch) == "CPU cores 2"
    assert "of which 1 shared" in take(2, monkeypatch)
    assert machine[:2] == [{0, 1}, {2}]
    assert 3 in machine[2]
    assert len(machine[2]) == 2


def test_each_gpu_has_one_worker(machine, monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, GPU-aaaa\n1, GPU-bbbb\n2, GPU-cccc'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(devices, "has_accelerator", lambda: True)
    for given, wanted in (("2,GPU-bb", "GPU-cccc"), ("2,GPU-bb", "GPU-bbbb"), ("0", "GPU-aaaa")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert take(4, monkeypatch) == f"GPU {wanted}"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == wanted
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(UserError, match=r"Each of the 3 GPUs here .* has a worker"):
        take(4, monkeypatch)
    assert not machine  # cores are left alone


def test_the_journal_is_free_when_its_writer_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "journal.log"], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    begin = time.monotonic()
    lock = JournalLock(tmp_path / "journal.log")
    assert lock.acquire()
    lock.release()
    assert time.monotonic() - begin < 5


def test_a_live_worker_whose_lock_is_free_here_shows_that_locks_do_not_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    with Presence(tmp_path, machine="far") as far:
        with Presence(tmp_path, machine="near"):
            pass  # its lock is held: locks reach
        # As on a machine that does not see it.
        monkeypatch.setattr(
            FileLock, "take_if_free", classmethod(lambda cls, path: cls(path, os.open(path, os.O_RDWR)))
        )
        with pytest.raises(UserError, match=r"do not reach from machine to machine: the worker far-"):
            Presence(tmp_path, machine="near").__enter__()
        assert [path.name for path in tmp_path.iterdir()] == [far._path.name]
    assert not list(tmp_path.iterdir())


def test_what_dead_workers_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.05)
    (tmp_path / "far-17-abc").write_text("3\n")
    (tmp_path / f"{locks.this_machine()}-18-def").write_text("3\n")
    with Presence(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own._path]
