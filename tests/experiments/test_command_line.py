"""The front door of the commands: overrides arrive, and each kind of mistake ends with one helpful line."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError

CONFIG = """
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config(arg):
    if arg not in ("tiny", "base"):
        raise ValueError(f"unknown variant {arg!r}: use tiny or base")
    return ConfigDict({
        "model": {"num_heads": 4 if arg == "tiny" else 8, "name": "x", "tied": True, "layers": (1, 2)},
        "optimizer": {"peak_learning_rate": 1e-3, "warmup_steps": placeholder(int), "clip": None},
    })
"""

COMMAND = '''
"""Trains something."""
import sys
from absl import flags
from experiments import command_line

CONFIG = command_line.define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)

def main(arguments):
    print(CONFIG.value.model.num_heads, WORKDIR.value, "jax" in sys.modules)

if __name__ == "__main__":
    command_line.run_main(main)
'''


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    (tmp_path / "recipe.py").write_text(CONFIG)
    return str(tmp_path / "recipe.py")


def test_overrides_reach_the_config(config_file):
    config = command_line.load_config(
        f"{config_file}:tiny",
        ["model.num_heads=16", "model.tied=false", "model.layers=(3,)", "optimizer.warmup_steps=7"],
    )
    assert config.model.to_dict() == {"num_heads": 16, "name": "x", "tied": False, "layers": (3,)}
    assert config.optimizer.warmup_steps == 7
    assert command_line.load_config(f"{config_file}:base").model.num_heads == 8
    with pytest.raises(AttributeError):
        config.model.typo = 1


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.peak_learning_rat=1", ["config.optimizer", "Did you mean peak_learning_rate?"]),
        ("optimiser.peak_learning_rate=1", ["optimiser", "Did you mean optimizer?"]),
        ("items=1", ["no key items", "model, optimizer"]),
        ("model.num_heads=abc", ["model.num_heads=abc", "int is wanted", "4"]),
        ("model.num_heads=None", ["model.num_heads=None", "int is wanted"]),
        ("model.num_heads=", ["model.num_heads=", "int is wanted"]),
        ("optimizer.warmup_steps=None", ["warmup_steps=None", "int is wanted"]),
        ("optimizer.clip=1.0", ["optimizer.clip", "placeholder"]),
        ("model.tied=maybe", ["model.tied=maybe", "bool is wanted"]),
        ("model.name=None", ["model.name=None", "empty"]),
        ("model.num_heads.x=1", ["config.model.num_heads is 4", "no key x"]),
        ("model={'num_heads': 1}", ["section", "num_heads"]),
    ],
)
def test_a_wrong_override_is_named_with_the_cure(config_file, override, parts):
    with pytest.raises(UserError) as error:
        command_line.load_config(f"{config_file}:tiny", [override])
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_config_files(config_file, tmp_path):
    def message(spec: str) -> str:
        with pytest.raises(UserError) as error:
            command_line.load_config(spec)
        return str(error.value)

    assert "recipe.py:7: ValueError: unknown variant 'tyni': use tiny or base" in message(f"{config_file}:tyni")
    assert "needs one" in message(config_file)
    assert f"Did you mean {config_file}?" in message(str(tmp_path / "recipes.py") + ":tiny")
    assert "Config files there: none" in message(str(tmp_path / "nowhere" / "x.py"))
    for text, part in {
        "def get_config():\n  return 1": "returns int, ConfigDict is wanted",
        "x = 1": "defines no function get_config",
        "import no_such_module": "broken.py:1: ModuleNotFoundError",
        "def get_config(:": "broken.py:1: SyntaxError",
    }.items():
        (tmp_path / "broken.py").write_text(text)
        assert part in message(str(tmp_path / "broken.py"))
    (tmp_path / "plain.py").write_text("from ml_collections import ConfigDict\nget_config = lambda: ConfigDict()")
    assert "takes no argument" in message(str(tmp_path / "plain.py") + ":tiny")


def test_flags_and_positional_arguments():
    values = flags.FlagValues()
    flags.DEFINE_string("text", None, "", flag_values=values, required=True)
    assert command_line.parse(["a", "b", "--text=x"], ("RUN", "RUN..."), values) == ["a", "b"]
    for argv, part in [
        (["a"], "--text is required"),
        (["a", "--txet=x"], "Did you mean: text"),
        (["a", "b", "--text=x"], "wanted: RUN."),
        (["--text=x"], "given are none"),
    ]:
        values.unparse_flags()
        values["text"].value = None
        with pytest.raises(UserError, match=part):
            command_line.parse(argv, ("RUN",), values)


def test_run_main_turns_errors_into_status_and_one_line(capsys, monkeypatch):
    monkeypatch.setattr(command_line.os, "_exit", sys.exit)

    def fail(error: BaseException):
        def main(arguments: list[str]) -> None:
            raise error

        return main

    again = "Make room and run the same command again.\n"
    for main, status, text in [
        (fail(UserError("no such file")), 2, "error: no such file\n"),
        (fail(KeyboardInterrupt()), 130, "interrupted\n"),
        (fail(OSError(28, "No space left on device", "a/b")), 2, f"No space left on device: 'a/b'. {again}"),
        (fail(RuntimeError("failed: No space left on device\nat byte 7")), 2, f"device at byte 7. {again}"),
        (lambda arguments: 3, 3, ""),
        (lambda arguments: None, None, ""),
    ]:
        with pytest.raises(SystemExit) as stop:
            command_line.run_main(main, argv=[])
        assert stop.value.code == status
        assert capsys.readouterr().err.endswith(text)
    with pytest.raises(OSError, match="Input/output error"):
        command_line.run_main(fail(OSError(5, "Input/output error")), argv=[])
    with pytest.raises(ValueError, match="a bug"):
        command_line.run_main(fail(ValueError("a bug")), argv=[])


def test_a_real_command_stops_before_work_and_before_importing_jax(config_file, tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, tmp_path / "command.py", f"--config={config_file}:tiny", *words],
            capture_output=True,
            text=True,
            check=False,
        )

    good = run("--workdir=w", "--config.model.num_heads=2")
    assert (good.returncode, good.stdout) == (0, "2 w False\n"), good.stderr
    start = time.monotonic()
    bad = run("--workdir=w", "--config.model.num_head=2")
    assert time.monotonic() - start < 5
    assert (bad.returncode, bad.stdout) == (2, "")
    expected = "--config.model.num_head=2: there is no key num_head in config.model. Did you mean num_heads?"
    assert bad.stderr == f"command.py: error: {expected}\n"
    help_text = run("--help")
    assert help_text.returncode == 0
    assert all(part in help_text.stdout for part in ("Trains something.", "--config:", "--workdir:"))
