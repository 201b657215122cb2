"""Run directories: what is recorded, what may be resumed, and what is refused before any work."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from transformer_jax import run_directory
from transformer_jax.errors import UserError
from transformer_jax.run_directory import RunDirectory, write_json

CONFIG = {"seed": 1, "model": {"num_heads": 4, "layers": (1, 2)}, "training": {"log_every_steps": 10}}

HOLD = """
import sys, time
from transformer_jax.run_directory import RunDirectory
run = RunDirectory.create_or_resume(sys.argv[1], {"seed": 1}, devices=[])
print("held", flush=True)
time.sleep(60)
"""


def start(path: Path, config: dict = CONFIG) -> RunDirectory:
    return RunDirectory.create_or_resume(path, config, devices=["cpu:0"])


def test_a_new_run_records_config_and_environment(tmp_path):
    with start(tmp_path / "a" / "b") as run:
        assert json.loads((run.path / "config.json").read_text()) == {
            **CONFIG,
            "model": {"num_heads": 4, "layers": [1, 2]},
        }
        assert run.checkpoints == run.path / "checkpoints"
        (entry,) = run.environments
    assert entry["devices"] == ["cpu:0"]
    assert entry["packages"]["jax"]
    assert sys.executable in entry["command"]
    assert set(entry) == {
        "command",
        "time",
        "config_changes",
        "python",
        "platform",
        "devices",
        "git",
        "packages",
    }
    assert not list(run.path.glob("*.tmp"))


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    start(Path("~/runs/a")).close()
    assert RunDirectory.open("~/runs/a").path == tmp_path / "runs" / "a"


def test_devices_are_those_of_jax_unless_given(tmp_path):
    with RunDirectory.create_or_resume(tmp_path, CONFIG) as run:
        assert len(run.environments[0]["devices"]) == jax.device_count()
        assert jax.devices()[0].device_kind in run.environments[0]["devices"][0]


def test_the_same_config_resumes_and_the_resume_is_recorded(tmp_path):
    start(tmp_path).close()
    (tmp_path / "checkpoints").mkdir()
    changed = {**CONFIG, "training": {"log_every_steps": 20}}
    start(tmp_path, changed).close()
    run = RunDirectory.open(tmp_path)
    assert [entry["config_changes"] for entry in run.environments] == [[], ["training.log_every_steps: 10 -> 20"]]
    assert run.config["training"]["log_every_steps"] == 20


def test_another_experiment_is_refused_by_key_and_left_alone(tmp_path):
    start(tmp_path).close()
    other = {"seed": 2, "model": {"num_heads": 8, "layers": (1, 2)}, "training": {"log_every_steps": 99}}
    with pytest.raises(UserError, match=r"another config(.|\n)*model\.num_heads: 4 -> 8\n  seed: 1 -> 2") as error:
        start(tmp_path, other)
    assert "log_every_steps" not in str(error.value)
    assert RunDirectory.open(tmp_path).config["seed"] == 1
    assert len(RunDirectory.open(tmp_path).environments) == 1
    start(tmp_path).close()  # the refused attempt holds no lock


def test_safe_keys_are_whole_names_or_sections():
    safe = lambda key: run_directory._is_safe(key, ("training.total_steps", "logging."))
    assert safe("training.total_steps")
    assert safe("logging.every")
    assert not safe("training.total_steps_more")
    assert not safe("logging2.every")


def test_places_where_no_run_can_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="is a file"):
            start(path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"not empty and holds no run \(it has thesis.tex\)"):
        start(tmp_path / "full")
    with pytest.raises(UserError, match=r"JSON"):
        start(tmp_path / "new", {"a": object()})
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not bind root, who may run the tests
    with pytest.raises(UserError, match="not writable"):
        start(tmp_path / "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_directory_without_write_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for path in (tmp_path, tmp_path / "run"):
            with pytest.raises(UserError, match=r"not writable|cannot be made"):
                start(path)
    finally:
        tmp_path.chmod(0o700)


def test_a_second_live_process_is_refused_and_a_killed_one_is_not_in_the_way(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            start(tmp_path, {"seed": 1})
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / ".lock").exists()
    start(tmp_path, {"seed": 1}).close()


def test_a_start_killed_before_the_config_was_written_can_be_repeated(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".config.json.123.tmp").write_text('{"se')
    start(tmp_path).close()


def test_open_reads_without_a_lock_and_finds_runs_nearby(tmp_path):
    with start(tmp_path / "runs" / "multi30k-tiny") as run:
        assert RunDirectory.open(run.path).config["seed"] == 1
    start(tmp_path / "runs" / "phrases").close()
    for path, part in [
        ("runs/multi30k-tyni", f"Did you mean {run.path}?"),
        ("runs", "Runs in .*/runs: multi30k-tiny, phrases."),
        ("runs/phrases/checkpoints", "The run is .*phrases."),
        ("runs/phrases/config.json", "The run is .*phrases."),
    ]:
        with pytest.raises(UserError, match=part):
            RunDirectory.open(tmp_path / path)
    (run.path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        _ = RunDirectory.open(run.path).config


def test_write_json_replaces_whole_files(tmp_path):
    write_json(tmp_path / "scores" / "a.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "scores" / "a.json").read_text() == '{\n  "a": "ü",\n  "b": 1\n}\n'
    with pytest.raises(UserError, match="JSON"):
        write_json(tmp_path / "scores" / "a.json", float("nan"))
    assert [file.name for file in (tmp_path / "scores").iterdir()] == ["a.json"]


def test_a_run_notices_that_its_directory_was_taken_away(tmp_path):
    with start(tmp_path / "run") as run:
        run.check_held()
        run.path.rename(tmp_path / "moved")
        with pytest.raises(UserError, match="removed or replaced while this run"):
            run.check_held()
        with start(tmp_path / "run"), pytest.raises(UserError, match="removed or replaced"):
            run.check_held()  # another run is there now
    RunDirectory.open(tmp_path / "moved").check_held()  # a reader holds nothing


def test_what_a_run_was_started_with_stays(tmp_path):
    with start(tmp_path) as run:
        run.pin("data", "a" * 64)
        run.pin("tokenizers", "b" * 64)
        run.pin("data", "a" * 64)
    with start(tmp_path) as run, pytest.raises(UserError, match=r"The data of .* was aaaaaaaaaaaa, now it is cccc"):
        run.pin("data", "c" * 64)


def test_a_tokenizer_is_there_when_it_is_whole(tmp_path):
    def write(folder: Path, failure: BaseException) -> None:
        (folder / "text.model").write_bytes(b"half")
        raise failure

    with start(tmp_path) as run:
        with pytest.raises(SystemExit), run.new_tokenizer() as folder:
            write(folder, SystemExit(9))  # a kill, but for the process
        with (
            pytest.raises(UserError, match=r"tokenizer cannot be written: No space left on device\. Make room"),
            run.new_tokenizer() as folder,
        ):
            write(folder, OSError(28, "No space left on device"))
        assert {entry.name for entry in tmp_path.iterdir()} == {".lock", "config.json", "environment.json"}
        with pytest.raises(SystemExit), run.new_tokenizer() as folder:
            write(folder, SystemExit(9))
        assert not run.tokenizer.exists()
        with run.new_tokenizer() as folder:
            assert not list(folder.iterdir())
            (folder / "tokenizer.json").write_text("{}")
        assert [file.name for file in run.tokenizer.iterdir()] == ["tokenizer.json"]


def test_names_of_outputs_stay_inside_the_run(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with start(tmp_path / "run") as run:
        assert run.inside("scores/a.json") == tmp_path / "run" / "scores" / "a.json"
        (run.path / "link").symlink_to(tmp_path / "elsewhere")
        for name in ("../a", "scores/../../a", "/etc/passwd", "link/a", ".", ""):
            with pytest.raises(UserError, match="lies outside the run directory"):
                run.inside(name)


def test_the_caller_may_name_more_that_is_safe(tmp_path):
    start(tmp_path).close()
    changed = {**CONFIG, "seed": 2}
    with pytest.raises(UserError, match="another config"):
        start(tmp_path, changed)
    RunDirectory.create_or_resume(tmp_path, changed, devices=[], safe=("seed",)).close()


def test_git_state(tmp_path):
    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    assert run_directory.git_state(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("x")
    git("add", "file")
    git("commit", "-m", "x")
    clean = run_directory.git_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert not clean["dirty"]
    (tmp_path / "file").write_text("y")
    assert run_directory.git_state(tmp_path) == {**clean, "dirty": True}
    (tmp_path / "inside").mkdir()
    assert run_directory.git_state(tmp_path / "inside") is None
