"""A dry run tells what training would do, refuses what training refuses, and writes nothing."""

import jax
import pytest

from tests.made_files import tiny_config, write_pairs
from transformer_jax.analysis import plan as plans
from transformer_jax.analysis.plan_report import format_plan
from transformer_jax.analysis.run import load_run
from transformer_jax.errors import UserError
from transformer_jax.training.loop import train

pytestmark = pytest.mark.xdist_group("plan")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


def test_it_agrees_with_the_run_it_foretells(data, tmp_path):
    config = tiny_config(data, training__ema_decay=0.9, training__total_steps=40)
    run = tmp_path / "run"
    plan = plans.make_plan(config, run)
    assert not run.exists()
    assert plan.workdir == f"{run}: a new run"
    assert plan.remaining_steps == 40
    assert train(config, run).finished
    params = load_run(run).params
    assert plan.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert plan.state_bytes["parameters"] == plan.state_bytes["moving average"] == 4 * plan.parameters
    assert 8 * plan.parameters <= plan.state_bytes["optimizer"] < 8 * plan.parameters + 64
    assert plan.step_seconds > 0
    assert all(shape.xla_memory > plan.device_bytes for shape in plan.shapes)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    again = plans.make_plan(config, run)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert again.remaining_steps == 0
    assert "continued from step 40" in again.workdir
    with pytest.raises(UserError, match=r"model\.d_ff: 32 -> 64"):
        plans.make_plan(tiny_config(data, training__ema_decay=0.9, training__total_steps=40, model__d_ff=64), run)


def test_what_does_not_fit_is_not_timed(data, monkeypatch):
    monkeypatch.setattr(plans, "_memory_of_a_device", lambda: 1000)
    plan = plans.make_plan(tiny_config(data), None)
    assert plan.step_seconds is None
    text = format_plan(plan)
    assert "not estimated: a step needs" in text
    for title in ("CONFIG", "DATA", "PARAMETERS", "PLACEMENT", "STEP", "MEMORY", "TIME"):
        assert f"{title}\n" in text
    assert "model.d_model = 16" in text
    assert "whole on every device" in text


def test_for_a_target_nothing_is_run(data, monkeypatch):
    """A CPU device for one that is not here: whatever were to run on it would find it, so running is forbidden."""
    monkeypatch.setattr(plans, "target_devices", lambda target: jax.devices()[:1])
    monkeypatch.setattr(plans, "_time_steps", None)
    monkeypatch.setattr(plans, "place_batch", None)
    plan = plans.make_plan(tiny_config(data), None, "h100")
    assert plan.device_room == 80 * 2**30
    assert plan.mesh == {"data": 1, "fsdp": 1, "tensor": 1}
    assert sum(shape.share for shape in plan.shapes) == pytest.approx(1.0)
    text = format_plan(plan)
    assert "not estimated: compiled for devices that are not here" in text
    assert "81,920.0 MiB" in text


def test_a_folder_with_something_else_is_refused(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no run"):
        plans.make_plan(tiny_config(data), tmp_path)
