"""The study of long-range tasks: every cell has as many trials, nothing is done twice, what was measured is told."""

from types import SimpleNamespace

import pytest

from experiments.long_range import trials
from experiments.long_range.report import write_report
from experiments.long_range.trials import RATES, Results, Trial, run_study
from transformer_jax.errors import UserError
from transformer_jax.training.loop import Outcome


@pytest.fixture
def trained(monkeypatch):
    """The runs that were trained, as (name, rate, seed); nothing really is. The best rate is 2e-3."""
    done = []

    def train(config, workdir):
        done.append((config.name, config.optimizer.peak_learning_rate, config.seed))
        workdir.mkdir(parents=True)
        return Outcome(config.training.total_steps, finished=True)

    monkeypatch.setattr(trials, "train", train)
    monkeypatch.setattr(trials, "quality", lambda workdir, evaluation: abs(done[-1][1] - 2e-3))
    monkeypatch.setattr(trials, "training_seconds", lambda workdir: 1.0)
    monkeypatch.setattr(trials, "load_run", lambda workdir: SimpleNamespace(params={}))
    monkeypatch.setattr(trials, "_scores", lambda run, task: {"4": 1.0, "40": 0.5})
    return done


def test_all_are_tuned_alike_and_the_best_rate_gets_more_seeds(trained, tmp_path):
    lines = list(run_study(tmp_path, ["copy"], ["lstm", "transformer"], 3, []))
    for network in ("lstm", "transformer"):
        own = [(rate, seed) for name, rate, seed in trained if name == f"long_range-copy-{network}"]
        assert own == [*((rate, 1) for rate in RATES), (2e-3, 2), (2e-3, 3)]
    tested = Results(tmp_path).read("test")
    assert [(r["network"], r["rate"], r["seed"]) for r in tested[:3]] == [("lstm", 2e-3, seed) for seed in (1, 2, 3)]
    assert sum("test" in line for line in lines) == len(tested) == 6
    before = len(trained)
    assert len(list(run_study(tmp_path, ["copy"], ["lstm", "transformer"], 4, []))) > 0
    assert len(trained) == before + 2  # the fourth seeds alone


def test_the_report_tells_what_was_measured(trained, tmp_path):
    list(run_study(tmp_path, ["copy"], ["lstm"], 2, []))
    for length in (8, 16):
        rates = {"training": 1000.0 * length, "decoding": 500.0}
        Results(tmp_path).add({"kind": "speed", "network": "lstm", "length": length, **rates, "cores": 4})
    text = write_report(tmp_path, tmp_path / "figures")
    assert "| LSTM | 2 | 100.0 ± 0.0 | 50.0 ± 0.0 |" in text
    assert "| network | seeds | 4 | *40* |" in text  # longer than any that was trained on
    assert "| copy | LSTM | 0.001 | **0** | 0.002 | 0.006 |" in text
    assert "| training | LSTM | 8,000 | 16,000 |" in text
    assert (tmp_path / "report.md").read_text() == text
    assert {file.name for file in (tmp_path / "figures").iterdir()} == {
        "long_range_accuracy.png",
        "long_range_speed.png",
    }
    with pytest.raises(UserError, match="no results yet"):
        write_report(tmp_path / "nothing", tmp_path / "figures")


@pytest.mark.parametrize("network", trials.NETWORKS)
def test_multi30k_is_compared_in_one_number_format(network):
    config = Trial("multi30k", network, 4e-3, 2).config(["training.total_steps=10"])
    assert config.model.dtype == "float32"
    assert config.optimizer.peak_learning_rate == 4e-3
    assert (config.seed, config.training.total_steps) == (2, 10)
