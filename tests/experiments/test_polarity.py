"""The study of sentence polarity, with everything small: it makes its table, and nothing twice."""

import gzip
import json

import pytest

from experiments import polarity_study
from experiments.polarity_study import Study, plain_text
from transformer_jax.errors import UserError


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two seeds and choices, models of one layer, runs of a few steps; the folder with the data."""
    monkeypatch.setattr(polarity_study, "SEEDS", (1, 2))
    monkeypatch.setattr(polarity_study, "STEPS", {1.0: (4, 2)})
    monkeypatch.setattr(polarity_study, "TUNING_SEEDS", {1.0: (101, 102)})
    monkeypatch.setattr(
        polarity_study,
        "CHOICES",
        {"layers": ("pre",), "optimizer.peak_learning_rate": (1e-3,), "model.dropout_rate": (0.1,)},
    )
    sizes = {"model.num_layers": 1, "model.d_model": 16, "model.d_ff": 16, "model.num_heads": 2, "model.max_length": 64}
    monkeypatch.setattr(polarity_study, "SIZES", sizes)
    tiny = {"tokenizer.kind": "byte", "tokenizer.vocab_size": 260}
    every = {"checkpoints.every_steps": 2, "evaluation.every_steps": 2, "batching.rows": 8}
    monkeypatch.setattr(polarity_study, "PRETRAINING", {**polarity_study.PRETRAINING, **sizes, **tiny, **every})
    monkeypatch.setattr(polarity_study, "FINE_TUNING", {**polarity_study.FINE_TUNING, "batching.num_shapes": 1})
    folder = tmp_path / "data"
    for name in ("movie_reviews", "multi30k", "tatoeba_de_en"):
        (folder / name).mkdir(parents=True)
    for name, word in (("pos", "good"), ("neg", "bad")):
        lines = "".join(f"a {word} film number {i}\n" for i in range(60))
        (folder / "movie_reviews" / f"rt-polarity.{name}").write_text(lines)
    for name in polarity_study.OTHER_TEXT:
        (folder / name).write_bytes(gzip.compress(b"A dog runs, it's fast.\n" * 20))
    return folder


def test_text_is_written_as_the_reviews_are():
    assert plain_text("It's a Dog, (and 2 cats)!") == "it's a dog , ( and 2 cats ) !"


def test_a_study_makes_its_table_and_nothing_twice(small, tmp_path):
    study = Study(tmp_path / "study", small, pretraining_steps=4)
    study.make("pretrained", 1.0)
    table = (tmp_path / "study" / "table.md").read_text()
    assert "| 100% | not yet | " in table
    assert "| 10% | not yet | not yet |" in table
    train = (tmp_path / "study" / "text" / "train.txt").read_text().splitlines()
    assert "a dog runs , it's fast ." in train
    test = {text for (text,) in polarity_study.read_movie_reviews(small / "movie_reviews")["test"].texts}
    assert not test & set(train)
    (cell,) = json.loads((tmp_path / "study" / "table.json").read_text())
    assert len(cell["test"]) == 2
    runs = {run.name for run in (tmp_path / "study").iterdir() if run.is_dir()}
    assert len([name for name in runs if name.startswith("pretrained-1.0-")]) == 2 + 2
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "study").rglob("metrics.jsonl")}
    study.make("pretrained", 1.0)
    assert files == {file: file.stat().st_mtime_ns for file in files}
    assert (tmp_path / "study" / "table.md").read_text() == table


def test_missing_data_is_named(small, tmp_path):
    (small / "multi30k" / "train.en.gz").unlink()
    with pytest.raises(UserError, match=r"lacks multi30k/train\.en\.gz"):
        Study(tmp_path / "study", small, 4).make("pretrained", 1.0)
