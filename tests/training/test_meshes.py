"""Eight devices equal one: losses, translations, every optimizer, and where every array lies."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.xdist_group("meshes")

MESHES = ["data 8", "fsdp 8", "tensor 4 data 2", "2 2 2"]
OPTIMIZERS = ["muon", "adamw", "schedule_free_adamw"]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.meshes"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "XLA_FLAGS": quick, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rematerialization" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=1e-5)
    assert abs(found["losses"][-1] - found["losses"][3]) > 1
    assert found["evaluated"] == pytest.approx(wanted["evaluated"], rel=1e-5)
    assert found["translations"] == wanted["translations"]
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=1e-3)


@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_and_translations_are_those_of_one_device(results: dict[str, Any], mesh: str) -> None:
    assert_same(results[mesh], results["one"])
    assert len(results["one"]["translations"]) == 20
    assert len({str(best[0]) for best in results["one"]["translations"]}) > 3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_and_rematerialisation(results: dict[str, Any], optimizer: str) -> None:
    """Scanned and unrolled, accumulated, grouped heads: see the cases in `meshes`."""
    assert_same(results[f"{optimizer} 2 2 2"], results[f"{optimizer} one"])


@pytest.mark.parametrize("mesh", MESHES)
def test_parameters_moments_and_averages_lie_by_the_rules(results: dict[str, Any], mesh: str) -> None:
    wanted = {
        "decoder/layer_0/feed_forward/output/kernel": ["tensor", "fsdp"],
        "decoder/layer_0/feed_forward/output/bias": ["fsdp"],
        "decoder/layer_0/feed_forward_norm/scale": ["None"],
        "shared_embedding/embedding": ["tensor", "fsdp"],
    }
    specs = results[mesh]["specs"]
    for path, spec in wanted.items():
        found = {key: value for key, value in specs.items() if key.endswith(path)}
        assert len(found) == 4, found  # the parameter, two moments, the average
        assert all(value == spec for value in found.values()), found


def test_a_device_of_eight_holds_an_eighth(results: dict[str, Any]) -> None:
    """Measured on live arrays, norms and counters included; already when they are made."""
    one, eight = results["one"], results["fsdp 8"]
    assert one["bytes held"] == [one["bytes in all"]]
    assert len(eight["bytes held"]) == 8
    assert max(eight["bytes held"]) < 0.17 * one["bytes in all"]
    assert min(eight["bytes held"]) >= 0.125 * one["bytes in all"]
    assert eight["bytes to be born"] < 0.5 * one["bytes to be born"]
