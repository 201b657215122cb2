"""Encoders on eight devices are those on one: losses, predictions, and where arrays lie."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.families.encoder_meshes import MESHES


def test_eight_devices_equal_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.families.encoder_meshes"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    one = results["one"]
    assert one["masked"][0] != pytest.approx(one["masked"][2], rel=1e-3)
    for name, (_, fsdp, tensor) in MESHES.items():
        for what in ("masked", "labelled", "log_probs"):
            np.testing.assert_allclose(results[name][what], one[what], rtol=2e-5, atol=1e-5, err_msg=f"{name} {what}")
        assert results[name]["held of a query kernel"] == [16 // fsdp, 4 // tensor, 4], name


pytestmark = pytest.mark.xdist_group("encoder_meshes")
