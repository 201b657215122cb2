"""The guard: what is skipped and counted on the device, when a run goes back, and how it stops."""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiments.commands import command
from tests.made_files import FULL, arrays, assert_same_run, tiny_config, write_pairs
from transformer_jax.errors import RunFailed, UserError
from transformer_jax.training import loop, step
from transformer_jax.training.guard import WARMUP, GuardConfig, GuardState, differing
from transformer_jax.training.loop import Outcome, train
from transformer_jax.training.metric_writer import read_metrics

pytestmark = pytest.mark.xdist_group("guard")
GUARD = GuardConfig(explosion_factor=10.0, rollback_after=3, max_rollbacks=1, replay_every_steps=0)


def examine(norms, config=GUARD, start=WARMUP, losses=None):
    """Which of the steps are taken, and the state after the last."""
    guard, taken = GuardState(jnp.float32(1.0), jnp.int32(0), jnp.int32(0)), []
    for i, norm in enumerate(norms):
        loss = jnp.float32(losses[i] if losses else 1.0)
        good, guard = config.examine(guard, jnp.int32(start + i), loss, jnp.float32(norm))
        taken.append(bool(good))
    return taken, guard


def test_not_finite_and_exploding_steps_are_skipped_and_counted():
    taken, guard = examine([1.0, np.nan, 1.0, np.inf, 9.0, 12.0])
    assert taken == [True, False, True, False, True, False]
    assert (int(guard.skipped), int(guard.in_a_row)) == (3, 1)
    assert float(guard.average_norm) == pytest.approx(1 + 0.02 * 8, rel=1e-5)  # the skipped ones are not in it
    assert examine([1.0, 1.0], losses=[np.nan, 1.0])[0] == [False, True]


def test_early_norms_and_a_factor_of_zero_are_not_judged():
    assert examine([1000.0], start=WARMUP - 1)[0] == [True]
    free = GuardConfig(explosion_factor=0.0, rollback_after=3, max_rollbacks=1, replay_every_steps=0)
    assert examine([1e30, np.inf], free)[0] == [True, False]


def test_the_average_of_the_first_steps_is_their_mean():
    guard = GuardState.start()
    for i, norm in enumerate([4.0, 2.0, 6.0]):
        _, guard = GUARD.examine(guard, jnp.int32(i), jnp.float32(1), jnp.float32(norm))
    assert float(guard.average_norm) == pytest.approx(4.0)


def test_after_so_many_in_a_row_nothing_moves_any_more():
    taken, guard = examine([np.nan] * 3 + [1.0] * 2)
    assert taken == [False] * 5
    assert int(guard.in_a_row) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("explosion_factor", 0.5), ("rollback_after", 0), ("max_rollbacks", -1), ("replay_every_steps", -1)],
)
def test_wrong_settings_are_named(name, value):
    values = {"explosion_factor": 10.0, "rollback_after": 3, "max_rollbacks": 1, "replay_every_steps": 0, name: value}
    with pytest.raises(UserError, match=f"guard.{name} is"):
        GuardConfig(**values)


def test_differing_sees_single_bits():
    a = {"x": jnp.array([0.0, 1.0, jnp.nan]), "n": jnp.array([1, 2])}
    b = {"x": jnp.array([-0.0, 1.0, jnp.nan]), "n": jnp.array([1, 3])}
    assert jax.tree.map(int, differing(a, b)) == {"x": 1, "n": 1}
    assert jax.tree.map(int, differing(a, a)) == {"x": 0, "n": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


BAD = {**FULL, "evaluation__decode": "none", "evaluation__metric": "loss", "guard__rollback_after": 3}


def poison(monkeypatch, *bad):
    """Makes the gradients of batches not finite: those at these positions (epoch, batch after them)."""
    monkeypatch.undo()
    call = step.TrainStep.__call__
    seen = []

    def poisoned(self, state, batch):
        if seen.pop() in bad:
            state = state.replace(params=jax.tree.map(lambda p: p, state.params))
            sums, gradients = self.gradients(state.params, batch, state.step)
            if step.SQUARED_NORM in sums:
                sums = sums | {step.SQUARED_NORM: jnp.nan * sums[step.SQUARED_NORM]}
            return self.update(state, sums, jax.tree.map(lambda g: g * jnp.nan, gradients))
        return call(self, state, batch)

    place = loop.Trainer._step

    def remember(trainer):
        position = trainer.iterator.position
        seen.append((position["epoch"], position["batch"]))
        place(trainer)
        seen.clear()

    monkeypatch.setattr(step.TrainStep, "__call__", poisoned)
    monkeypatch.setattr(loop.Trainer, "_step", remember)


def values(run, name):
    return [row["value"] for row in read_metrics(run / "metrics.jsonl") if row["name"] == name]


def test_a_single_bad_batch_is_skipped_and_counted(data, tmp_path, monkeypatch):
    poison(monkeypatch, (0, 5))
    assert train(tiny_config(data, **BAD), tmp_path) == Outcome(60, finished=True)
    assert values(tmp_path, "skipped_steps")[-1] == 1
    assert all(np.isfinite(values(tmp_path, "loss")))
    assert not values(tmp_path, "rollbacks")
    assert all(np.isfinite(array).all() for name, array in arrays(tmp_path).items() if "params" in name)


def test_a_bad_stretch_is_rolled_back_over_however_often_the_run_is_interrupted(data, tmp_path, monkeypatch, capfd):
    """Steps 26 to 28 are bad, and the last checkpoint is of step 20; interrupted before, amidst and after them."""
    config = tiny_config(data, **BAD)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # The run has the same batches at the same steps, until it goes back.
    assert train(tiny_config(data, **BAD, training__total_steps=26), tmp_path / "probe").finished
    with loop.Checkpoints(tmp_path / "probe" / "checkpoints") as checkpoints:
        at = checkpoints._facts(26)["position"]
    stretch = [(at["epoch"], at["batch"] + i) for i in range(3)]
    poison(monkeypatch, *stretch)
    assert train(config, whole) == Outcome(60, finished=True)
    told = capfd.readouterr().err
    assert "3 updates in a row were skipped; back to step 20" in told
    assert values(whole, "rollbacks") == [1]
    poisoned = loop.Trainer._step
    for stop in (25, 28, 23, 47):
        stopped = []

        def stopping(trainer, stop=stop, stopped=stopped):
            poisoned(trainer)
            if trainer.number == stop and not stopped:
                stopped.append(stop)
                trainer.stop._asked.set()

        monkeypatch.setattr(loop.Trainer, "_step", stopping)
        train(config, parts)
    monkeypatch.setattr(loop.Trainer, "_step", poisoned)
    assert train(config, parts) == Outcome(60, finished=True)
    assert_same_run(parts, whole)


def test_too_many_rollbacks_stop_the_run_with_a_step_that_can_be_made_again(data, tmp_path):
    """A rate so high that the loss is not finite soon, whatever the data."""
    changes = {**BAD, "optimizer__peak_learning_rate": 1e30, "guard__max_rollbacks": 1, "training__accumulation": 1}
    run = tmp_path / "run"
    with pytest.raises(RunFailed, match=r"3 updates in a row.*after 1 rollbacks(.|\n)*replay.py .*run --step=(\d+)"):
        train(tiny_config(data, **changes), run)
    (number,) = [int(entry.name) for entry in (run / "replay").iterdir() if entry.name.isdecimal()]
    assert not [file for file in run.rglob("*") if file.suffix in (".pkl", ".pickle")]
    made = command("replay", run, f"--step={number}")
    assert made.returncode == 0, made.stderr
    assert f"step {number}, made again on 2 cpu" in made.stdout
    assert "not finite" in made.stdout
    facts = json.loads((run / "replay" / str(number) / "step.json").read_text())
    assert facts["metrics"]["skipped_in_a_row"] == 3


def test_a_step_that_does_not_repeat_stops_the_run(data, tmp_path, monkeypatch):
    changes = {**BAD, "guard__replay_every_steps": 10}
    assert train(tiny_config(data, **changes), tmp_path / "sound").finished
    call = step.TrainStep.__call__
    counted = []

    def unstable(self, state, batch):
        counted.append(1)
        state, metrics = call(self, state, batch)
        if len(counted) == 21:  # the second time of the second check
            metrics = {**metrics, "gradient_norm": metrics["gradient_norm"] * (1 + 1e-7)}
        return state, metrics

    monkeypatch.setattr(step.TrainStep, "__call__", unstable)
    with pytest.raises(RunFailed, match=r"Step 20 came out differently.*gradient_norm \(1\)"):
        train(tiny_config(data, **changes), tmp_path / "unsound")
    assert (tmp_path / "unsound" / "replay" / "20" / "digests.json").exists()


def test_replay_of_a_run_that_was_not_stopped(data, tmp_path):
    assert train(tiny_config(data, **{**BAD, "training__total_steps": 1}), tmp_path).finished
    done: subprocess.CompletedProcess[str] = command("replay", tmp_path)
    assert (done.returncode, "keeps no step to make again" in done.stderr) == (2, True)
