"""The train command: real processes, real signals, and the same run in the end."""

import json
import re
import signal

import pytest

from tests.experiments.commands import train, train_and_signal
from tests.made_files import FULL, assert_same_run, write_pairs

pytestmark = pytest.mark.xdist_group("train")

# Long enough that a signal arrives before the end.
CHANGES = {**FULL, "training__total_steps": 100, "decoding__max_target_length": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    done = train(data, run, **CHANGES)
    assert done.returncode == 0, done.stderr
    assert "finished at step 100" in done.stdout
    return run


def test_a_run_is_complete_and_says_so_again(data, whole):
    names = {entry.name for entry in whole.iterdir()}
    assert {"config.json", "environment.json", "tokenizer", "checkpoints", "metrics.jsonl"} <= names
    shapes = len(json.loads((whole / "environment.json").read_text())[0]["devices"])
    assert shapes == 2
    again = train(data, whole, **CHANGES)
    assert again.returncode == 0
    assert "finished at step 100" in again.stdout


def test_sigterm_saves_and_the_same_command_continues_bit_for_bit(data, whole, tmp_path):
    run = tmp_path / "run"
    status, output = train_and_signal(signal.SIGTERM, 42, data, run, **CHANGES)
    assert status == 75, output
    assert 42 <= int(re.search(r"interrupted and saved at step (\d+)", output)[1]) < 100
    done = train(data, run, **CHANGES)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr + done.stdout
    assert_same_run(run, whole)


def test_sigkill_loses_only_what_came_after_the_last_checkpoint(data, whole, tmp_path):
    run = tmp_path / "run"
    status, output = train_and_signal(signal.SIGKILL, 49, data, run, **CHANGES)
    assert status == -signal.SIGKILL, output
    assert sorted(int(entry.name) for entry in (run / "checkpoints").iterdir() if entry.name.isdecimal())[0] == 20
    done = train(data, run, **CHANGES)
    assert done.returncode == 0, done.stderr
    assert_same_run(run, whole)
