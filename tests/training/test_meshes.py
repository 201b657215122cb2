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
OPTIMIZERS = ["muon", "schedule_free_adamw"]


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.meshes"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rematerialization" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_same_losses(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=1e-5)
    assert len(found["losses"]) == 20
    assert abs(found["losses"][-1] - found["losses"][3]) > 1


@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_and_translations_are_those_of_one_device(results: dict[str, Any], mesh: str) -> None:
    """AdamW, unrolled; rematerialised and accumulated on some meshes."""
    found, wanted = results[mesh], results["one"]
    assert_same_losses(found, wanted)
    assert found["evaluated"] == pytest.approx(wanted["evaluated"], rel=1e-5)
    assert found["translations"] == wanted["translations"]
    np.testing.assert_allclose(found["scores"], wanted["scores"], rtol=1e-3)
    assert len(wanted["translations"]) == 20
    assert len({str(best[0]) for best in wanted["translations"]}) > 3


@pytest.mark.parametrize("attention", ["none", "luong", "bahdanau"])
def test_recurrent_networks_too(results: dict[str, Any], attention: str) -> None:
    found, wanted = results[f"{attention} 2 2 2"], results[f"{attention} one"]
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=1e-5)
    assert found["translations"] == wanted["translations"]
    specs = found["specs"]
    assert specs["params/decoder/layer_0/cell/recurrent/kernel"] == ["fsdp", "None", "None"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_and_rematerialisation(results: dict[str, Any], optimizer: str) -> None:
    """Scanned; attention of jax.nn, split as a fused kernel is; grouped heads, gated units, relative positions, tables
    apart: see the cases in `meshes`."""
    assert_same_losses(results[f"{optimizer} 2 2 2"], results[f"{optimizer} one"])


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
    """Measured on live arrays, norms and counters included, which are whole everywhere; and already in the making."""
    one, eight = results["memory"]["one"], results["memory"]["fsdp 8"]
    assert one["held"] == [one["in all"]]
    assert len(eight["held"]) == 8
    assert 0.125 * one["in all"] <= min(eight["held"]) <= max(eight["held"]) < 0.14 * one["in all"]
    assert eight["to be born"] < 0.5 * one["to be born"]
