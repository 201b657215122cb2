"""Several processes are one: batches, losses, checkpoints and translations of 2 and 4 are those of one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made_files import CHECKOUT, timeless_metrics, write_pairs
from transformer_jax.training.checkpoints import Checkpoints

pytestmark = pytest.mark.xdist_group("processes")
CASES = {"2": (2, "-1,1,1"), "4": (4, "1,2,2")}
"""How many processes of one device each, and their mesh: all rows apart; parameters and rows in parts."""


def run_processes(count: int, mesh: str, data: Path, run: Path, devices: int = 1) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
    }
    members = []
    for index in range(count):
        if count > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(index),
            }
        words = [sys.executable, "-m", "tests.training.processes", data, run, mesh]
        members.append(
            subprocess.Popen(
                words, env=environment, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
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
