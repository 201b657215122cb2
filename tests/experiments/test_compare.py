"""compare.py on runs: groups by config, reuses evaluations, and says the same in JSON, Markdown and on the terminal."""

import json
import shutil

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from experiments.compare import gather
from tests.experiments.commands import command
from transformer_jax.analysis import comparison
from transformer_jax.analysis.run import load_run
from transformer_jax.errors import UserError

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def compared(study, tmp_path_factory):
    """What the command prints and writes."""
    output = tmp_path_factory.mktemp("compared")
    files = [f"--json={output / 'all.json'}", f"--markdown={output / 'all.md'}"]
    new, old = [study / "new" / f"new-{k}" for k in (1, 2)], [study / f"old-{k}" for k in (1, 2)]
    done = command("compare", *new, "--against", *old, "--changed=2", *files)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((output / "all.json").read_text()), (output / "all.md").read_text()


def test_scores_are_those_of_the_translations(study, compared):
    _, data, _ = compared
    (one,) = data["comparisons"]
    assert one["config_changes"] == ["optimizer.peak_learning_rate: 0.01 -> 0.02"]
    assert (one["system"]["label"], one["baseline"]["label"]) == ("new", "old")
    assert one["system"]["seeds"] == one["baseline"]["seeds"] == [1, 2]
    bleu = one["metrics"][0]
    references = (study.parent / "data" / "test.de").read_text().splitlines()
    scores = []
    for path in one["system"]["runs"]:
        (file,) = load_run(path).directory.translations.glob("*.txt")
        scores.append(BLEU().corpus_score(file.read_text().splitlines(), [references]).score)
    assert bleu["scores"] == pytest.approx(scores)
    assert bleu["difference"] == pytest.approx(np.mean(scores) - np.mean(bleu["baseline_scores"]))
    assert bleu["difference"] > 0
    assert sum(row["sentences"] for row in one["bleu_by_source_words"]) == len(references) == 24
    assert sum(row["words"] for row in one["word_f1_by_training_count"]) == sum(len(r.split()) for r in references)
    assert [row["chrf_change"] for row in one["changed_sentences"]] == sorted(
        (row["chrf_change"] for row in one["changed_sentences"]), reverse=True
    )


def test_perplexity_is_that_of_evaluate(study, compared):
    _, data, _ = compared
    found = data["comparisons"][0]["metrics"][2]
    assert found["name"] == "perplexity"
    for path, value in zip(data["comparisons"][0]["system"]["runs"], found["scores"], strict=True):
        (record,) = load_run(path).directory.scores.glob("*.json")
        assert json.loads(record.read_text())["scores"]["perplexity"] == pytest.approx(value, rel=1e-6)


def test_the_terminal_and_markdown_say_the_same(compared):
    printed, data, markdown = compared
    bleu = data["comparisons"][0]["metrics"][0]
    for text in (printed, markdown):
        assert f"{np.mean(bleu['scores']):.2f} ± {np.std(bleu['scores'], ddof=1):.2f}" in text
        assert f"standard error {bleu['test_set_error']:.2f}" in text
        assert bleu["signature"] in text
        for row in data["comparisons"][0]["changed_sentences"]:
            assert row["source"] in text
    assert "| system | BLEU | chrF2 | perplexity (per token) |" in markdown
    assert "\n\\* p < 0.05" in markdown


def test_nothing_is_translated_twice(study, compared, monkeypatch):
    monkeypatch.setattr("transformer_jax.analysis.scores.evaluate_run", None)
    old, new = ([str(study / name) for name in names] for names in (("old-1", "old-2"), ("new/new-1", "new/new-2")))
    systems, (baseline,) = comparison.open_systems(new, "best"), comparison.open_systems(old, "best")
    test = comparison.open_test_set(baseline.runs[0], "test", None)
    again = comparison.compare(systems, baseline, test, changed=2)
    assert json.loads(json.dumps(comparison.as_json(again, test))) == compared[1]


def test_runs_are_grouped_by_their_configs(study):
    paths = [str(study / name) for name in ("old-1", "new/new-1", "old-2", "new/new-2")]
    assert [(s.label, s.seeds) for s in comparison.open_systems(paths, "best")] == [("old", [1, 2]), ("new", [1, 2])]


def test_what_is_no_sample_is_refused(study, tmp_path):
    shutil.copytree(study / "old-1", tmp_path / "copy")
    with pytest.raises(UserError, match="same config and seed 1"):
        comparison.open_systems([str(study / "old-1"), str(tmp_path / "copy")], "best")
    (system,) = comparison.open_systems([str(study / "old-1")], "best")
    with pytest.raises(UserError, match="given twice"):
        comparison.check_same_task([system, system])
    mixed = command("compare", study / "new" / "new-1", "--against", study / "old-1", study / "new" / "new-2")
    assert mixed.returncode == 2
    assert "--against has runs of 2 configs (old-1, new-2)" in mixed.stderr


def test_against_takes_all_words_up_to_the_next_flag():
    words = ["a", "--against", "b", "c", "--split=test", "d"]
    assert gather(words, "against") == ["a", "--against=b", "--against=c", "--split=test", "d"]
