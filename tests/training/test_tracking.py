"""Weights & Biases and MLflow get what metrics.jsonl gets, in one entry a run; both offline."""

import importlib.util
import json
import struct
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.made_files import tiny_config, write_pairs
from transformer_jax.errors import UserError
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training import tracking
from transformer_jax.training.loop import train
from transformer_jax.training.metric_writer import MetricWriter, read_metrics
from transformer_jax.training.tracking import TrackingConfig, open_trackers


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None, reason=f"needs pip install 'transformer_jax[{name}]'"
    )


class Recorder:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.logged: list = []
        self.figures: list = []
        self.closed: bool | None = None

    def log(self, step, metrics):
        self.logged.append((step, dict(metrics)))

    def figure(self, step, name, path):
        self.figures.append((step, name, path.is_file()))

    def close(self, failed):
        self.closed = failed


def test_trackers_get_what_the_file_gets(tmp_path):
    recorder = Recorder()
    with MetricWriter(tmp_path, trackers=[recorder]) as writer:
        writer.write(3, "train", {"loss": 2.5, "nll": float("inf")})
        writer.write(4, "validation", {"bleu": 1.0})
        writer.figure(4, "attention", Figure())
    assert recorder.logged == [(3, {"train/loss": 2.5, "train/nll": float("inf")}), (4, {"validation/bleu": 1.0})]
    assert recorder.figures == [(4, "attention", True)]
    assert recorder.closed is False


def test_trackers_hear_of_a_failure(tmp_path):
    recorder = Recorder()
    with pytest.raises(RuntimeError), MetricWriter(tmp_path, trackers=[recorder]):
        raise RuntimeError
    assert recorder.closed is True


def test_a_missing_package_is_named_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    config = tiny_config(write_pairs(tmp_path / "data"), tracking__mlflow="x")
    with pytest.raises(UserError, match=r"transformer_jax\[mlflow\]"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_opened_unless_asked_for(tmp_path):
    assert open_trackers(TrackingConfig("", ""), tmp_path, {}) == []


@needs("mlflow")
def test_mlflow_has_the_metrics_of_a_run_and_of_its_continuation(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = {"model": {"d_model": 16}, "seed": 1}
    for number in (1, 2):  # a start, and a start after an interruption
        trackers = open_trackers(TrackingConfig("", "trial"), tmp_path / "run", experiment)
        with MetricWriter(tmp_path / "run", trackers=trackers) as writer:
            writer.write(number, "train", {"loss": 1.0 / number})
    client = MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("trial").experiment_id])
    assert [run.info.status for run in found] == ["FINISHED"]
    assert found[0].data.params == {"model.d_model": "16", "seed": "1"}
    history = client.get_metric_history(found[0].info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 1.0), (2, 0.5)]


@needs("mlflow")
def test_an_mlflow_that_refuses_is_told_and_leaves_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'old-store'}")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    config = tiny_config(write_pairs(tmp_path / "data"), tracking__mlflow="x")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        train(config, tmp_path / "run")
    assert not {entry.name for entry in (tmp_path / "run").iterdir()} - {".lock", "checkpoints"}


def wandb_history(file: Path) -> list[dict]:
    """The logged rows in an offline run's file: a LevelDB log (blocks of 32 KiB) of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    data, position, record, rows = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        position += max(0, 7 - left) if (left := -position % 32768 or 32768) < 7 else 0
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            items = wandb_internal_pb2.Record.FromString(record).history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            record = b""
    return [row for row in rows if row]


@needs("wandb")
def test_wandb_offline_has_the_metrics_of_a_run_and_of_its_continuation(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    for number in (1, 2):
        with MetricWriter(run, trackers=open_trackers(TrackingConfig("trial", ""), run, {"seed": 1})) as writer:
            writer.write(number, "train", {"loss": 1.0 / number})
        time.sleep(1.1 if number == 1 else 0)  # offline folders are named by the second
    identifier = json.loads((run / tracking.RECORD).read_text())["wandb"]
    files = sorted(run.glob(f"wandb/offline-run-*-{identifier}/*.wandb"))
    rows = [row for file in files for row in wandb_history(file)]
    assert [(row["step"], row["train/loss"]) for row in rows] == [(1, 1.0), (2, 0.5)]


@needs("mlflow")
def test_a_training_run_is_tracked_and_may_change_where_to(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    data, run = write_pairs(tmp_path / "data"), Path(tmp_path / "run")
    config = {"evaluation__decode": "none", "evaluation__metric": "loss", "training__total_steps": 20}
    assert train(tiny_config(data, tracking__mlflow="words", **config), run).finished
    client = MlflowClient()
    (entry,) = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    last = {f"{row['split']}/{row['name']}": row["value"] for row in read_metrics(run / "metrics.jsonl")}
    assert "validation/loss" in last
    assert entry.data.metrics == pytest.approx(last)
    assert entry.data.params["model.d_model"] == "16"
    elsewhere = {**RunDirectory.open(run).config, "tracking": {"wandb": "", "mlflow": ""}}
    assert RunDirectory.open(run).check_same_experiment(elsewhere) == ["tracking.mlflow: 'words' -> ''"]
