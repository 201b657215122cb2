"""runs.py lists, shows, compares and follows runs, whatever state they are in."""

import csv
import dataclasses
import io
import json
import re
import shutil

import pytest

from experiments.runs import USES
from tests.experiments.commands import command
from transformer_jax.analysis import runs, runs_report
from transformer_jax.errors import UserError
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.metric_writer import MetricWriter

pytestmark = pytest.mark.xdist_group("study")
KEY = "config.optimizer.peak_learning_rate"


def test_list_says_what_differs(study):
    done = command("runs", "list", study, "--format=json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["path"] for row in rows] == [str(study / n) for n in ("new/new-1", "new/new-2", "old-1", "old-2")]
    assert [(row[KEY], row["config.seed"]) for row in rows] == [(0.02, 1), (0.02, 2), (0.01, 1), (0.01, 2)]
    assert [row["state"] for row in rows] == ["finished", "stopped", "stopped", "stopped"]
    assert rows[0]["metric"] == "bleu"
    assert rows[0]["best"] == max(
        row["value"]
        for line in (study / "old-1" / "metrics.jsonl").read_text().splitlines()
        if (row := json.loads(line))["name"] == "bleu"
    )
    table = command("runs", "list", study).stdout
    assert "old-2" in table
    assert "peak_learning_rate=0.01 seed=2" in table
    parsed = list(csv.DictReader(io.StringIO(command("runs", "list", study, "--format=csv").stdout)))
    assert [row[KEY] for row in parsed] == ["0.02", "0.02", "0.01", "0.01"]


def test_other_kinds_of_runs_do_not_fill_the_list(study):
    old, new = (runs.summarise_run(study / path) for path in ("old-1", "new/new-1"))
    text = {"family": "language_model", "dataset.name": "text_files", "model.num_layers": 4, "seed": 1}
    other = dataclasses.replace(old, config=text)
    assert runs.differing_keys([old, new, other]) == [
        ["dataset.name", "family", *runs.varying_keys([old, new])],
        ["dataset.name", "family", *runs.varying_keys([old, new])],
        ["dataset.name", "family"],
    ]
    assert len(runs.varying_keys([old, new, other])) > 50
    assert "seed" in runs.differing_keys([other, dataclasses.replace(other, config={**text, "seed": 2})])[0]


def test_a_run_that_is_being_written_is_running_and_can_still_be_started(study, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(study / "old-1", path)
    with RunDirectory.create_or_resume(path, RunDirectory.open(path).config, devices=()):
        assert runs.summarise_run(path).state == "running"
    assert runs.summarise_run(path).state == "stopped"
    RunDirectory.create_or_resume(path, RunDirectory.open(path).config, devices=()).close()


def test_a_broken_run_does_not_hide_the_others(study, tmp_path):
    for name in ("good", "bad", "strange"):
        shutil.copytree(study / "old-1", tmp_path / name)
    (tmp_path / "bad" / "config.json").write_text("{")
    (tmp_path / "strange" / "config.json").write_text('{"training": {}}')
    states = {path.name: runs.summarise_run(path).state for path in runs.find_runs(tmp_path)}
    assert states["good"] == "stopped"
    assert states["bad"].startswith("unreadable: ")
    assert states["strange"].startswith("unreadable: ")
    assert "unreadable" in command("runs", "list", tmp_path).stdout


def test_patience_ends_a_run(study, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(study / "old-1", path)
    config = RunDirectory.open(path).config
    config["evaluation"]["patience"] = 1
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").unlink()
    with MetricWriter(path) as writer:
        writer.write(40, "validation", {"bleu": 9.0})
    assert runs.summarise_run(path).state == "stopped"
    with MetricWriter(path) as writer:
        writer.write(80, "validation", {"bleu": 8.0})
    assert runs.summarise_run(path).state == "finished"
    assert runs.summarise_run(path).best == ("bleu", 9.0, 40)


def test_sorting(study):
    summaries = [runs.summarise_run(path) for path in runs.find_runs(study)]
    for by in ("path", "best", "test", "started", "time"):
        assert len(runs_report.sort_summaries(summaries, by)) == 4
    best = [one.best[1] for one in runs_report.sort_summaries(summaries, "best")]
    assert best == sorted(best, reverse=True)


def test_names_are_as_short_as_can_be():
    keys = ["model.dtype", "optimizer.name", "name", "evaluation.every_steps", "checkpoints.every_steps"]
    assert list(runs.short_names(keys).values()) == [
        "dtype",
        "optimizer.name",
        "name",
        "evaluation.every_steps",
        "checkpoints.every_steps",
    ]


def test_show_diff_and_tail(study):
    shown = command("runs", "show", study / "new" / "new-1").stdout
    assert "finished, step 160 of 160" in shown
    assert "optimizer.peak_learning_rate = 0.02" in shown
    assert "checkpoints   160" in shown
    different = command("runs", "diff", study / "old-1", study / "new" / "new-1").stdout
    assert "optimizer.peak_learning_rate: 0.01 -> 0.02" in different
    assert re.search(r"state +stopped +finished\n", different)
    ended = command("runs", "tail", study / "old-1", "--lines=2", "--follow").stdout.splitlines()
    assert len(ended) == 2
    assert ended[-1].startswith("step 160  validation  loss ")


def test_tail_follows_until_the_writer_lets_go(study, tmp_path, monkeypatch):
    path = tmp_path / "run"
    shutil.copytree(study / "old-1", path)
    writer = RunDirectory.create_or_resume(path, RunDirectory.open(path).config, devices=())

    def wait(_):
        with MetricWriter(path) as metrics:
            metrics.write(170, "train", {"loss": 0.25})
        writer.close()

    monkeypatch.setattr(runs_report, "sleep", wait)
    lines = list(runs_report.tail(path, 1, follow=True))
    assert [line.split("  ")[0] for line in lines] == ["step 160", "step 170"]


def test_wrong_words_are_explained(tmp_path):
    for words in (["list", "a", "b"], ["diff", "a"], ["frobnicate"]):
        done = command("runs", *words)
        assert done.returncode == 2
        assert all(use in done.stderr for _, use in USES.values())
    done = command("runs", "show", tmp_path, "--format=json")
    assert (done.returncode, "--format is an option of list" in done.stderr) == (2, True)
    with pytest.raises(UserError, match="There are no runs in"):
        runs.find_runs(tmp_path)
