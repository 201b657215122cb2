"""The short form of `make torture`: a few kills of one process, and the tables it prints."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.survival import cost, tables
from experiments.survival.damages import Damaged
from experiments.survival.kills import Kill, Tortured
from tests.experiments.commands import environment
from tests.made_files import CHECKOUT, tiny_config, write_pairs

pytestmark = pytest.mark.xdist_group("torture")


def torture(folder, *words):
    return subprocess.run(
        [sys.executable, CHECKOUT / "experiments" / "torture.py", f"--workdir={folder}", *words],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
        check=False,
    )


def test_a_few_kills_are_survived(tmp_path):
    done = torture(tmp_path / "torture", "--kills=3", "--processes=1", "--nodamage", "--parallel=1", "--seed=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 process(es): 1 runs, 3 kills; 1 of 1 ended bit-identical to the untouched one" in done.stdout
    assert done.stdout.count("ended with (") == 3
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.tex").touch()
    refused = torture(other)
    assert refused.returncode == 2
    assert "is not empty and no earlier torture" in refused.stderr
    assert (other / "thesis.tex").exists()


def test_the_tables_tell_what_was_not_survived():
    kills = [
        Kill(signal.SIGKILL, "saving", (1,), (75, -9), 3.25),
        Kill(signal.SIGTERM, "training", (0, 1), (75, 75), 0.5),
    ]
    runs = [Tortured(Path("a"), 2, kills, same=True), Tortured(Path("b"), 2, kills[:1], False, "40/params")]
    text = tables.of_kills(runs)
    assert "2          SIGKILL  one of them  saving         2        3.2 s  -9 75 (2)" in text
    assert "2          SIGTERM  all          training       1        0.5 s  75 (1)" in text
    assert "2 process(es): 2 runs, 3 kills; 1 of 2 ended bit-identical" in text
    assert "b: NOT the same: 40/params" in text
    damaged = [Damaged("step.json", "bit flip", True, True, True), Damaged("state/d", "bit flip", False, True, True)]
    text = tables.of_damages(damaged)
    assert "bit flip          2                  1          2                    2" in text
    assert "NOT survived: bit flip of state/d" in text


def test_the_cost_is_measured_in_pairs(tmp_path):
    data = write_pairs(tmp_path)
    result = cost.measure(tiny_config(data, evaluation__decode="none", evaluation__metric="loss"), rounds=2, steps=3)
    assert len(result["guard_share"]["rounds"]) == len(result["save_seconds"]["rounds"]) == 2
    between = result["every_steps"] * result["step_seconds"]
    assert result["save_share"] == pytest.approx(result["save_seconds"]["median"] / between)
    assert result["share"] == pytest.approx(result["guard_share"]["median"] + result["save_share"])
    assert f"one every {result['every_steps']} steps" in cost.format_result(result)
