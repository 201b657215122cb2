"""A language model on eight devices is that on one: losses, beams, and where its arrays lie."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.families.language_model_meshes import MESHES


def test_eight_devices_equal_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.families.language_model_meshes"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    one = results["one"]
    assert one["losses"][0] - one["losses"][4] > 1
    assert len({str(best[0]) for best in one["continued"]}) > 2
    for name, (_, fsdp, tensor) in MESHES.items():
        np.testing.assert_allclose(results[name]["losses"], one["losses"], rtol=1e-5)
        assert results[name]["continued"] == one["continued"], name
        assert results[name]["held of a query kernel"] == [16 // fsdp, 4 // tensor, 4], name


pytestmark = pytest.mark.xdist_group("language_model_meshes")
