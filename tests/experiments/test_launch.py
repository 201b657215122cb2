"""The launcher with submitit's local executor: the same command, several processes, and back after preemption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.launch import Command, submit
from tests.made_files import CHECKOUT
from transformer_jax.errors import UserError

PROGRAM = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
mine = folder / os.environ.get("JAX_PROCESS_ID", "0")
starts = len(list(folder.glob(f"{mine.name}.start*")))
(folder / f"{mine.name}.start{starts}").write_text(" ".join(sys.argv[1:]))
def save(*_):
    (folder / f"{mine.name}.saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
(folder / f"{mine.name}.pid").write_text(str(os.getpid()))
while starts == 0 and sys.argv[2] == "wait":
    time.sleep(0.05)
(folder / f"{mine.name}.done").write_text(os.environ.get("JAX_NUM_PROCESSES", "1"))
sys.exit(3 if sys.argv[2] == "fail" else 0)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return str(file)


def wait_for(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def test_a_job_runs_the_command_as_typed_in_every_task(program, tmp_path):
    job = submit([program, str(tmp_path), "go"], "local", tmp_path / "jobs", tasks_per_node=2, timeout_min=5)
    assert job.results() == [None, None]
    assert {file.read_text() for file in tmp_path.glob("*.start0")} == {f"{tmp_path} go"}
    assert [(tmp_path / f"{i}.done").read_text() for i in (0, 1)] == ["2", "2"]


def test_a_stopped_command_saves_and_is_queued_again(program, tmp_path):
    """Slurm tells every process of a preempted job to stop: the command saves and says so by its status."""
    job = submit([program, str(tmp_path), "wait"], "local", tmp_path / "jobs", timeout_min=5)
    wait_for(tmp_path / "0.pid")
    os.kill(int((tmp_path / "0.pid").read_text()), signal.SIGTERM)
    assert job.result() is None
    assert (tmp_path / "0.saved").exists()
    assert len(list(tmp_path.glob("0.start*"))) == 2


def test_a_failing_command_fails_the_job(program, tmp_path):
    job = submit([program, str(tmp_path), "fail"], "local", tmp_path / "jobs", timeout_min=5)
    assert "ended with status 3" in str(job.exception())
    assert len(list(tmp_path.glob("0.start*"))) == 1


def test_the_notice_of_the_scheduler_makes_the_command_save(program, tmp_path):
    """What submitit's signal handler calls, while the command runs: it returns when the command has saved."""
    code = (
        "import signal, sys; from experiments.launch import Command; "
        f"command = Command([sys.executable, {program!r}, {str(tmp_path)!r}, 'wait'], '.'); "
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(len(command.checkpoint().function.words))); command()"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        wait_for(tmp_path / "0.pid")
        process.send_signal(signal.SIGUSR2)
        assert process.wait(60) == 4
    assert (tmp_path / "0.saved").exists()


def test_what_cannot_be_submitted_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.py is no file"):
        submit(["nowhere.py"], "local", tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"--nodes=2: there is no Slurm here"):
        submit([__file__], None, tmp_path, nodes=2)
    assert Command(["a"], ".").checkpoint().function.words == ["a"]
