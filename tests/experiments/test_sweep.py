"""The sweep commands: real workers, two of them killed, and the best trial once more."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from optuna.trial import TrialState

from experiments.sweeping.report import write_report
from experiments.sweeping.study import Study
from experiments.sweeping.worker import STARTS
from tests.experiments.commands import environment
from tests.experiments.made_study import QUICK
from tests.made_files import CHECKOUT, CONFIG, overrides, timeless_metrics, write_pairs

pytestmark = pytest.mark.xdist_group("sweep")

STEPS = 240
CHANGES = {**QUICK, "training__total_steps": STEPS, "training__log_every_steps": 5, "checkpoints__every_steps": 20}
PREPARED = ("TRANSFORMER_JAX_PREPARED", "JAX_NUM_CPU_DEVICES")
RATES = (0.003, 0.01, 0.03)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of 6 trials that 4 workers worked on; the first two that were in the middle of a trial were killed."""
    folder = tmp_path_factory.mktemp("sweep") / "study"
    data = write_pairs(tmp_path_factory.mktemp("data"), train=200, most_words=5)
    words = [f"--config.{override}" for override in overrides(data, **CHANGES)]
    grid = f"--grid=optimizer.peak_learning_rate={','.join(map(str, RATES))}"
    settings = [f"--study={folder}", f"--config={CONFIG}", *words, grid, "--seeds=2", "--cores=1"]
    command("sweep", *settings, "--workers=0")
    workers = [start("sweep_worker", folder) for _ in range(4)]
    try:
        killed = kill_in_the_middle(folder, workers, count=2)
        for process in workers:
            output, _ = process.communicate(timeout=900)
            assert process.returncode == (-signal.SIGKILL if process.pid in killed else 0), output
    finally:
        for process in workers:
            process.kill()
    last = command("sweep_worker", folder)  # for a trial whose worker was killed after the others had looked
    assert "study is complete" in last
    return Study.open(folder), sorted(killed.values())


def start(name, *words):
    """Starts experiments/NAME.py, which is to prepare the CPU itself: for the same cores whoever starts it."""
    own = {key: value for key, value in environment().items() if key not in PREPARED}
    return subprocess.Popen(
        [sys.executable, CHECKOUT / "experiments" / f"{name}.py", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=own,
    )


def command(name, *words):
    """Runs experiments/NAME.py to its end; returns what it printed."""
    with start(name, *words) as process:
        output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output


def kill_in_the_middle(folder, workers, count):
    """Kills workers whose trial has passed a checkpoint; returns the trials by process."""
    killed, deadline = {}, time.monotonic() + 900
    while len(killed) < count and time.monotonic() < deadline:
        for run in folder.glob("trials/*"):
            saved = [entry.name for entry in (run / "checkpoints").glob("[0-9]*")]
            if not saved or f'"step": {STEPS},' in (run / "metrics.jsonl").read_text():
                continue
            holder = re.match(r"process (\d+) ", (run / ".lock").read_text())
            if holder is None or int(holder[1]) in killed or int(run.name) in killed.values():
                continue
            pid = int(holder[1])
            (process,) = [process for process in workers if process.pid == pid]
            process.send_signal(signal.SIGKILL)
            killed[pid] = int(run.name)
            if len(killed) == count:
                break
        time.sleep(0.002)
    assert len(killed) == count
    return killed


def test_no_trial_is_lost_or_run_twice(study):
    study, killed = study
    trials = study.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    made = Counter(
        (t.user_attrs["overrides"]["optimizer.peak_learning_rate"], t.user_attrs["overrides"]["seed"]) for t in trials
    )
    assert made == Counter({(rate, seed): 1 for rate in RATES for seed in (1, 2)})
    assert sorted(run.name for run in (study.folder / "trials").iterdir()) == [f"{i:04d}" for i in range(6)]
    for trial in trials:
        starts = trial.user_attrs[STARTS]
        if trial.number in killed:
            assert len(starts) == 2
            assert starts[0] == 0 < starts[1]  # continued from a checkpoint
        else:
            assert starts == [0]
        assert len(json.loads((study.workdir(trial.number) / "environment.json").read_text())) == len(starts)
        lines = Counter(
            (row["step"], row["split"], row["name"]) for row in timeless_metrics(study.workdir(trial.number))
        )
        assert set(lines.values()) == {1}
        assert max(lines)[0] == STEPS


def test_retraining_the_best_gives_its_score_bit_for_bit(study):
    study, _ = study
    best = min(study.trials(), key=lambda trial: trial.value)
    said = command("sweep_retrain", study.folder, "--seeds=2", f"--trial={best.number}")
    assert said.count(": identical)") == 2, said
    (again,) = (study.folder / "retrained").iterdir()
    repeated = {trial.user_attrs["overrides"]["seed"]: trial for trial in Study.open(again).trials()}
    twin = repeated[best.user_attrs["overrides"]["seed"]]
    assert twin.value == best.value
    assert timeless_metrics(again / "trials" / f"{twin.number:04d}") == timeless_metrics(study.workdir(best.number))


def test_the_report_needs_no_network_and_shows_the_study(study):
    study, _ = study
    text = write_report(study)
    assert text.count("optimizer.peak_learning_rate=") == 3
    folder = study.folder / "report"
    page = (folder / "index.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    text_of_page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)  # plotly.js names sites that it may credit
    assert not re.findall(r"https?://", text_of_page)
    links = re.findall(r'<a href="(\.\./trials/\d+)">', page)
    assert sorted(links) == [f"../trials/{i:04d}" for i in range(6)]
    assert all((folder / link / "config.json").exists() for link in links)
    names = ("learning_curves", "history", "parallel_coordinates_validation_loss", "importances_validation_loss")
    for name in names:
        assert f'<h2 id="{name}">' in page
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("Plotly.newPlot(") >= len(names)
