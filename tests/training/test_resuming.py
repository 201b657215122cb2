"""What a run that continues may have changed, and what it meets on the way."""

import shutil
import sys
import time

import numpy as np
import pytest

from tests.experiments import commands
from tests.made_files import FULL, assert_same_run, tiny_config, write_pairs
from transformer_jax.analysis.run import load_run
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training import loop
from transformer_jax.training.loop import Outcome, train
from transformer_jax.training.metric_writer import read_metrics
from transformer_jax.training.resuming import safe_changes

pytestmark = pytest.mark.xdist_group("resuming")
PLAIN = {**FULL, "evaluation__decode": "none", "evaluation__metric": "loss"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    assert train(tiny_config(data, **PLAIN), run) == Outcome(60, finished=True)
    return run


def test_more_steps_where_the_rates_of_those_taken_stay(data, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    assert train(tiny_config(data, **PLAIN, training__total_steps=80), run) == Outcome(80, finished=True)
    longer = tmp_path / "longer"
    assert train(tiny_config(data, **PLAIN, training__total_steps=80), longer).finished
    assert_same_run(run, longer)


@pytest.mark.parametrize(
    ("schedule", "taken", "total", "safe"),
    [
        ("inverse_square_root", 60, 80, True),
        ("constant", 60, 30, True),
        ("linear", 60, 80, False),
        ("cosine", 60, 80, False),
        ("warmup_stable_decay", 40, 80, True),  # the decay begins at 48
        ("warmup_stable_decay", 60, 80, False),
    ],
)
def test_more_steps_depend_on_the_schedule(data, tmp_path, schedule, taken, total, safe):
    before = tiny_config(data, optimizer__schedule=schedule, optimizer__decay_fraction=0.2)
    RunDirectory.create_or_resume(tmp_path, plain(before), devices=[]).close()
    (tmp_path / "checkpoints" / str(taken)).mkdir(parents=True)
    now = tiny_config(data, optimizer__schedule=schedule, optimizer__decay_fraction=0.2, training__total_steps=total)
    assert safe_changes(tmp_path, parse_config(now)) == (("training.total_steps",) if safe else ())


def test_a_key_that_a_run_is_older_than_may_have_its_default(data, tmp_path):
    config = plain(tiny_config(data))
    older = {**config, "dataset": {key: value for key, value in config["dataset"].items() if key != "bidirectional"}}
    RunDirectory.create_or_resume(tmp_path, older, devices=[]).close()
    safe = safe_changes(tmp_path, parse_config(config))
    assert safe == ("dataset.bidirectional",)
    RunDirectory.create_or_resume(tmp_path, config, devices=[], safe=safe).close()
    assert RunDirectory.open(tmp_path).config == config
    RunDirectory.create_or_resume(tmp_path, older, devices=[], safe=safe).close()
    other = tiny_config(data, dataset__bidirectional=True)
    assert safe_changes(tmp_path, parse_config(other)) == ()
    moved = tiny_config(data, dataset__distilled="elsewhere.txt")
    RunDirectory.create_or_resume(tmp_path, plain(moved), devices=[], safe=safe).close()
    assert RunDirectory.open(tmp_path).config == plain(moved)


def test_unsafe_changes_are_refused_by_name(data, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    changes = {"optimizer__b1": 0.8, "optimizer__schedule": "linear", "training__total_steps": 80, "seed": 7}
    with pytest.raises(UserError) as error:
        train(tiny_config(data, **{**PLAIN, **changes}), run)
    for line in ("optimizer.b1: 0.9 -> 0.8", "training.total_steps: 60 -> 80", "seed: 1 -> 7"):
        assert line in str(error.value)


def test_other_data_under_the_same_name_is_refused_and_the_same_data_elsewhere_is_not(data, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    moved = shutil.copytree(data, tmp_path / "moved")
    assert train(tiny_config(moved, **PLAIN), run).finished
    with (moved / "train.en").open("a") as source, (moved / "train.de").open("a") as target:
        source.write("one\n")
        target.write("eins\n")
    with pytest.raises(UserError, match=r"The data of .*run changed since it was started"):
        train(tiny_config(moved, **PLAIN), run)


def test_another_mesh_and_number_of_devices_continue_with_the_same_numbers(data, whole, tmp_path):
    run = tmp_path / "run"
    assert train(tiny_config(data, **PLAIN, training__total_steps=20), run).finished  # with this process's devices
    done = commands.train(data, run, **PLAIN, mesh__data=1, mesh__fsdp=-1)  # on two
    assert done.returncode == 0, done.stderr
    assert "mesh {'data': 1, 'fsdp': 2, 'tensor': 1}" in done.stderr
    rows = lambda path: read_metrics(path / "metrics.jsonl")
    found, wanted = ([row["value"] for row in rows(path) if row["name"] == "loss"] for path in (run, whole))
    assert len(found) == len(wanted) > 10
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_a_damaged_checkpoint_in_a_run_costs_steps_and_nothing_else(data, whole, tmp_path, capfd):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "checkpoints" / "60" / "digests.json").unlink()
    assert train(tiny_config(data, **PLAIN), run) == Outcome(60, finished=True)
    assert "Checkpoint 60 is damaged: 60/digests.json is missing" in capfd.readouterr().err
    assert (run / "checkpoints" / "damaged-60").is_dir()
    assert_same_run(run, whole)


def test_no_good_checkpoint_is_an_error_never_a_start_from_scratch(data, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for step in (20, 40, 60):
        (run / "checkpoints" / str(step) / "step.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError, match=r"None of the checkpoints .* is good: damaged-20, damaged-40, damaged-60"):
            train(tiny_config(data, **PLAIN), run)


DAY, YEAR = 86_400, 3.2e7


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_a_clock_that_is_changed_changes_nothing(data, whole, tmp_path, monkeypatch, jump):
    step, now = loop.Trainer._step, time.time

    def change(trainer):
        step(trainer)
        if trainer.number == 33:
            trainer.checkpoints.wait()
            monkeypatch.setattr(time, "time", lambda: now() + jump)

    monkeypatch.setattr(loop.Trainer, "_step", change)
    assert train(tiny_config(data, **PLAIN), tmp_path).finished
    assert_same_run(tmp_path, whole)


def test_a_clock_put_forward_amidst_a_save_is_told_and_the_run_continues(data, whole, tmp_path, monkeypatch):
    """Orbax reads the clock to tell how long it has waited: here a day more at each look."""
    looks, now = [], time.time

    def jumping():
        looks.append(1)
        return now() + DAY * len(looks)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        with pytest.raises(UserError, match=r"Checkpoint \d+ cannot be written .* the clock of this machine was put"):
            train(tiny_config(data, **PLAIN), tmp_path)
    assert train(tiny_config(data, **PLAIN), tmp_path).finished
    assert_same_run(tmp_path, whole)


def test_a_run_directory_deleted_in_mid_run_is_told_and_stays_deleted(data, tmp_path, monkeypatch):
    run, step = tmp_path / "run", loop.Trainer._step

    def delete(trainer):
        step(trainer)
        if trainer.number == 33:
            trainer.checkpoints.wait()
            shutil.rmtree(run)

    monkeypatch.setattr(loop.Trainer, "_step", delete)
    with pytest.raises(UserError, match=r"run was removed or replaced while this run was using it"):
        train(tiny_config(data, **PLAIN), run)
    assert not run.exists()


HOSTILE = "import pathlib; pathlib.Path({mark!r}).touch()\n"


def test_nothing_in_a_run_directory_is_executed(data, whole, tmp_path):
    """Every way in which reading files becomes running them is watched."""
    run, mark = shutil.copytree(whole, tmp_path / "run"), tmp_path / "executed"
    for folder in (run, run / "checkpoints", run / "tokenizer"):
        for name in ("__init__.py", "config.py", "sitecustomize.py", "jax.py"):
            (folder / name).write_text(HOSTILE.format(mark=str(mark)))
    seen: list[str] = []
    watching = [True]

    def hook(event, arguments):
        if not watching[0]:
            return
        if event == "pickle.find_class":
            seen.append(f"{event} {arguments}")
        if event == "import" and arguments[1] and str(run) in str(arguments[1]):
            seen.append(f"{event} {arguments}")
        if event == "exec" and str(run) in getattr(arguments[0], "co_filename", ""):
            seen.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    try:
        loaded = load_run(run)
        loaded.translate(["one two"])
        assert train(tiny_config(data, **PLAIN, training__total_steps=62), run).finished
    finally:
        watching[0] = False
    assert not seen
    assert not mark.exists()
