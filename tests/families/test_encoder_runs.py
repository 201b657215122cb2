"""Encoders from a config to what they say: pretrained, filling in masks, then fine-tuned on sentences and on words."""

import io
import json
import random
import signal

import jax
import numpy as np
import pytest

from experiments.command_line import load_config
from tests.made_files import CHECKOUT, FULL, assert_same_run, tiny_config, write_pairs
from tests.made_text import tiny_masked_config, write_text
from transformer_jax.analysis.predictions import write_predictions
from transformer_jax.analysis.run import load_run
from transformer_jax.data.label_batches import LabelledEpoch
from transformer_jax.data.packing import PackedEpoch
from transformer_jax.errors import UserError
from transformer_jax.training.loop import Outcome, train

pytestmark = pytest.mark.xdist_group("encoder_runs")
LEARNS = {
    "model__d_model": 32,
    "model__d_ff": 64,
    "model__dropout_rate": 0.0,
    "model__embedding_dropout_rate": 0.0,
    "model__attention_dropout_rate": 0.0,
    "training__total_steps": 300,
    "checkpoints__every_steps": 300,
    "evaluation__every_steps": 300,
    "evaluation__weights": "latest",
}
FINE = {
    "dataset.train": "train.tsv",
    "dataset.validation": "valid.tsv",
    "batching.tokens_per_batch": 256,
    "batching.num_shapes": 1,
    "batching.max_length": 16,
    "batching.rows_multiple": 4,
    "model.dropout_rate": 0.0,
    "model.embedding_dropout_rate": 0.0,
    "optimizer.peak_learning_rate": 3e-3,
    "optimizer.warmup_steps": 5,
    "training.total_steps": 60,
    "training.log_every_steps": 7,
    "checkpoints.every_steps": 20,
    "checkpoints.keep_latest": 3,
    "evaluation.every_steps": 20,
}
RESUMED = {key: value for key, value in FULL.items() if key.startswith("training")}
WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


def fine_config(folder, spec="sentences", run=None, **changes):
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    values = {"dataset.path": folder, **FINE, **changed}
    config = CHECKOUT / "configs" / "classification.py"
    return load_config(f"{config}:{spec}{f',{run}' if run else ''}", [f"{k}={v}" for k, v in values.items()])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Text; sentences whose first word means "few" or "many"; and words that are odd or not."""
    folder = write_text(tmp_path_factory.mktemp("text"))
    rng = random.Random(1)
    for name, count in (("train", 200), ("valid", 40)):
        pairs = [rng.choices(WORDS, k=2) for _ in range(count)]
        lines = [f"{'few' if WORDS.index(a) < 3 else 'many'}\t{a} {b}.\n" for a, b in pairs]
        (folder / f"{name}.tsv").write_text("".join(lines))
        odd = lambda word: "B-ODD" if WORDS.index(word) % 2 == 0 else "O"
        rows = ["".join(f"{word} {odd(word)}\n" for word in pair) for pair in pairs]
        (folder / f"{name}.conll").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "masked"
    assert train(tiny_masked_config(data, **LEARNS), folder) == Outcome(300, finished=True)
    return folder


@pytest.fixture(scope="module")
def fine_tuned(data, pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine") / "sentences"
    assert train(fine_config(data, run=pretrained), folder) == Outcome(60, finished=True)
    return folder


def test_it_fills_in_what_the_rest_of_the_text_tells(pretrained):
    run = load_run(pretrained)
    history = run.history()
    assert history["validation/accuracy"].dropna().iloc[-1] > 0.35  # of seven words, and not all can be told
    for word in ("two", "seven"):
        (fillings,) = run.fill_mask(f"{word} [MASK].")
        assert fillings[0].token == word
        assert fillings[0].text == f"{word} {word}."
        assert fillings[0].probability > fillings[1].probability
        assert sum(filling.probability for filling in fillings) <= 1
    assert run.predict(["[MASK] three.", "six [MASK]."]) == ["three three.", "six six."]
    both = run.fill_mask("[MASK] [MASK].", top=2)
    assert [len(fillings) for fillings in both] == [2, 2]
    (states,) = run.states(["one one."])
    assert states.shape == (5, 32)
    with pytest.raises(UserError, match=r"no \[MASK\] in 'one'"):
        run.fill_mask("one")
    with pytest.raises(UserError, match="the model reads at most 46"):
        run.fill_mask("[MASK]" + " one" * 60)


def test_evaluation_hides_the_same_tokens_every_time(pretrained):
    run = load_run(pretrained)
    record, text = run.evaluate("validation", None)
    trained = run.history()["validation/loss"].dropna().iloc[-1]
    assert record["scores"]["loss"] == pytest.approx(trained, rel=1e-4)
    assert f"{record['scores']['accuracy']:8.4f}" in text
    with pytest.raises(UserError, match="has only"):
        run.evaluate("nowhere", None)


def test_activations_are_captured_and_replaced(pretrained):
    run = load_run(pretrained)
    inputs = run.inputs(["one one.", "seven"])
    found = run.capture(["one one.", "seven"], names=["*/weights", "logits"])
    assert found["encoder/layer_0/self_attention/weights"].shape == (2, 2, 5, 5)
    np.testing.assert_allclose(found["encoder/layer_0/self_attention/weights"][0].sum(-1), 1, atol=1e-5)
    assert found["encoder/layer_0/self_attention/weights"][1, :, 0, 3:].max() < 1e-6  # padding is not seen
    changed = run.intervene({"encoder/layer_0/residual_after": lambda x, name: 0 * x})
    other = changed.capture_inputs(inputs, ["logits"])["logits"]
    assert np.abs(other - found["logits"]).max() > 0.1
    assert changed.fill_mask("two [MASK].", top=1) != run.fill_mask("two [MASK].", top=1)
    assert run.pieces(inputs)[0][1] == "one"


def test_a_classifier_starts_from_the_encoder(pretrained, fine_tuned):
    there, run = load_run(pretrained), load_run(fine_tuned)
    report = (fine_tuned / "initialization.json").read_text()
    assert '"not_taken": {}' in report
    assert '"embedding/embedding"' in report
    assert run.tokenizer.names == there.tokenizer.names
    assert run.labels == ("few", "many")
    assert run.history()["validation/accuracy"].max() > 0.95
    assert run.predict(["two seven.", "seven two."]) == ["few", "many"]
    (found,) = run.classify(["five five."])
    assert list(found) == ["many", "few"]
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    record, text = run.evaluate("validation", None)
    assert record["scores"]["accuracy"] == pytest.approx(run.history()["validation/accuracy"].max())
    assert "macro f1" in text
    captured = run.capture(["two two.", "six two."], names=["logits"])["logits"]
    np.testing.assert_allclose(jax.nn.softmax(captured[0])[1], run.classify(["two two."])[0]["many"], atol=1e-4)
    output = io.StringIO()
    write_predictions(run, ["two two.", "six one."], output)
    assert [line.split("\t")[0] for line in output.getvalue().splitlines()] == ["few", "many"]


def test_words_are_labelled(data, pretrained, tmp_path):
    files = {"dataset__train": "train.conll", "dataset__validation": "valid.conll"}
    train(fine_config(data, "words", pretrained, **files), tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.history()["validation/entity_f1"].max() > 0.9
    assert run.predict(["one two three", ["four", "five"]]) == [["B-ODD", "O", "B-ODD"], ["O", "B-ODD"]]
    assert len(run.predict(["one " * 30])[0]) == 14  # what there was room for
    record, _ = run.evaluate("test", str(data / "valid.conll"))
    assert record["scores"]["entity_f1"] == pytest.approx(run.history()["validation/entity_f1"].max())
    output = io.StringIO()
    write_predictions(run, ["one two"], output)
    assert output.getvalue() == "one\tB-ODD\ntwo\tO\n\n"


def test_a_translations_encoder_is_a_start_too(data, tmp_path):
    pairs = write_pairs(tmp_path / "pairs")
    short = dict(training__total_steps=2, evaluation__decode="none", evaluation__metric="loss", batching__num_shapes=1)
    train(tiny_config(pairs, **short), tmp_path / "translation")
    config = fine_config(data, run=tmp_path / "translation", training__total_steps=20)
    assert train(config, tmp_path / "run").finished
    there, run = load_run(tmp_path / "translation"), load_run(tmp_path / "run", "20")
    report = (tmp_path / "run" / "initialization.json").read_text()
    assert '"embedding/embedding"' in report and '"not_taken": {}' in report  # noqa: PT018
    assert run.model.config.scale_embeddings
    texts = ["one two", "three"]
    assert run.tokenizer.encode(texts) == there.tokenizers.source.encode(texts)
    assert len(run.predict(texts)) == 2


@pytest.mark.parametrize("kind", ["masked", "classifier"])
def test_interruptions_change_nothing(kind, data, pretrained, tmp_path, monkeypatch):
    """Stopped in the middle of a log window, right after a checkpoint, and before the first one."""
    averaged = {"evaluation__weights": "average", "evaluation__average": 3, **RESUMED}
    if kind == "masked":
        config, epoch = tiny_masked_config(data, **averaged), PackedEpoch
    else:
        config, epoch = fine_config(data, run=pretrained, **averaged), LabelledEpoch
    assert train(config, tmp_path / "whole") == Outcome(60, finished=True)
    batch, made = epoch.batch, []

    def batch_and_stop(self, index, *shard):
        made.append(index)
        if len(made) == due:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, index, *shard)

    monkeypatch.setattr(epoch, "batch", batch_and_stop)
    done = 0
    for step in (3, 20, 33):
        due = step - done
        made.clear()
        assert train(config, tmp_path / "run") == Outcome(step, finished=False)
        done = step
    monkeypatch.undo()
    assert train(config, tmp_path / "run") == Outcome(60, finished=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("spec", "changes", "parts"),
    [
        ("masked", {"batching__length": 64}, ["batching.length=64", "model.max_length=48"]),
        ("masked", {"batching__length": 2}, ["batching.length is 2", "at least 3"]),
        ("masked", {"masking__rate": 1.0}, ["masking.rate is 1.0"]),
        ("masked", {"dataset__validation": ""}, ["no validation split"]),
        ("fine", {"model__activation": "relu"}, ["model.activation='gelu_exact' there, 'relu' here"]),
        (
            "fine",
            {"batching__max_length": 80, "batching__tokens_per_batch": 512},
            ["batching.max_length=80", "model.max_length=48"],
        ),
        ("fine", {"dataset__train": "nowhere.tsv"}, ["dataset.train", "nowhere.tsv"]),
        ("fine", {"tokenizer__vocab_size": 60}, ["initialize.tokenizer=True", "vocab_size: 64 -> 60"]),
        ("fine", {"evaluation__metric": "entity_f1"}, ["entity_f1", "'sentence'"]),
        ("fine", {"dataset__validation": ""}, ["no validation split"]),
    ],
)
def test_bad_input_leaves_no_run(spec, changes, parts, data, pretrained, tmp_path):
    if spec == "masked":
        config = tiny_masked_config(data, **changes)
    else:
        config = fine_config(data, run=pretrained, **changes)
    with pytest.raises(UserError) as error:
        train(config, tmp_path / "run")
    assert all(part in str(error.value) for part in parts), str(error.value)
    left = {entry.name for entry in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert left <= {".lock"}


def test_a_run_without_an_encoder_is_no_start(tmp_path):
    spec = f"{CHECKOUT / 'configs' / 'classification.py'}:sentences,{tmp_path}"
    with pytest.raises(Exception, match="is no run"):
        load_config(spec)
    lstm = {"family": "translation", "model": {"architecture": "lstm"}, "tokenizer": {}}
    (tmp_path / "config.json").write_text(json.dumps(lstm))
    with pytest.raises(Exception, match="is a translation of LSTMs"):
        load_config(spec)
