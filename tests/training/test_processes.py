"""Several processes are one: batches, losses, checkpoints and translations of 2 and 4 are those of one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.experiments.commands import train_words
from tests.made_files import CHECKOUT, timeless_metrics, tiny_config, write_pairs
from transformer_jax.errors import RESUME
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.loop import Outcome, train
from transformer_jax.training.metric_writer import read_metrics
from transformer_jax.training.saved_steps import SavedSteps

pytestmark = pytest.mark.xdist_group("processes")
CASES = {"2": (2, "-1,1,1"), "4": (4, "1,2,2")}
"""How many processes of one device each, and their mesh: all rows apart; parameters and rows in parts."""


def start(count: int, *words: object) -> list[subprocess.Popen[str]]:
    """A Python command as so many processes of one job."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "TRANSFORMER_JAX_PREPARED": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    members = []
    for index in range(count):
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
        members.append(
            subprocess.Popen(
                [sys.executable, *map(str, words)],
                env=environment,
                cwd=CHECKOUT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return members


def run_processes(count: int, mesh: str, data: Path, run: Path) -> list[dict[str, Any]]:
    members = start(count, "-m", "tests.training.processes", data, run, mesh)
    outputs = [member.communicate(timeout=600) for member in members]
    for member, (_, errors) in zip(members, outputs, strict=True):
        assert member.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    run = tmp_path_factory.mktemp("runs") / "alone"
    (report,) = run_processes(1, "1,1,1", data, run)
    return report, run


@pytest.mark.parametrize("case", CASES)
def test_several_processes_are_one(case: str, data: Path, alone: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    count, mesh = CASES[case]
    run = tmp_path / "run"
    reports, (one, reference) = run_processes(count, mesh, data, run), alone
    for report in reports:
        assert (report["step"], report["processes"]) == (8, count)
        assert report["own rows"] == [rows // 2 for rows in one["own rows"]]  # both meshes cut rows in two
        assert report["batches"] == one["batches"]
        assert report["translations"] == one["translations"]
        np.testing.assert_allclose(report["scores"], one["scores"], rtol=1e-4)
        assert report["main says"] == "from 0"
        assert report["errors"] == [f"process {count - 1}: nothing works on {count - 1}"] + ["nothing works on 0"] * 2

    found, wanted = timeless_metrics(run), timeless_metrics(reference)
    assert [{**row, "value": 0} for row in found] == [{**row, "value": 0} for row in wanted]  # each line once
    np.testing.assert_allclose([row["value"] for row in found], [row["value"] for row in wanted], rtol=1e-4)
    losses = [[row["value"] for row in rows if row["name"] == "loss"] for rows in (found, wanted)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    with Checkpoints(run / "checkpoints") as saved, Checkpoints(reference / "checkpoints") as expected:
        assert saved.steps() == expected.steps() == [4, 8]
        found_array, wanted_array = (
            checkpoints.restore_parameters(8)["decoder"]["layer_0"]["feed_forward"]["input"]["kernel"]
            for checkpoints in (saved, expected)
        )
        np.testing.assert_allclose(found_array, wanted_array, rtol=1e-3, atol=1e-5)
    assert len(json.loads((run / "environment.json").read_text())) == 1


TRAIN = """
import runpy, sys
from transformer_jax import distributed
distributed.HEARTBEAT_SECONDS = 600  # a busy machine is no dead one
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ENDLESS = {
    "training__total_steps": 100_000,
    "training__log_every_steps": 1,
    "checkpoints__every_steps": 1000,
    "evaluation__every_steps": 100_000,
    "evaluation__decode": "none",
    "evaluation__metric": "loss",
    "batching__num_shapes": 1,
}


def last_step(run: Path) -> int:
    return max((row["step"] for row in read_metrics(run / "metrics.jsonl")), default=0)


def test_a_signal_to_one_stops_all_at_one_step_and_a_dead_one_ends_the_others(data: Path, tmp_path: Path) -> None:
    """The train command in two processes; the second start continues where the first one stopped."""
    run = tmp_path / "run"

    def members_at(step: int) -> list[subprocess.Popen[str]]:
        members = start(2, "-c", TRAIN, CHECKOUT / "experiments" / "train.py", *train_words(data, run, **ENDLESS))
        deadline = time.monotonic() + 600
        while not (run / "metrics.jsonl").exists() or last_step(run) < step:
            assert all(member.poll() is None for member in members), [member.communicate() for member in members]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return members

    first = members_at(3)
    first[1].send_signal(signal.SIGTERM)
    outputs = [member.communicate(timeout=600) for member in first]
    assert [member.returncode for member in first] == [RESUME, RESUME], outputs
    (stopped,) = SavedSteps(run / "checkpoints").steps()
    assert f"interrupted and saved at step {stopped}\n" in outputs[0][0]
    assert last_step(run) == stopped

    second = members_at(stopped + 3)
    second[1].kill()
    _, errors = second[0].communicate(timeout=600)
    second[1].communicate()
    assert second[0].returncode == RESUME, errors
    assert f"continuing     from step {stopped} of" in errors
    assert "process 0: another process of this run died" in errors
    assert "Run the same command again in all processes" in errors
    assert SavedSteps(run / "checkpoints").steps() == [stopped]

    alone = tiny_config(data, **{**ENDLESS, "training__total_steps": stopped + 2})
    assert train(alone, run) == Outcome(stopped + 2, finished=True)  # one process takes up what two have saved
