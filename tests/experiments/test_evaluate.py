"""What is done with a finished run: scored, translated with, opened in Python."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.experiments.commands import command
from tests.made_files import FULL, tiny_config, write_pairs
from transformer_jax.analysis.ensemble import EnsembleRun
from transformer_jax.analysis.run import load_run
from transformer_jax.errors import UserError
from transformer_jax.training.loop import train

pytestmark = pytest.mark.xdist_group("evaluate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert train(tiny_config(data, **FULL), run).finished
    return run


def test_evaluate_writes_a_record_and_the_translations(data, trained):
    done = command("evaluate", trained, "--checkpoint=average:2", "--beam_size=3")
    assert done.returncode == 0, done.stderr
    (file,) = (trained / "scores").glob("test-average2-*.json")
    record = json.loads(file.read_text())
    assert str(file) in done.stdout
    assert record["scores"]["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    assert record["scores"]["bleu_signature"] in done.stdout
    assert {"bleu", "chrf", "chrf_signature", "bleu_lowercase_tokenized", "exact_match", "perplexity"} <= set(
        record["scores"]
    )
    assert record["checkpoint"]["steps"] == [40, 60]
    assert record["checkpoint"]["weights"] == {"kind": "latest"}
    assert record["decoding"]["beam_size"] == 3
    assert record["data"]["sentences"] == 24
    assert len(record["data"]["sha256"]) == 64
    assert record["packages"]["jax"] == jax.__version__
    lines = (trained / record["translations"]).read_text().split("\n")
    assert len(lines) == 25
    assert lines[-1] == ""
    # Files with the same pairs give the same scores.
    words = f"--files={data / 'test.en'},{data / 'test.de'}"
    done = command("evaluate", trained, words, "--checkpoint=average:2", "--beam_size=3")
    assert done.returncode == 0, done.stderr
    (again,) = (trained / "scores").glob("files-average2-*.json")
    assert json.loads(again.read_text())["scores"] == record["scores"]


def test_an_ensemble_is_evaluated_under_the_name_of_all_its_runs(trained):
    """Of a run with itself it is the run; of two checkpoints it is another one, as it is in Python."""
    alone, _ = load_run(trained).evaluate("test", None)
    done = command("evaluate", trained, f"--ensemble={trained}")
    assert done.returncode == 0, done.stderr
    assert "ensemble of 2" in done.stdout
    record = json.loads(Path(done.stdout.rpartition("record: ")[2].strip()).read_text())
    file = done.stdout.rpartition("translations: ")[2].splitlines()[0]
    assert len(Path(file).read_text().splitlines()) == record["data"]["sentences"]
    assert record["ensemble"] == [{"run": str(trained), "checkpoint": alone["checkpoint"]}] * 2
    assert record["scores"]["bleu"] == alone["scores"]["bleu"]
    assert record["scores"]["perplexity"] == pytest.approx(alone["scores"]["perplexity"], rel=1e-4)
    done = command("translate", trained, f"--ensemble={trained}@20,{trained}@40", "--scores", text="one two three\n")
    assert done.returncode == 0, done.stderr
    members = [load_run(trained), load_run(trained, "20"), load_run(trained, "40")]
    ensemble = EnsembleRun(members)
    ((found,),) = ensemble.translator().stream(["one two three"])
    assert done.stdout == f"1\t{found.score:.4f}\t{found.log_prob:.4f}\t{found.text}\n"
    # Token by token log of the mean: at least the mean of the logs, at most the largest.
    pair = [[ensemble.tokenizers.source.encode(["one two three"])[0]]] * 2
    own = np.stack([member.token_log_probs(*pair)[0] for member in members])
    mean = ensemble.token_log_probs(*pair)[0]
    assert (own.mean(axis=0) < mean).all()
    assert (mean < own.max(axis=0)).all()


def test_candidates_of_several_checkpoints_are_chosen_from(trained):
    words = [f"--ensemble={trained}@20", "--method=sample", "--rerank=chrf", "--candidates=3"]
    done = command("evaluate", trained, "--pool", *words)
    assert done.returncode == 0, done.stderr
    assert "ensemble of 2" in done.stdout
    assert "sample, 3 candidates by expected chrf" in done.stdout
    record = json.loads(Path(done.stdout.rpartition("record: ")[2].strip()).read_text())
    assert (record["pooled"], record["decoding"]["candidates"]) == (True, 3)
    done = command("translate", trained, "--pool", f"--ensemble={trained}@20", text="one\n")
    assert done.returncode == 2
    assert "decoding.rerank, which is 'none'" in done.stderr


def test_runs_that_cannot_be_an_ensemble_are_named(data, trained, tmp_path):
    other = tmp_path / "other"
    assert train(
        tiny_config(data, **{**FULL, "tokenizer__vocab_size": 70, "training__total_steps": 20}), other
    ).finished
    run = load_run(trained)
    with pytest.raises(UserError, match="different vocabularies"):
        EnsembleRun([run, load_run(other)])
    turned = load_run(trained)
    turned.config = replace(turned.config, dataset=replace(turned.config.dataset, source_language="fr"))
    with pytest.raises(UserError, match="translates fr-de"):
        EnsembleRun([run, turned])
    with pytest.raises(UserError, match="at least two members; 1 given"):
        EnsembleRun([run])
    with pytest.raises(UserError, match="capture and intervene in its members"):
        EnsembleRun([run, run]).capture(["one"], ["eins"])


def test_evaluate_refuses_what_is_not_there(data, trained, tmp_path):
    for words, parts in [
        (["--split=tset"], ["tset", "train, validation, test"]),
        (["--checkpoint=average:9"], ["average:9", "[20, 40, 60]"]),
        ([f"--files={data / 'train.en'},{data / 'test.de'}"], ["not aligned"]),
        (["--files=a.en,b.de", "--split=test"], ["--files and --split=test: give one of them"]),
    ]:
        done = command("evaluate", trained, *words)
        assert done.returncode == 2
        assert all(part in done.stderr for part in parts), done.stderr
        assert "Traceback" not in done.stderr


def test_translate_keeps_lines_in_place(trained, tmp_path):
    text = "one two\n\nthree\n\n\nfour five six\n"
    (tmp_path / "in.en").write_text(text)
    done = command("translate", trained, tmp_path / "in.en", f"--output={tmp_path / 'out.de'}")
    assert done.returncode == 0, done.stderr
    piped = command("translate", trained, text=text)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == (tmp_path / "out.de").read_text()
    lines = piped.stdout.split("\n")
    assert len(lines) == 7
    assert not any(lines[i] for i in (1, 3, 4, 6))
    assert piped.stdout.split("\n")[:-1] == load_run(trained).translate(text.split("\n")[:-1])


def test_load_run_opens_every_choice(trained):
    run = load_run(trained)
    flat = lambda params: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    step = {number: flat(run.load(str(number))) for number in (20, 40, 60)}
    np.testing.assert_array_equal(flat(run.load("latest")), step[60])
    mean = (step[40].astype(np.float64) + step[60]) / 2
    np.testing.assert_array_equal(flat(run.load("average:2")), mean.astype(np.float32))
    assert load_run(trained, "average:2").steps == [40, 60]
    assert not np.array_equal(flat(run.load("ema")), step[60])
    # Best is what evaluation scored: here the mean of the checkpoints up to it.
    bleu = run.history()["validation/bleu"].dropna().to_dict()
    best = max(bleu, key=lambda number: (bleu[number], number))
    assert run.steps == [best]
    used = [step[number] for number in (20, 40, 60) if number <= best]
    np.testing.assert_allclose(flat(run.params), np.mean(used, axis=0), rtol=1e-5, atol=1e-7)
    assert run.weights == {"kind": "average", "steps": [number for number in (20, 40, 60) if number <= best]}
    assert load_run(trained, "ema").weights == {"kind": "ema"}
    assert run.score(["one two"], ["eins zwei"]).shape == (1,)


@pytest.mark.parametrize("checkpoint", ["beste", "30", "average:0", "average:4", "average", "ema:2", ""])
def test_load_run_names_what_it_has(trained, checkpoint):
    with pytest.raises(UserError, match=r"\[20, 40, 60\]"):
        load_run(trained, checkpoint)


def test_load_run_without_a_run_or_a_checkpoint(trained, tmp_path):
    with pytest.raises(UserError, match="Did you mean"):
        load_run(trained.with_name("trainde"))
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_run(tmp_path)


def test_average_makes_a_run_that_opens_like_any_other(trained, tmp_path):
    output = tmp_path / "averaged"
    done = command("average", trained, "--last=3", f"--output={output}")
    assert done.returncode == 0, done.stderr
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    averaged = load_run(output)
    same(averaged.params, load_run(trained, "average:3").params)
    record = {"run": str(trained), "steps": [20, 40, 60]}
    assert json.loads((output / "averaged.json").read_text()) == record
    assert averaged.translate(["one two", ""])[1] == ""
    done = command("evaluate", output, "--beam_size=1")
    assert done.returncode == 0, done.stderr
    (file,) = (output / "scores").glob("*.json")
    assert json.loads(file.read_text())["checkpoint"]["averaged"] == record
    for words, part in [
        ([trained, "--last=2", f"--output={output}"], "holds a run already"),
        ([trained, "--last=9", f"--output={tmp_path / 'other'}"], "only 3 checkpoints"),
        ([trained], "--output is required"),
    ]:
        done = command("average", *words)
        assert done.returncode == 2, done.stdout
        assert part in done.stderr
    assert not (tmp_path / "other").exists()
