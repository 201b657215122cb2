"""The training loop in this process: it learns, stops, continues exactly, and knows when it is done."""

import math
import shutil
import signal

import pytest

from tests.made_files import FULL, LEARNS, assert_same_run, overrides, tiny_config, write_pairs
from transformer_jax.analysis.run import load_run
from transformer_jax.data import tokenizers
from transformer_jax.errors import UserError
from transformer_jax.experiment import EvaluationConfig
from transformer_jax.training import loop
from transformer_jax.training.loop import Outcome, exhausted, train
from transformer_jax.training.metric_writer import read_metrics

pytestmark = pytest.mark.xdist_group("loop")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run without interruption."""
    run = tmp_path_factory.mktemp("run")
    assert train(tiny_config(data, **FULL), run) == Outcome(60, finished=True)
    return run


def stop_at(monkeypatch, step):
    """Asks the loop to stop, by a signal, when that step has been dispatched."""
    monkeypatch.undo()
    add = loop.Window.add

    def add_and_stop(window, dispatched):
        add(window, dispatched)
        if dispatched.number == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Window, "add", add_and_stop)


def test_it_learns_a_toy_task(data, tmp_path):
    folder = write_pairs(tmp_path / "data", train=600, most_words=4)
    assert train(tiny_config(folder, **LEARNS), tmp_path / "run").finished
    run = load_run(tmp_path / "run")
    losses = run.history()["train/loss"].dropna().to_list()
    assert losses[-1] < 0.1 * losses[0]
    sources = (folder / "test.en").read_text().splitlines()
    targets = (folder / "test.de").read_text().splitlines()
    exact = sum(map(str.__eq__, run.translate(sources), targets))
    assert exact >= 0.75 * len(targets)


def test_interruptions_change_nothing(data, whole, tmp_path, monkeypatch):
    """Stopped in the middle of a log window, right after a checkpoint, and before the first one."""
    run = tmp_path / "run"
    for step in (3, 20, 33, 34):
        stop_at(monkeypatch, step)
        assert train(tiny_config(data, **FULL), run) == Outcome(step, finished=False)
    monkeypatch.undo()
    assert train(tiny_config(data, **FULL), run) == Outcome(60, finished=True)
    assert_same_run(run, whole)


def test_what_a_run_writes_of_its_training(whole):
    """All that is promised, at every line; and later evaluations compile nothing but the sum of an average."""
    lines = {}
    for row in read_metrics(whole / "metrics.jsonl"):
        if row["split"] == "train":
            lines.setdefault(row["step"], {})[row["name"]] = row["value"]
    assert list(lines) == [7, 14, 21, 28, 35, 42, 49, 56]
    wanted = {"loss", "nll", "perplexity", "gradient_norm", "learning_rate", "target_tokens_per_second", "padding"}
    wanted |= {"compile_count", "step_seconds", "device_memory_bytes", "skipped_steps"}
    for step, line in lines.items():
        assert line.keys() == wanted
        assert line["perplexity"] == pytest.approx(math.exp(line["nll"]))
        assert line["learning_rate"] == pytest.approx(1e-2 * min(step / 10, (10 / (step - 1)) ** 0.5))
        assert 0 < line["padding"] < 1
        assert line["target_tokens_per_second"] * line["step_seconds"] < 256  # the budget of a batch
        assert line["gradient_norm"] > 0
        assert line["device_memory_bytes"] > 1e6
    compiled = {step: line["compile_count"] for step, line in lines.items()}
    assert compiled[14] == compiled[7]
    assert compiled[42] <= compiled[35] + 1  # the evaluation of step 40, the second
    assert compiled[56] == compiled[42]


def test_the_judge_of_evaluations_can_end_a_run_that_then_continues(data, whole, tmp_path):
    seen = []

    def judge(step, metrics):
        seen.append((step, metrics["bleu"]))
        return step == 40

    assert train(tiny_config(data, **FULL), tmp_path / "run", judge) == Outcome(40, finished=False)
    assert train(tiny_config(data, **FULL), tmp_path / "run", judge) == Outcome(60, finished=True)
    assert seen == list(load_run(whole).history()["validation/bleu"].dropna().items())
    assert_same_run(tmp_path / "run", whole)


def test_a_death_before_the_first_checkpoint_leaves_no_old_metrics(data, whole, tmp_path, monkeypatch):
    def die(window, dispatched):
        add(window, dispatched)
        if dispatched.number == 15:
            raise SystemExit(9)

    add = loop.Window.add
    monkeypatch.setattr(loop.Window, "add", die)
    with pytest.raises(SystemExit):
        train(tiny_config(data, **FULL), tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")
    monkeypatch.undo()
    assert train(tiny_config(data, **FULL), tmp_path / "run").finished
    assert_same_run(tmp_path / "run", whole)


def test_a_death_amidst_the_writing_of_tokenizers_leaves_none(data, tmp_path, monkeypatch):
    def die(path, content):
        if path.name == "tokenizer.json":
            raise SystemExit(9)
        replace(path, content)

    replace = tokenizers._replace
    config = tiny_config(data, training__total_steps=1, evaluation__decode="none", evaluation__metric="loss")
    monkeypatch.setattr(tokenizers, "_replace", die)
    with pytest.raises(SystemExit):
        train(config, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "config.json").is_file()
    assert train(config, tmp_path).finished


def test_a_disk_that_is_full_before_the_first_checkpoint_leaves_a_run_that_continues(data, tmp_path, monkeypatch):
    def full(writer, *_):
        raise UserError("The metrics cannot be written: No space left on device.")

    changes = {"training__total_steps": 10, "evaluation__decode": "none", "evaluation__metric": "loss"}
    monkeypatch.setattr(loop.MetricWriter, "write", full)
    with pytest.raises(UserError, match="No space left"):
        train(tiny_config(data, **changes), tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "checkpoints").exists()
    assert train(tiny_config(data, **changes), tmp_path) == Outcome(10, finished=True)


def test_a_finished_run_is_not_touched(data, whole):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()}
    assert train(tiny_config(data, **FULL), whole) == Outcome(60, finished=True)
    after = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()}
    changed = {file.name for file in after if before.get(file) != after[file]}
    assert changed <= {"environment.json", ".lock"}  # each start is recorded


def test_early_stopping_is_final(data, tmp_path):
    """With a rate far too high the loss soon has no new best; the same command then has nothing to do."""
    changes = {
        "optimizer__peak_learning_rate": 3.0,
        "training__total_steps": 400,
        "evaluation__every_steps": 5,
        "evaluation__weights": "latest",
        "evaluation__decode": "none",
        "evaluation__metric": "loss",
        "evaluation__patience": 2,
    }
    config = tiny_config(data, **changes)
    outcome = train(config, tmp_path)
    assert outcome.finished
    assert outcome.step < 400
    rows = len(read_metrics(tmp_path / "metrics.jsonl"))
    assert train(config, tmp_path) == outcome
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == rows


@pytest.mark.parametrize(
    ("values", "metric", "patience", "expected"),
    [
        ([1, 2, 2, 1], "bleu", 2, True),
        ([1, 2, 1, 3], "bleu", 2, False),
        ([3, 2, 2, 3], "loss", 2, True),
        ([3, 2, 3, 1], "loss", 2, False),
        ([3, 3, 3, 3], "loss", 0, False),
        ([1, 1], "bleu", 2, False),
    ],
)
def test_patience(values, metric, patience, expected):
    history = [{"split": "validation", "name": metric, "value": value} for value in values]
    history += [{"split": "train", "name": metric, "value": 99.0}]
    assert exhausted(history, EvaluationConfig(1, "latest", 1, metric, patience)) is expected


def test_a_changed_schedule_of_saving_continues_but_another_model_does_not(data, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    changed = tiny_config(data, **FULL, checkpoints__every_steps=10)
    assert train(changed, run) == Outcome(60, finished=True)
    assert "checkpoints.every_steps=10" in overrides(data, checkpoints__every_steps=10)


QUICK = {"training__total_steps": 6, "evaluation__decode": "none", "evaluation__metric": "loss"}


def test_what_has_been_evaluated_can_be_loaded(data, tmp_path):
    """Evaluations between the planned checkpoints save too, so the best that the metrics tell of is there."""
    config = tiny_config(data, **QUICK, evaluation__every_steps=3, checkpoints__every_steps=4)
    assert train(config, tmp_path).finished
    losses = load_run(tmp_path).history()["validation/loss"].dropna()
    assert list(losses.index) == [3, 6]
    assert [load_run(tmp_path, str(step)).steps for step in (3, 4, 6)] == [[3], [4], [6]]
    assert load_run(tmp_path, "best").steps == [losses.idxmin()]


def test_a_signal_amidst_an_evaluation_stops_after_it(data, tmp_path, monkeypatch):
    config = tiny_config(data, **QUICK, evaluation__every_steps=3)
    evaluate = loop.Trainer._evaluate

    def interrupted(trainer, weights):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(trainer, weights)

    monkeypatch.setattr(loop.Trainer, "_evaluate", interrupted)
    assert train(config, tmp_path) == Outcome(3, finished=False)
    monkeypatch.undo()
    assert train(config, tmp_path) == Outcome(6, finished=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_data_is_prepared_leaves_no_run(data, tmp_path, monkeypatch, number):
    """So a corrected config is not refused because another stands there."""

    class Interrupted:
        @staticmethod
        def prepare(config, run):
            signal.raise_signal(number)

    monkeypatch.setattr(loop, "find_family", lambda name: Interrupted)
    if number == signal.SIGTERM:
        assert train(tiny_config(data, **QUICK), tmp_path / "run") == Outcome(0, finished=False)
    else:
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(data, **QUICK), tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "config.json").exists()
    assert train(tiny_config(data, **QUICK, seed=5), tmp_path / "run").finished
