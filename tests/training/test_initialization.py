"""Starting from another run: what is taken, what is not, and that it is told."""

import json

import numpy as np
import pytest

from tests.made_files import arrays, tiny_config, write_pairs
from transformer_jax.errors import UserError
from transformer_jax.training.initialization import InitializeConfig, take
from transformer_jax.training.loop import train

pytestmark = pytest.mark.xdist_group("initialization")
SHORT = {"training__ema_decay": 0.9, "evaluation__decode": "none", "evaluation__metric": "loss"}
START = {**SHORT, "training__total_steps": 1, "optimizer__peak_learning_rate": 1e-30}  # the first step moves nothing


def config(parameters=("*",)):
    return InitializeConfig("runs/other", "best", parameters, tokenizer=True)


def test_patterns_shapes_and_vocabularies():
    here = {"encoder": {"a": np.zeros(2), "b": np.zeros(3)}, "decoder": {"a": np.zeros(2)}, "table": np.zeros(5)}
    there = {"encoder": {"a": np.ones(2), "b": np.ones(4)}, "table": np.ones(5), "more": np.ones(1)}
    taken, report = take(config(), here, there, foreign={"table"})
    assert {path: array.tolist() for path, array in taken.items()} == {"encoder/a": [1.0, 1.0]}
    assert report.not_taken == {
        "encoder/b": "shape (4,) there, (3,) here",
        "decoder/a": "not in that run",
        "table": "another vocabulary",
    }
    assert "initialised    1 of 4 parameters from runs/other" in str(report)
    assert "encoder/b: shape (4,) there, (3,) here" in str(report)
    taken, report = take(config(("table", "decoder/*")), here, there, foreign=set())
    assert (report.taken, report.left_out) == (("table",), ("encoder/a", "encoder/b"))
    with pytest.raises(
        UserError, match=r"nothing of runs/other can be taken with the patterns \['enc'\](.|\n)*encoder/a"
    ):
        take(config(("enc",)), here, there, foreign=set())
    with pytest.raises(UserError, match=r"initialize\.parameters is empty"):
        config(())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("other")
    assert train(tiny_config(data, **SHORT, training__total_steps=20), run).finished
    return run


def tree(run, step, part):
    prefix = f"{step}/{part}/"
    return {name.removeprefix(prefix): value for name, value in arrays(run).items() if name.startswith(prefix)}


def test_a_whole_run_is_taken_with_its_tokenizer_average_and_a_fresh_optimizer(data, other, tmp_path, capfd):
    more = write_pairs(tmp_path / "more", train=300, most_words=5)  # whose own tokenizer would be another
    run = tmp_path / "run"
    train(tiny_config(more, **START, initialize__run=other), run)
    assert (run / "tokenizer").is_dir()
    for file in (other / "tokenizer").iterdir():
        assert (run / "tokenizer" / file.name).read_bytes() == file.read_bytes()
    wanted = tree(other, 20, "evaluated") or tree(other, 20, "params")
    for part in ("params", "ema_params"):
        found = tree(run, 1, part)
        assert found.keys() == wanted.keys()
        for path in wanted:
            np.testing.assert_allclose(found[path], wanted[path], rtol=1e-6, err_msg=path)
    count = len(wanted)
    assert f"initialised    {count} of {count} parameters from {other}" in capfd.readouterr().err
    report = json.loads((run / "initialization.json").read_text())
    assert (len(report["taken"]), report["not_taken"]) == (count, {})


def test_another_vocabulary_takes_all_but_what_depends_on_it(data, other, tmp_path):
    more = write_pairs(tmp_path / "more", train=300, most_words=5)
    run = tmp_path / "run"
    train(tiny_config(more, **START, initialize__run=other, initialize__tokenizer=False), run)
    report = json.loads((run / "initialization.json").read_text())
    assert set(report["not_taken"].values()) == {"another vocabulary"}
    assert all("embed" in path or "table" in path for path in report["not_taken"])
    assert report["taken"]


def test_what_cannot_be_is_told_before_work(data, other, tmp_path):
    for changes, match in [
        ({"initialize__run": tmp_path / "nowhere"}, "is no run"),
        ({"initialize__run": other, "tokenizer__vocab_size": 96}, r"tokenizers of .*vocab_size: 64 -> 96"),
        ({"initialize__run": other, "initialize__checkpoint": "newest"}, r"initialize.checkpoint='newest'.*\[20\]"),
        ({"initialize__run": other, "initialize__checkpoint": "7"}, r"checkpoint='7'.*\[20\]"),
    ]:
        with pytest.raises(UserError, match=match):
            train(tiny_config(data, **START, **changes), tmp_path / "run")
        left = {entry.name for entry in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
        assert left <= {".lock"}
