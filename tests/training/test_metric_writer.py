"""Metrics: what is written is read back, and an interrupted run's file equals an uninterrupted one's."""

import json
import math

import matplotlib.figure
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from transformer_jax.errors import UserError
from transformer_jax.training.metric_writer import MetricWriter, read_metrics


def events(directory) -> list[Event]:
    """Parses the event files: records of length (8 bytes), checksum (4), data, checksum (4)."""
    found = []
    for file in sorted(directory.glob("events.*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_lines_are_json_and_read_back_exactly(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(1, "train", {"loss": np.float32(0.1), "tokens": 7})
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2  # flushed at once
        writer.write(2, "validation", {"a": math.nan, "b": math.inf, "c": -math.inf})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 1, "split": "train", "name": "loss", "value": 0.10000000149011612}'
    for line in lines:
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[0] == {"step": 1, "split": "train", "name": "loss", "value": float(np.float32(0.1))}
    assert [record["value"] for record in records[3:]] == [math.inf, -math.inf]
    assert math.isnan(records[2]["value"])


def test_tensorboard_gets_the_same_scalars(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.write(3, "train", {"loss": 0.5})
    (event,) = [event for event in events(tmp_path) if event.summary.value]
    assert (event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) == (
        3,
        "train/loss",
        0.5,
    )


def run(directory, steps, resume_step=None) -> None:
    with MetricWriter(directory, resume_step) as writer:
        for step in steps:
            writer.write(step, "train", {"loss": 1 / step})
            if step % 2 == 0:
                writer.write(step, "validation", {"bleu": step})


def test_resuming_gives_the_file_of_an_uninterrupted_run(tmp_path):
    run(tmp_path / "whole", range(1, 10))
    run(tmp_path / "parts", range(1, 7))
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "tra')
    run(tmp_path / "parts", range(5, 10), resume_step=4)
    whole, parts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert whole == parts
    purges = [event.step for event in events(tmp_path / "parts") if event.session_log.status == 1]
    assert purges == [5]
    run(tmp_path / "parts", range(1, 10), resume_step=-1)
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == whole
    run(tmp_path / "parts", [10])  # None keeps all
    assert (tmp_path / "parts" / "metrics.jsonl").read_bytes().startswith(whole)


def test_a_torn_last_line_is_left_out_and_any_other_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run(tmp_path, [1, 2])
    good = path.read_bytes()
    for cut in range(1, 60):
        path.write_bytes(good[:-cut])
        assert len(read_metrics(path)) == 2
    path.write_bytes(b"oops\n" + good)
    for read in (lambda: read_metrics(path), lambda: MetricWriter(tmp_path)):
        with pytest.raises(UserError, match=r"metrics.jsonl, line 1 is no metric: 'oops'"):
            read()
    with pytest.raises(UserError, match="cannot be read"):
        read_metrics(tmp_path / "none.jsonl")


def test_figures_are_files_and_tensorboard_images(tmp_path):
    figure = matplotlib.figure.Figure(figsize=(1, 1))
    figure.add_subplot().plot([1, 2])
    with MetricWriter(tmp_path) as writer:
        path = writer.figure(12, "attention", figure)
    assert path == tmp_path / "figures" / "attention-00000012.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    tags = [value.tag for event in events(tmp_path) for value in event.summary.value]
    assert any("attention" in tag for tag in tags)


def test_a_disk_that_cannot_be_written_is_a_clear_error_not_a_hang(tmp_path):
    """/dev/full takes nothing; TensorBoard's own writer would wait for ever."""
    writer = MetricWriter(tmp_path)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    writer._file.close()
    writer._file = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics in .* cannot be written: No space left on device"):
        writer.write(1, "train", {"loss": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_going_back_drops_the_later_steps(tmp_path):
    with MetricWriter(tmp_path, resume_step=-1) as writer:
        for step in (1, 2, 3):
            writer.write(step, "train", {"loss": step})
        writer.rewind(1)
        writer.write(2, "train", {"loss": 9})
    assert [(row["step"], row["value"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 9.0)]
    purges = [event.step for event in events(tmp_path) if event.session_log.status == 1]
    assert purges == [0, 2]
