"""One worker in this process: trials that are pruned, that fail, and that kill."""

import signal
import sys

import optuna
import pytest
from optuna.trial import TrialState

from experiments.sweeping import worker
from experiments.sweeping.report import write_report
from experiments.sweeping.study import Study
from experiments.sweeping.supervisor import supervise
from experiments.sweeping.worker import PRUNED, REASON, STARTS, work
from tests.experiments.made_study import made_study
from tests.made_files import write_pairs
from transformer_jax.analysis.run import load_run
from transformer_jax.training import loop
from transformer_jax.training.loop import Outcome, train

pytestmark = pytest.mark.xdist_group("loop")
RATE = "optimizer.peak_learning_rate"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


def test_a_pruned_trial_is_a_run_that_can_go_on(data, tmp_path, monkeypatch):
    study = made_study(tmp_path / "study", data, grid=(f"{RATE}=1e-2",), pruner="median")
    study.optuna.pruner = optuna.pruners.ThresholdPruner(upper=0.0)  # no loss is that low
    tell, died = study.optuna.tell, []

    def die_once(*arguments, **keywords):
        if not died:
            died.append(True)
            raise SystemExit(9)
        return tell(*arguments, **keywords)

    monkeypatch.setattr(study.optuna, "tell", die_once)
    with pytest.raises(SystemExit):
        work(study)
    assert study.trials()[0].state is TrialState.RUNNING
    monkeypatch.setattr(worker, "train", None)  # what was pruned is not trained on
    assert work(study)
    (trial,) = study.trials()
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs[PRUNED] == 20
    assert list(trial.intermediate_values) == [20]
    assert load_run(study.workdir(0)).checkpoints.steps() == [20]
    assert train(study.config_of(trial), study.workdir(0)) == Outcome(60, finished=True)


def test_several_objectives_and_a_signal(data, tmp_path, monkeypatch):
    study = made_study(tmp_path / "study", data, grid=(f"{RATE}=1e-2",), objectives=("quality", "time", "parameters"))
    add = loop.Window.add

    def add_and_stop(window, step):
        add(window, step)
        if step.number == 30:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Window, "add", add_and_stop)
        assert not work(study)
    assert study.trials()[0].state is TrialState.RUNNING
    assert work(Study.open(study.folder))
    (trial,) = study.trials()
    assert trial.user_attrs[STARTS] == [0, 30]
    run = load_run(study.workdir(0))
    losses = run.history()["validation/loss"].dropna()
    count = sum(leaf.size for leaf in loop.jax.tree.leaves(run.params))
    assert trial.values[0] == min(losses)
    assert 0 < trial.values[1] < 60
    assert trial.values[2] == count
    assert f"{count:,}" in write_report(study)


def test_failures_are_recorded_and_three_in_a_row_stop_the_worker(data, tmp_path):
    space = ("model.num_heads=2,3", f"{RATE}=1e-3..1e-2")
    study = made_study(tmp_path / "study", data, space=space, sampler="random", points=9)
    for _ in range(4):
        study.optuna.enqueue_trial({"model.num_heads": 3})
    with pytest.raises(worker.UserError, match=r"3 trials in a row failed. The last one: .*num_heads"):
        work(study)
    assert [trial.state for trial in study.trials()] == [TrialState.FAIL] * 3 + [TrialState.WAITING]
    assert "num_heads" in study.trials()[0].user_attrs[REASON]
    write_report(study)
    assert "Trial 0: " in (study.folder / "report" / "index.html").read_text()


def test_a_trial_that_kills_one_worker_after_the_other_is_given_up(data, tmp_path, monkeypatch):
    study = made_study(tmp_path / "study", data, grid=(f"{RATE}=1e-2",))

    def die(*_):
        raise SystemExit(9)

    monkeypatch.setattr(worker, "train", die)
    for _ in range(worker.MOST_STARTS):
        with pytest.raises(SystemExit):
            work(study)
    assert work(study)
    (trial,) = study.trials()
    assert trial.state is TrialState.FAIL
    assert "4 workers died of it at step 0" in trial.user_attrs[REASON]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_end_the_worse_of_trials(data, tmp_path, pruner):
    study = made_study(tmp_path / "study", data, space=(f"{RATE}=1e-3..1e-2",), points=40, pruner=pruner)
    pruned = []
    for number in range(30):
        with study.claim() as claim:
            for step in (20, 40, 60):
                claim.trial.report(float(number % 3), step)  # a loss
                if claim.trial.should_prune():
                    pruned.append(number % 3)
                    study.optuna.tell(number, state=TrialState.PRUNED)
                    break
            else:
                study.optuna.tell(number, float(number % 3))
    assert 2 in pruned
    assert 0 not in pruned


def test_the_supervisor_replaces_what_is_killed_and_tells_what_fails(data, tmp_path, capsys):
    study = made_study(tmp_path / "study", data, grid=(f"{RATE}=1e-2",))
    mark = tmp_path / "mark"
    dies_once = f"import os; fd = os.open({str(mark)!r}, os.O_CREAT | os.O_EXCL); os.kill(os.getpid(), 9)"
    script = f"try:\n    {dies_once}\nexcept FileExistsError:\n    print('works')"
    assert supervise(study, 2, [sys.executable, "-c", script])
    assert capsys.readouterr().out.count("killed by signal 9; another takes over") == 1
    assert len(list((study.folder / "workers").iterdir())) == 3
    with pytest.raises(worker.UserError, match=r"(?s)A worker failed.*no luck"):
        supervise(study, 1, [sys.executable, "-c", "raise SystemExit('no luck')"])
