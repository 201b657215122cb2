"""Runs that several test files look at."""

import json
import shutil
from pathlib import Path

import pytest

from tests.made_files import LEARNS, tiny_config, write_pairs
from transformer_jax.training.loop import train

RUNS = (("old-1", 1, 0.01, 80), ("old-2", 2, 0.01, 40), ("new/new-1", 1, 0.02, 160), ("new/new-2", 2, 0.02, 120))


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs old-1, old-2, new/new-1, new/new-2: two configs with two seeds each.

    One training, at four of its steps: the older the step, the worse the model.
    """
    folder = tmp_path_factory.mktemp("study")
    data = write_pairs(folder / "data", train=600, most_words=4)
    changes = {"training__total_steps": 160, "checkpoints__every_steps": 40, "evaluation__every_steps": 40}
    config = tiny_config(data, **{**LEARNS, **changes, "checkpoints__keep_latest": 4})
    assert train(config, folder / "all").finished
    for name, seed, rate, step in RUNS:
        run = folder / "runs" / name
        shutil.copytree(folder / "all", run, ignore=lambda at, names, step=step: _other_steps(at, names, step))
        stored = json.loads((run / "config.json").read_text())
        stored["seed"], stored["optimizer"]["peak_learning_rate"] = seed, rate
        (run / "config.json").write_text(json.dumps(stored))
    return folder / "runs"


def _other_steps(folder: str, names: list[str], step: int) -> list[str]:
    return [name for name in names if Path(folder).name == "checkpoints" and name != str(step)]
