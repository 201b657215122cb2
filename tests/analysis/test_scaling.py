"""The formulas of docs/scaling.md are what XLA compiles, on eight pretended devices."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json
from transformer_jax.analysis.scaling import Rows, measure, model, predict
from transformer_jax.sharding import MeshConfig, make_mesh
results, rows = {}, Rows(16, 32, 64)
for name, (mesh, changes) in {
    "data": ((8, 1, 1), {}),
    "fsdp": ((1, 8, 1), {}),
    "fsdp kept": ((1, 8, 1), {"remat": "none"}),
    "tensor": ((2, 1, 4), {}),
    "all": ((2, 2, 2), {}),
}.items():
    c = model("tiny", **changes)
    cost, found = predict(c, *mesh, rows), measure(c, make_mesh(MeshConfig(*mesh)), rows)
    results[name] = {
        "formula": {"state": cost.state, "gradients": cost.gradients, "sent": cost.sent, "kept": cost.kept},
        "found": {"state": found.state, "gradients": found.gradients, "sent": found.sent()},
        "kinds": sorted({(one.kind, one.axes) for one in found.collectives if one.sent}),
        "temporary": found.temporary,
    }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    environment = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["data", "fsdp", "fsdp kept", "tensor", "all"])
def test_formula_and_compiler_agree(results: dict[str, Any], case: str) -> None:
    formula, found = results[case]["formula"], results[case]["found"]
    assert found["state"] == pytest.approx(formula["state"], rel=1e-4)
    assert found["gradients"] == pytest.approx(formula["gradients"], rel=2e-3)
    wanted = {axis: sent for axis, sent in formula["sent"].items() if sent}
    assert wanted
    for axis, sent in wanted.items():
        assert found["sent"][axis] == pytest.approx(sent, rel=0.01), axis
    rest = sum(sent for axis, sent in found["sent"].items() if axis not in wanted)
    assert rest < 0.001 * sum(wanted.values())
    if case != "fsdp kept":  # what is kept besides the gathered weights
        assert results[case]["temporary"] == pytest.approx(formula["kept"], rel=0.3)


def test_only_what_one_would_write_is_sent(results: dict[str, Any]) -> None:
    """Nothing is moved because the compiler did not know better: no all-to-all, no permutation, no gathered rows."""
    kinds = {case: {tuple(kind) for kind in results[case]["kinds"]} for case in results}
    assert kinds["data"] == {("all-reduce", "data")}
    assert kinds["fsdp"] == {("all-gather", "fsdp"), ("reduce-scatter", "fsdp"), ("all-reduce", "fsdp")}
    assert kinds["tensor"] == {("all-reduce", "data"), ("all-reduce", "tensor")}
    assert {kind for kind, _ in kinds["all"]} == {"all-gather", "reduce-scatter", "all-reduce"}


def test_weights_gathered_twice_need_not_be_kept(results: dict[str, Any]) -> None:
    assert results["fsdp"]["temporary"] < results["fsdp kept"]["temporary"]
    assert np.greater(results["fsdp"]["found"]["sent"]["fsdp"], results["fsdp kept"]["found"]["sent"]["fsdp"])
