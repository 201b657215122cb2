"""BERT of Hugging Face: the same logits from its weights, and weights, settings and tokenizer both ways."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.command_line import default_config
from transformer_jax.analysis.run import load_run
from transformer_jax.conversion.bert import config_of, leaves, mapping, settings_of
from transformer_jax.conversion.mapping import flatten, unflatten
from transformer_jax.conversion.runs import export_run, import_folder
from transformer_jax.conversion.tensors import read_tensors, write_tensors
from transformer_jax.errors import UserError
from transformer_jax.models.encoder import Classifier, ClassifierConfig, EncoderConfig, MaskedLanguageModel

FIXTURES = Path(__file__).resolve().parents[1] / "models" / "fixtures"
pytestmark = pytest.mark.xdist_group("conversion_bert")


def read_fixture(name: str) -> tuple[EncoderConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """BERT of random weights as Hugging Face has it: config, tensors, and the other arrays."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    there = {k.removeprefix("config/"): int(v) for k, v in arrays.items() if k.startswith("config/")}
    tensors = {k.removeprefix("theirs/"): v for k, v in arrays.items() if k.startswith("theirs/")}
    found = config_of(there, pooler="bert.pooler.dense.weight" in tensors)
    if name == "bert_classifier":
        own: Any = dict(num_labels=3, level="sentence", pooling="first")
        found = ClassifierConfig(**dataclasses.asdict(found), **own)
    return found, tensors, arrays


def apply(c: EncoderConfig, params: Any, *args: Any) -> np.ndarray:
    model = Classifier(c) if isinstance(c, ClassifierConfig) else MaskedLanguageModel(c)
    run = jax.jit(lambda p, a: model.apply({"params": p}, *a))
    return np.asarray(run(params, args))


@pytest.mark.parametrize("name", ["bert", "bert_classifier"])
def test_logits_equal_berts(name: str) -> None:
    c, tensors, given = read_fixture(name)
    here = (given["inputs"] != 0).astype(np.int32)
    params = unflatten(mapping(c).ours(tensors, name))
    found = apply(c, params, given["inputs"], here, given["types"])
    assert given["logits"].std() > 0.2
    seen: Any = here > 0 if name == "bert" else slice(None)
    np.testing.assert_allclose(found[seen], given["logits"][seen], atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "bert_classifier"])
def test_berts_weights_go_both_ways_unchanged(name: str) -> None:
    c, tensors, _ = read_fixture(name)
    back = mapping(c).theirs(mapping(c).ours(tensors, name))
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor)


def test_settings_go_both_ways() -> None:
    c, _, _ = read_fixture("bert")
    assert config_of(settings_of(c), pooler=False) == c
    told, _, _ = read_fixture("bert_classifier")
    settings = settings_of(told, ["bad", "fair", "good"])
    assert settings["architectures"] == ["BertForSequenceClassification"]
    assert settings["id2label"] == {0: "bad", 1: "fair", 2: "good"}


def write_published(folder: Path, c: EncoderConfig, tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> None:
    names = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "##s", "run", "."]
    names += [chr(97 + i) for i in range(c.vocab_size - len(names))]
    folder.mkdir()
    write_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("".join(f"{name}\n" for name in names))


def published(folder: Path, **changes: Any) -> Path:
    """A folder as published: uncased, with pooler, next-sentence prediction, a tied layer, and old names."""
    c, tensors, _ = read_fixture("bert")
    tensors |= {
        "bert.pooler.dense.weight": np.eye(16, dtype=np.float32),
        "bert.pooler.dense.bias": np.ones(16, np.float32),
    }
    tensors |= {"cls.seq_relationship.bias": np.zeros(2, np.float32)}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
    write_published(folder, c, old, {**settings_of(c), **changes})
    return folder


def test_a_published_folder_becomes_a_run_and_goes_back(tmp_path: Path) -> None:
    """Its tokens have other numbers here, and mean the same."""
    folder = published(tmp_path / "there")
    assert import_folder(folder, tmp_path / "run", default_config) == "masked_lm"
    run = load_run(tmp_path / "run")
    assert run.tokenizer.pieces(run.encode("The dogs run.")) == ["[CLS]", "the", "dog", "##s", "run", ".", "[SEP]"]
    c, tensors, _ = read_fixture("bert")
    theirs = np.asarray([[3, 6, 7, 8, 9, 10, 4]])  # by vocab.txt
    logits = apply(c, unflatten(mapping(c).ours(tensors, "")), theirs, np.ones_like(theirs))
    ours = run.tokenizer.encode(["the"])[0][0]
    ids = np.asarray([run.encode("The dogs run.")])
    found = apply(run.model.config, run.params, ids, np.ones_like(ids))
    np.testing.assert_allclose(found[0, :, ours], logits[0, :, 6], atol=1e-5)
    assert run.params["pooler"]["bias"].tolist() == [1.0] * 16
    export_run(run, tmp_path / "back")
    files = {file.name for file in (tmp_path / "back").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    import_folder(tmp_path / "back", tmp_path / "again", default_config)
    again = flatten(load_run(tmp_path / "again").params)
    for path, value in flatten(run.params).items():
        np.testing.assert_array_equal(again[path], value)
    assert len(read_tensors(tmp_path / "back")) == len(again)


@pytest.mark.parametrize("level", ["sentence", "token"])
def test_a_published_classifier_becomes_a_run_and_comes_back_as_it_was(level: str, tmp_path: Path) -> None:
    """That of tokens has a pooler that nothing reads, as some do."""
    c, tensors, _ = read_fixture("bert_classifier")
    assert isinstance(c, ClassifierConfig)
    of_level = dataclasses.replace(c, level=level, pooler=level == "sentence")  # type: ignore[arg-type]
    settings = settings_of(of_level, ["bad", "fair", "good"])
    write_published(tmp_path / "there", c, tensors, settings)
    assert import_folder(tmp_path / "there", tmp_path / "run", default_config) == "classification"
    run = load_run(tmp_path / "run")
    assert run.labels == ("bad", "fair", "good")
    theirs = np.asarray([[3, 6, 7, 8, 9, 10, 4]])  # by vocab.txt
    used = leaves(of_level)
    params = unflatten({path: leaf for path, leaf in mapping(c).ours(tensors, "").items() if path in used})
    logits = apply(of_level, params, theirs, np.ones_like(theirs))[0]
    expected = jax.nn.log_softmax(logits if level == "sentence" else logits[[1, 2, 4, 5]])
    (found,) = run.log_probs(["The dogs run ."])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    export_run(run, tmp_path / "back")
    assert import_folder(tmp_path / "back", tmp_path / "again", default_config) == "classification"
    again = load_run(tmp_path / "again")
    assert (again.labels, again.config) == (run.labels, run.config)
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    assert again.predict(["The dogs run ."]) == run.predict(["The dogs run ."])


def test_what_is_not_bert_is_named(tmp_path: Path) -> None:
    c, tensors, _ = read_fixture("bert")
    with pytest.raises(UserError, match=r"word_embeddings\.weight is \(32, 16\); its config asks for \(31, 16\)"):
        mapping(dataclasses.replace(c, vocab_size=31)).ours(tensors, "x")
    with pytest.raises(UserError, match=r"model\.norm_placement is 'pre'; BERT can only express 'post'"):
        settings_of(dataclasses.replace(c, norm_placement="pre"))
    with pytest.raises(UserError, match="hidden_act is 'tanh'"):
        import_folder(published(tmp_path / "other", hidden_act="tanh"), tmp_path / "run", default_config)
    c, tensors, _ = read_fixture("bert_classifier")
    write_published(tmp_path / "regression", c, tensors, {**settings_of(c), "problem_type": "regression"})
    with pytest.raises(UserError, match="problem_type is 'regression'"):
        import_folder(tmp_path / "regression", tmp_path / "run", default_config)
    (tmp_path / "other" / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"no vocab\.txt"):
        import_folder(tmp_path / "other", tmp_path / "run", default_config)
    assert not (tmp_path / "run").exists()
