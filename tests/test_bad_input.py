"""Bad input: one line that names it and the cure, and nothing left behind that looks like a run."""

import os
import subprocess
import sys

import jax
import pytest

from tests.experiments.commands import environment, train_words
from tests.made_files import CHECKOUT, CONFIG, overrides, tiny_config, write_pairs
from transformer_jax.errors import UserError
from transformer_jax.experiment import plain
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.loop import train
from transformer_jax.training.metric_writer import read_metrics

pytestmark = pytest.mark.xdist_group("bad_input")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"), train=60)


def refuse(workdir, data, *parts, **changes):
    """Training must fail with a message that has all parts, and leave no run."""
    with pytest.raises(UserError) as error:
        train(tiny_config(data, **changes), workdir)
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{missing} not in: {error.value}"
    left = {entry.name for entry in workdir.iterdir()} if workdir.exists() else set()
    assert left <= {".lock"}


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ({"optimizer__peak_learning_rat": 1}, ["peak_learning_rat", "Did you mean peak_learning_rate?"]),
        ({"model__num_heads": "four"}, ["model.num_heads=four", "int is wanted"]),
        ({"model__nrom": "rms_norm"}, ["nrom", "Did you mean norm?"]),
    ],
)
def test_misspelt_key_and_wrong_type_on_the_command_line(data, tmp_path, override, parts):
    refuse(tmp_path / "run", data, *parts, **override)


def test_misspelt_key_and_wrong_type_in_a_config_of_python(data, tmp_path):
    for section, key, value, parts in [
        ("model", "num_head", 4, ["model.num_head", "Did you mean num_heads?"]),
        ("training", "total_steps", "many", ["training.total_steps", "'many'", "int is wanted"]),
        ("evaluation", "decode", "gredy", ["evaluation.decode", "'gredy'", "Did you mean greedy?"]),
    ]:
        config = plain(tiny_config(data))
        config[section][key] = value
        with pytest.raises(UserError) as error:
            train(config, tmp_path / "run")
        assert all(part in str(error.value) for part in parts), str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model__num_heads": 3}, ["d_model=16", "num_heads=3", "1, 2, 4, 8, 16"]),
        ({"tokenizer__joint": False}, ["model.tie_embeddings='all'", "tokenizer.joint=True"]),
        (
            {"tokenizer__joint": False, "model__tie_embeddings": "none", "dataset__bidirectional": True},
            ["dataset.bidirectional=True", "tokenizer.joint=True"],
        ),
        ({"evaluation__decode": "none"}, ["evaluation.metric='bleu'", "evaluation.decode"]),
        ({"evaluation__weights": "ema"}, ["evaluation.weights='ema'", "training.ema_decay"]),
        ({"evaluation__average": 9}, ["evaluation.average=9", "checkpoints.keep_latest"]),
        (
            {"training__accumulation": 3},
            ["batching.rows_multiple=4", "training.accumulation=3", "multiple of"],
        ),
        (
            {"batching__max_length": 300, "batching__tokens_per_batch": 4000},
            ["max_length=300", "model.max_length=256"],
        ),
        ({"mesh__tensor": 3}, ["mesh", "3", f"{jax.device_count()} are present", "set sizes that divide"]),
        ({"mesh__data": 0}, ["mesh", "at least 1"]),
        ({"mesh__fsdp": -1}, ["mesh", "one may be -1"]),
        ({"optimizer__weight_decay": 0.1}, ["optimizer.weight_decay", "adamw"]),
        ({"task__regularizer": "r_drop"}, ["task.regularizer='r_drop'", "task.regularizer_weight=0.0", "above 0"]),
        ({"task__regularizer_weight": 5.0}, ["task.regularizer='none'", "task.regularizer_weight=5.0"]),
    ],
)
def test_impossible_combinations(data, tmp_path, changes, parts):
    refuse(tmp_path / "run", data, *parts, **changes)


def test_missing_misaligned_and_empty_files(data, tmp_path):
    run = tmp_path / "run"
    refuse(run, data, "dataset.train", "nowhere.en", "not a file", dataset__train="nowhere.en,train.de")
    (data / "short.de").write_text("eins\n")
    refuse(run, data, "short.de has 1 lines", "train.en has 60", dataset__train="train.en,short.de")
    (data / "empty.tsv").write_text("")
    refuse(run, data, "empty.tsv", "no lines", dataset__train="empty.tsv")
    (data / "blank.tsv").write_text("\teins\n\tzwei\n")
    refuse(run, data, "filters leave no training pair", "'empty': 2", dataset__train="blank.tsv")
    refuse(run, data, "no such folder", dataset__path=data / "nowhere")


def test_a_missing_validation_split_is_told_before_training(data, tmp_path):
    refuse(tmp_path / "run", data, "no validation split", "dataset.validation", dataset__validation="")


def test_a_validation_line_of_hundreds_of_words_ends_no_training(data, tmp_path):
    """The pair is left out of the loss, and counted; for BLEU it is translated in pieces, whatever the setting."""
    (tmp_path / "long.tsv").write_text("one two\teins zwei\n" + "one " * 300 + "\t" + "eins " * 300 + "\n")
    changes = {"training__total_steps": 1, "decoding__long_lines": "refuse", "batching__num_shapes": 1}
    assert train(tiny_config(data, **changes, dataset__validation=tmp_path / "long.tsv"), tmp_path / "run").finished
    metrics = {row["name"]: row["value"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert metrics["perplexity_pairs_left_out"] == 1
    assert metrics["perplexity"] > 1
    assert "bleu" in metrics
    (tmp_path / "long.tsv").write_text("one " * 300 + "\teins\n")
    parts = ("No validation pair", "model.max_length=256")
    refuse(tmp_path / "none", data, *parts, dataset__validation=tmp_path / "long.tsv")


def test_a_vocabulary_that_the_text_cannot_fill(data, tmp_path):
    refuse(tmp_path / "run", data, "tokenizer.vocab_size", "5000", tokenizer__vocab_size=5000)


def test_a_workdir_of_another_experiment_or_of_other_things(data, tmp_path):
    run = tmp_path / "run"
    RunDirectory.create_or_resume(run, plain(tiny_config(data, model__d_model=32)), devices=[]).close()
    before = {file: file.read_bytes() for file in run.iterdir() if file.name != ".lock"}
    with pytest.raises(UserError, match=r"holds a run of another config(.|\n)*model\.d_model: 32 -> 16"):
        train(tiny_config(data), run)
    assert before == {file: file.read_bytes() for file in run.iterdir() if file.name != ".lock"}
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and holds no run \(it has thesis\.tex\)"):
        train(tiny_config(data), other)
    assert (other / "thesis.tex").read_text() == "years of work"
    assert not (other / "config.json").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        train(tiny_config(data), tmp_path / "file" / "run")


def test_a_checkpoint_that_does_not_match_the_config(data, tmp_path):
    """The config was edited by hand on both sides; what differs is named by its path in the parameters."""
    changes = {"training__total_steps": 1, "evaluation__decode": "none", "evaluation__metric": "loss"}
    assert train(tiny_config(data, **changes), tmp_path).finished
    (tmp_path / "config.json").unlink()
    checkpoints = tmp_path.with_name("checkpoints-apart")
    (tmp_path / "checkpoints").rename(checkpoints)
    other = tmp_path / "other"
    RunDirectory.create_or_resume(other, plain(tiny_config(data, **changes, model__d_ff=64)), devices=[]).close()
    checkpoints.rename(other / "checkpoints")
    with pytest.raises(UserError) as error:
        train(tiny_config(data, **changes, model__d_ff=64), other)
    for part in ("does not match", "params/", "feed_forward", "float32[16, 32]", "float32[16, 64] wanted"):
        assert part in str(error.value)
    assert (other / "checkpoints" / "1").is_dir()


def test_no_permission_to_write(data, tmp_path):
    """In a process that has given up root's right to write anywhere."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    words = train_words(data, folder / "run")
    if os.getuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
        probe = subprocess.run([*command, sys.executable, "-c", "import jax"], capture_output=True, check=False)
        if probe.returncode:
            pytest.skip("as root, with no way to be someone else who can run Python")
    else:
        command = []
    done = subprocess.run(
        [*command, sys.executable, CHECKOUT / "experiments" / "train.py", *words],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    if "No module named" in done.stderr:
        pytest.skip("the other user cannot read this checkout")
    assert done.returncode == 2, done.stderr
    assert "cannot be made: Permission denied" in done.stderr
    assert "--workdir" in done.stderr
    assert not list(folder.iterdir())


def test_the_command_stops_on_a_misspelt_key_before_any_work(data, tmp_path):
    words = [f"--config.{override}" for override in overrides(data, optimizer__warmup_stepz=3)]
    done = subprocess.run(
        [
            sys.executable,
            CHECKOUT / "experiments" / "train.py",
            f"--config={CONFIG}",
            f"--workdir={tmp_path}/run",
            *words,
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("Did you mean warmup_steps?\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
