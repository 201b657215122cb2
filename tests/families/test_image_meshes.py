"""The models of images on eight devices are those on one: losses, drawn tokens, and where their arrays lie."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.families.image_meshes import MESHES

WHOLE = {
    "discrete_vae": ([8, 8], (2, 1)),
    "text_to_image": ([16, 4, 4], (1, 2, None)),
    "image_classification": ([16, 4, 4], (1, 2, None)),
}
"""Of each task a kernel, and over which axis of the mesh each of its own lies."""


def test_eight_devices_equal_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.families.image_meshes"],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for task, (shape, axes) in WHOLE.items():
        one = results[task]["one"]
        assert one["losses"][0] > one["losses"][-1], task
        for mesh, sizes in MESHES.items():
            found = results[task][mesh]
            np.testing.assert_allclose(found["losses"], one["losses"], rtol=1e-4, err_msg=f"{task} {mesh}")
            held = [size if axis is None else size // sizes[axis] for size, axis in zip(shape, axes, strict=True)]
            assert found["held"] == held, (task, mesh)
            assert found.get("drawn") == one.get("drawn"), mesh


pytestmark = pytest.mark.xdist_group("image_meshes")
