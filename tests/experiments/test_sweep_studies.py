"""Which trial a worker gets: each one once, a dead worker's first, whatever storage Optuna has."""

import socket
import threading

import pytest
from optuna.storages import get_storage, run_grpc_proxy_server
from optuna.trial import TrialState

from experiments.sweeping import study as study_module
from experiments.sweeping.ranking import best_front, ranked
from experiments.sweeping.report import write_report
from experiments.sweeping.retraining import choose, compared, retraining
from experiments.sweeping.settings import Settings
from experiments.sweeping.study import Study
from tests import browser as browsers
from tests.experiments.made_study import made_settings, made_study
from transformer_jax.errors import UserError

RATE = "optimizer.peak_learning_rate"
GRID = {"grid": (f"{RATE}=1e-3,2e-3", "model.num_heads=1,2"), "seeds": 2}
SPACE = (f"{RATE}=1e-4..1e-1:log", "model.dropout_rate=0..0.5", "model.num_heads=1,2,4")


def drain(*studies, values=lambda claim: 1.0):
    """Claims trials by the studies in turn, ends them, and returns their overrides by number."""
    found = {}
    while studies:
        study = studies[len(found) % len(studies)]
        claim = study.claim()
        if claim is None:
            return found
        with claim:
            assert claim.number not in found
            found[claim.number] = claim.overrides
            study.optuna.tell(claim.number, values(claim))


def test_a_grid_is_tried_once_with_every_seed(tmp_path):
    study = made_study(tmp_path / "study", **GRID)
    found = drain(study, Study.open(study.folder))
    points = [(rate, heads, seed) for heads in (1, 2) for rate in (1e-3, 2e-3) for seed in (1, 2)]
    assert [(o[RATE], o["model.num_heads"], o["seed"]) for o in found.values()] == points
    assert [point.number for point in ranked(study)] == [0, 2, 4, 6]
    assert study.config_of(study.trials()[7])["optimizer"]["peak_learning_rate"] == 2e-3


def test_a_trial_whose_worker_died_comes_first_and_a_held_one_never(tmp_path):
    study, other = made_study(tmp_path / "study", **GRID), Study.open(tmp_path / "study")
    dead, alive = study.claim(), study.claim()
    assert (dead.number, alive.number) == (0, 1)
    dead.lock.release()  # as the system does when a process dies
    again = other.claim()
    assert (again.number, again.overrides, again.workdir) == (0, dead.overrides, dead.workdir)
    assert other.claim().number == 2


def test_a_point_that_cannot_be_made_fails_and_does_not_block_the_study(tmp_path, monkeypatch):
    study = made_study(tmp_path / "study", space=SPACE, sampler="random", points=2)

    def refuse(trial):
        raise UserError("search_space: config.py:3: no")

    monkeypatch.setattr(study, "_space", refuse)
    with pytest.raises(UserError, match=r"config\.py:3"):
        study.claim()
    (failed,) = study.trials()
    assert (failed.state.name, failed.user_attrs["reason"]) == ("FAIL", "search_space: config.py:3: no")
    assert Study.open(study.folder).claim().number == 1


def test_a_worker_may_die_in_the_middle_of_choosing(tmp_path, monkeypatch):
    study = made_study(tmp_path / "study", space=SPACE, sampler="random", points=2)

    def die(trial):
        trial.suggest_float(RATE, 1e-4, 1e-1, log=True)
        raise SystemExit(9)

    monkeypatch.setattr(study, "_space", die)
    with pytest.raises(SystemExit):
        study.claim()
    (half,) = study.trials()
    other = Study.open(study.folder)
    claim = other.claim()
    assert claim.number == 0
    assert claim.overrides[RATE] == half.params[RATE]
    assert set(claim.overrides) == {RATE, "model.dropout_rate", "model.num_heads", "seed"}


def test_a_trial_left_in_the_queue_is_neither_lost_nor_doubled(tmp_path):
    study = made_study(tmp_path / "study", **GRID)
    assert study._plan(study.trials())  # and dies
    assert len(drain(Study.open(study.folder))) == 8


@pytest.mark.parametrize("sampler", ["random", "tpe", "quasi_random"])
def test_samplers_try_different_points_in_every_worker(tmp_path, sampler):
    settings = {"space": SPACE, "sampler": sampler, "points": 8}
    first = made_study(tmp_path / "a", **settings)
    found = drain(first, Study.open(first.folder))
    assert len({tuple(overrides.values()) for overrides in found.values()}) == len(found) == 8
    assert all(1e-4 <= overrides[RATE] <= 1e-1 for overrides in found.values())
    if sampler == "random":  # what is drawn depends on the seed and the trial's number alone
        assert drain(made_study(tmp_path / "b", **settings)) == found


def test_seeds_of_a_drawn_point_and_none_of_a_pruned_one(tmp_path):
    study = made_study(tmp_path / "study", space=SPACE, sampler="tpe", points=3, seeds=2)
    with study.claim() as claim:
        claim.trial.report(1.0, 1)
        study.optuna.tell(claim.number, state=TrialState.PRUNED)
    found = drain(study)
    assert [overrides["seed"] for overrides in found.values()] == [1, 2, 1, 2]
    pairs = [{**overrides, "seed": 0} for overrides in found.values()]
    assert pairs[0] == pairs[1] != pairs[2] == pairs[3]


def test_trials_enqueued_by_hand_are_run(tmp_path):
    study = made_study(tmp_path / "study", space=SPACE, sampler="random", points=2)
    study.optuna.enqueue_trial({RATE: 0.05})
    found = drain(study)
    assert found[0][RATE] == 0.05
    assert len(found) == 2


@pytest.mark.parametrize("kind", ["database", "proxy"])
def test_other_storages(tmp_path, kind):
    url = f"sqlite:///{tmp_path}/studies.db"
    if kind == "proxy":
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        storage = get_storage(url)
        serve = threading.Thread(
            target=run_grpc_proxy_server, args=(storage,), kwargs={"host": "localhost", "port": port}, daemon=True
        )
        serve.start()
        url = f"grpc://localhost:{port}"
    study, other = made_study(tmp_path / "study", storage=url, **GRID), Study.open(tmp_path / "study")
    dead, alive = study.claim(), other.claim()
    dead.lock.release()
    assert study.claim().number == dead.number
    for claim in (dead, alive):
        study.optuna.tell(claim.number, 1.0)
    assert sorted(drain(other, study)) == [2, 3, 4, 5, 6, 7]
    assert not (study.folder / "journal.log").exists()


@pytest.mark.parametrize("storage", ["journal", "grpc://localhost", "nosuchdatabase://x/y", "grpc://localhost:1"])
def test_storages_that_cannot_be(tmp_path, storage, monkeypatch):
    monkeypatch.setattr(study_module, "PROXY_SECONDS", 0.1)
    with pytest.raises(UserError, match="storage"):
        made_study(tmp_path / "study", storage=storage)
    assert made_study(tmp_path / "study").claim().number == 0  # nothing is in the way of another try


def test_joining_adds_and_refuses_another_study(tmp_path):
    folder = tmp_path / "study"
    study = made_study(folder, space=SPACE, sampler="random", points=2)
    drain(study)
    more = Study.create_or_join(
        folder, made_settings(folder, "/data", space=SPACE, sampler="random", points=3, seeds=2)
    )
    assert more.settings.name == study.settings.name
    assert [overrides["seed"] for overrides in drain(more).values()] == [2, 2, 1, 2]
    with pytest.raises(UserError, match=r"(?s)another study.*pruner: 'none' -> 'median'"):
        made_study(folder, space=SPACE, sampler="random", points=3, pruner="median")
    with pytest.raises(UserError, match=r"no study: it has no study.json"):
        Study.open(tmp_path)
    with pytest.raises(UserError, match="not empty and holds no study"):
        made_study(tmp_path)


def test_points_are_ranked_by_the_mean_of_their_seeds(tmp_path):
    study = made_study(tmp_path / "study", **GRID)
    values = [5.0, 1.0, 2.0, 3.0, 9.0, 9.0, 0.5]
    for value in values:
        with study.claim() as claim:
            study.optuna.tell(claim.number, value)
    study.claim()  # the last trial goes on, so that its point is not complete
    points = ranked(study)
    assert [point.number for point in points] == [2, 0, 4, 6]  # losses: less is better
    assert points[0].means == (2.5,)
    assert points[0].deviations[0] == pytest.approx(0.5**0.5)
    assert best_front(study) == points[:1]
    assert choose(study, 5).number == 4
    with pytest.raises(UserError, match="no such trial"):
        choose(study, 8)


def test_with_several_objectives_there_is_a_front(tmp_path):
    study = made_study(tmp_path / "study", grid=GRID["grid"], objectives=("quality", "parameters"))
    values = iter([[1.0, 9.0], [2.0, 3.0], [2.0, 4.0], [3.0, 1.0]])
    drain(study, values=lambda claim: next(values))
    assert [point.number for point in best_front(study)] == [0, 1, 3]
    assert [point.number for point in ranked(study)] == [0, 1, 3, 2]
    with pytest.raises(UserError, match=r"choose one of the trials 0, 1, 3, as --trial=0"):
        choose(study, None)


def test_retraining_is_a_study_of_the_point_alone(tmp_path):
    study = made_study(tmp_path / "study", **GRID)
    drain(study, values=lambda claim: float(claim.number))
    again = retraining(study, choose(study, None), seeds=3)
    expected = study.config_of(study.trials()[0])
    with again.claim() as claim:
        assert claim.config == expected
        again.optuna.tell(claim.number, 0.0)
    drain(again, values=lambda claim: 7.0)
    rows = compared(choose(study, None), again)
    assert [(row.seed, row.before, row.after) for row in rows] == [
        (1, (0.0,), (0.0,)),
        (2, (1.0,), (7.0,)),
        (3, None, (7.0,)),
    ]
    assert retraining(study, choose(study, None), seeds=3).settings == again.settings
    assert Settings.load(again.folder).seeds == 3


def test_the_report_opens_in_a_browser(tmp_path, chromium):
    study = made_study(tmp_path / "study", space=SPACE, sampler="random", points=6)
    drain(study, values=lambda claim: claim.overrides[RATE])
    write_report(study)
    browsers.open_page(chromium, study.folder / "report" / "index.html")
    drawn = chromium.execute_script("return document.querySelectorAll('figure .main-svg:first-child').length")
    assert drawn == len(chromium.find_elements("css selector", "figure")) == 4
    chromium.set_window_size(500, 800)
    assert chromium.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browsers.complaints(chromium) == []
