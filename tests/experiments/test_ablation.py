"""The ablation: it trains what it says, makes its table, and nothing twice."""

import json
import statistics

import pytest

from experiments.ablation_study import SETTINGS, TEACHERS, Study, differences_figure
from experiments.command_line import load_config
from tests.made_files import CHECKOUT, tiny_config, write_pairs
from transformer_jax.analysis.ensemble import EnsembleRun
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
    "decoding__min_length": 2,  # hardly trained, a model may write nothing
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(write_pairs(tmp_path_factory.mktemp("data")), **SHORT)


def test_a_study_makes_its_table_and_nothing_twice(config, tmp_path):
    names = ["base", "label-smoothing-0.1", "last-weights", "average-8", "diversification", "ensemble"]
    study = Study(tmp_path, config, 2, names)
    names.remove("label-smoothing-0.1")  # the base has it
    assert study.names == names
    one = Study(tmp_path, config, 1, ["label-smoothing-0.0", "bidirectional-pretraining"])
    for name in one.names:
        one.make(name)
    for name in study.names:
        study.make(name)
    runs = {run.name: load_run(run) for run in (tmp_path / "runs").iterdir()}
    assert len(runs) == 2 + 2 + 1 + 2 + 2
    sides = load_dataset(runs["base-1"].config.dataset).splits["train"].texts()
    for key, teachers, texts in zip(TEACHERS, ("base", "reversed"), sides, strict=True):
        taught = tmp_path / f"{key}-1-2.txt"
        assert getattr(runs["diversification-from-1-2-1"].config.dataset, key) == str(taught)
        made = EnsembleRun([runs[f"{teachers}-1"], runs[f"{teachers}-2"]]).translate(texts)
        assert taught.read_text().splitlines() == made
    assert runs["label-smoothing-0.0-1"].config.task.label_smoothing == 0.0
    assert {runs[name].config.seed for name in ("base-1", "base-2")} == {1, 2}
    first, then = runs["bidirectional-pretraining-first-1"], runs["bidirectional-pretraining-1"]
    assert (first.config.dataset.bidirectional, then.config.dataset.bidirectional) == (True, False)
    assert (first.steps[-1], then.config.training.total_steps) == (2, 6)
    assert json.loads((then.directory.path / "initialization.json").read_text())["not_taken"] == {}

    rows = {row["setting"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert rows.keys() == {*names, *one.names}
    assert [name for name in SETTINGS if name in rows] == list(rows)
    kinds = [rows[name]["scores"]["chrf"][1] for name in ("base", "last-weights", "average-8")]
    for found, checkpoint in zip(kinds, ("ema", "latest", "average:8"), strict=True):
        run = load_run(tmp_path / "runs/base-2", checkpoint)
        assert found == run.evaluate("validation", None)[0]["scores"]["chrf"]
    assert len(set(kinds)) == 3
    own = [runs[f"base-{seed}"].evaluate("validation", None)[0]["scores"]["chrf"] for seed in (1, 2)]
    assert own[0] != own[1]
    assert rows["base"]["scores"]["chrf"] == own
    assert rows["base"]["deviation"]["chrf"] == pytest.approx(statistics.stdev(own))
    changed = rows["label-smoothing-0.0"]
    assert changed["against_base"]["chrf"] == pytest.approx(changed["mean"]["chrf"] - statistics.mean(own))
    assert changed["scores"]["chrf"] != own[:1]
    assert rows["ensemble"]["seeds"] == [[1, 2]]
    table = (tmp_path / "table.md").read_text()
    (line,) = (line for line in table.splitlines() if line.startswith("| base |  | 1 and 2 |"))
    assert f"| {statistics.mean(own):.2f} ± {statistics.stdev(own):.2f} |" in line
    assert table.index("| base |") < table.index("With the runs") < table.index("| ensemble |")

    assert {file.name for file in tmp_path.glob("*.png")} == {"differences.png"}

    # What learned from two is not shown with what learned from three; a run is measured without its teachers.
    three = Study(tmp_path, config, 3, ["diversification"])
    three.write_report()
    assert "diversification" not in (tmp_path / "table.md").read_text()
    study.write_report()
    for key in TEACHERS:
        (tmp_path / f"{key}-1-2.txt").unlink()
    runs["diversification-from-1-2-1"].evaluate("validation", None)

    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.jsonl")}
    assert len(files) == 9
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


def test_the_figure_has_a_bar_for_each_mean_and_a_point_for_each_run():
    of_base = [{"scores": {"bleu": score}} for score in (40.0, 42.0)]
    rows = [
        {"setting": "up", "decoded": False, "scores": {"bleu": [42.0, 44.0]}, "mean": {"bleu": 43.0}},
        {"setting": "down", "decoded": True, "scores": {"bleu": [40.5]}, "mean": {"bleu": 40.5}},
    ]
    (axes,) = differences_figure(rows, of_base).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["down", "up"]
    bars = [(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bars in axes.containers for bar in bars]
    assert sorted(bars) == [(0, -0.5), (1, 2.0)]
    points = [sorted(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert sorted(points) == [[-0.5], [1.0, 3.0]]
    assert "41.00" in axes.get_xlabel()


def test_what_cannot_be_is_named_before_work(config, tmp_path):
    with pytest.raises(UserError, match=r"no 'r-dorp'\. Did you mean r-drop\?"):
        Study(tmp_path, config, 1, ["r-dorp"])
    lstm = load_config(str(CHECKOUT / "configs" / "multi30k.py:lstm"))
    with pytest.raises(UserError, match=r"depth-6-2 sets model\.num_decoder_layers, which multi30k-lstm has not"):
        Study(tmp_path, lstm, 1, ["depth-6-2"])
    for name in ("ensemble", "diversification"):
        with pytest.raises(UserError, match=f"{name} is of two seeds or more"):
            Study(tmp_path, config, 1, [name])
    taught = tiny_config(config.dataset.path, **SHORT, dataset__distilled="teacher.txt")
    with pytest.raises(UserError, match=r"diversification sets dataset\.distilled, which the base has already"):
        Study(tmp_path, taught, 2, ["diversification"])
    table = tiny_config(config.dataset.path, **SHORT, dataset__train="pairs.tsv")
    with pytest.raises(UserError, match=r"back-translation needs both directions: dataset\.train must name two files"):
        Study(tmp_path, table, 2, ["back-translation"])
    patient = tiny_config(config.dataset.path, **SHORT, evaluation__patience=2)
    with pytest.raises(UserError, match=r"a run writes 8 or, with evaluation\.patience, fewer"):
        Study(tmp_path, patient, 1, ["average-8"])
    rare = tiny_config(config.dataset.path, **SHORT | {"checkpoints__every_steps": 2})
    with pytest.raises(UserError, match="average-8 is the mean of 8 checkpoints, and a run writes 4"):
        Study(tmp_path, rare, 1, ["average-8"])
    assert not list(tmp_path.iterdir())
    assert not {"depth-6-2", "ensemble"} & set(Study(tmp_path, lstm, 1).names)
