"""The ablation: it trains what it says, makes its table, and nothing twice."""

import json
import statistics

import pytest

from experiments.ablation_study import SETTINGS, Study
from experiments.command_line import load_config
from tests.made_files import CHECKOUT, tiny_config, write_pairs
from transformer_jax.analysis.run import load_run
from transformer_jax.data.datasets import load_dataset
from transformer_jax.errors import UserError

SHORT = {
    "training__total_steps": 8,
    "training__ema_decay": 0.5,
    "checkpoints__every_steps": 1,
    "checkpoints__keep_latest": 2,
    "evaluation__every_steps": 8,
    "evaluation__weights": "ema",
    "batching__num_shapes": 1,
    "batching__max_length": 16,
    "decoding__max_source_length": 16,
    "decoding__max_target_length": 16,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(write_pairs(tmp_path_factory.mktemp("data")), **SHORT)


def test_a_study_makes_its_table_and_nothing_twice(config, tmp_path):
    names = ["base", "label-smoothing-0.0", "label-smoothing-0.1", "last-weights", "average-8", "ensemble"]
    study = Study(tmp_path, config, 2, names)
    names.remove("label-smoothing-0.1")  # the base has it
    assert study.names == names
    for name in study.names:
        study.make(name)
    one = Study(tmp_path, config, 1, ["bidirectional-pretraining", "distillation"])
    for name in one.names:
        one.make(name)
    runs = {run.name: load_run(run) for run in (tmp_path / "runs").iterdir()}
    assert len(runs) == 2 + 2 + 2 + 1
    taught = tmp_path / "distilled-1.txt"
    assert runs["distillation-1"].config.dataset.distilled == str(taught)
    sources, _ = load_dataset(runs["base-1"].config.dataset).splits["train"].texts()
    assert taught.read_text().splitlines() == runs["base-1"].translate(sources)
    assert runs["label-smoothing-0.0-2"].config.task.label_smoothing == 0.0
    assert {runs[name].config.seed for name in ("base-1", "base-2")} == {1, 2}
    first, then = runs["bidirectional-pretraining-first-1"], runs["bidirectional-pretraining-1"]
    assert (first.config.dataset.bidirectional, then.config.dataset.bidirectional) == (True, False)
    assert (first.steps[-1], then.config.training.total_steps) == (2, 6)
    assert json.loads((then.directory.path / "initialization.json").read_text())["not_taken"] == {}

    rows = {row["setting"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(rows) == [*names[:-1], *one.names, "ensemble"]
    for name, checkpoint in (("base", "ema"), ("last-weights", "latest"), ("average-8", "average:8")):
        run = load_run(tmp_path / "runs/base-2", checkpoint)
        assert rows[name]["scores"]["chrf"][1] == run.evaluate("validation", None)[0]["scores"]["chrf"]
    own = [runs[f"base-{seed}"].evaluate("validation", None)[0]["scores"]["chrf"] for seed in (1, 2)]
    assert own[0] != own[1]
    assert rows["base"]["scores"]["chrf"] == own
    assert rows["base"]["deviation"]["chrf"] == pytest.approx(statistics.stdev(own))
    changed = rows["label-smoothing-0.0"]
    assert changed["against_base"]["chrf"] == pytest.approx(changed["mean"]["chrf"] - statistics.mean(own))
    assert changed["scores"]["chrf"] != own
    assert rows["ensemble"]["seeds"] == [[1, 2]]
    table = (tmp_path / "table.md").read_text()
    (line,) = (line for line in table.splitlines() if line.startswith("| base |  | 1 and 2 |"))
    assert f"| {statistics.mean(own):.2f} ± {statistics.stdev(own):.2f} |" in line
    assert table.index("| base |") < table.index("With the runs") < table.index("| ensemble |")

    assert (tmp_path / "differences.png").stat().st_size > 10_000

    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.jsonl")}
    assert len(files) == 7
    again = Study(tmp_path, config, 2, ["base", "ensemble"])
    again.make("base")
    assert files == {file: file.stat().st_mtime_ns for file in files}
    assert (tmp_path / "table.md").read_text() == table
    other = tiny_config(config.dataset.path, **SHORT, task__label_smoothing=0.3)
    with pytest.raises(UserError, match=r"another config.*task\.label_smoothing: 0\.1 -> 0\.3"):
        Study(tmp_path, other, 2, ["base"])


@pytest.mark.parametrize("variant", ["best", "best_tiny", "ten_minutes"])
def test_all_rows_can_go_with_multi30k(variant, tmp_path):
    """Each is checked as training would; only what the base has already is left out."""
    config = load_config(str(CHECKOUT / "configs" / f"multi30k.py:{variant}"))
    left_out = set(SETTINGS) - set(Study(tmp_path, config, 3).names)
    assert {"pre-norm", "adam", "depth-4-4", "label-smoothing-0.1"} <= left_out
    assert len(left_out) < len(SETTINGS) / 2


def test_what_cannot_be_is_named_before_work(config, tmp_path):
    with pytest.raises(UserError, match=r"no 'r-dorp'\. Did you mean r-drop\?"):
        Study(tmp_path, config, 1, ["r-dorp"])
    lstm = load_config(str(CHECKOUT / "configs" / "multi30k.py:lstm"))
    with pytest.raises(UserError, match=r"depth-6-2 sets model\.num_decoder_layers, which multi30k-lstm has not"):
        Study(tmp_path, lstm, 1, ["depth-6-2"])
    with pytest.raises(UserError, match="ensemble is of two seeds or more"):
        Study(tmp_path, config, 1, ["ensemble"])
    rare = tiny_config(config.dataset.path, **SHORT | {"checkpoints__every_steps": 2})
    with pytest.raises(UserError, match="average-8 is the mean of 8 checkpoints, and a run writes 4"):
        Study(tmp_path, rare, 1, ["average-8"])
    assert not list(tmp_path.iterdir())
    assert not {"depth-6-2", "ensemble"} & set(Study(tmp_path, lstm, 1).names)
