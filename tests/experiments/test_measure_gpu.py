"""The measurements for a GPU are commands that exist, on text that can be tokenized and packed."""

from pathlib import Path

import numpy as np
import pytest

from experiments import measure_gpu
from experiments.benchmarking import made_text, scans
from experiments.command_line import load_config
from tests.experiments.commands import command
from tests.made_files import CHECKOUT
from transformer_jax.experiment import parse_config, plain

FLAGS = "\n".join(
    (CHECKOUT / "experiments" / name).read_text()
    for name in ("benchmark.py", "decoding_flags.py", "train.py", "evaluate.py")
)


COMMANDS = measure_gpu.commands("gpu", 60.0, {"shakespeare": "s", "multi30k": "m", "tatoeba": "t"})


@pytest.mark.parametrize("name", COMMANDS)
def test_its_commands_have_sound_configs_and_known_flags(name, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    for words in COMMANDS[name]:
        assert (CHECKOUT / words[0]).is_file()
        given = [word.removeprefix("--").partition("=") for word in words if word.startswith("--")]
        for flag, _, _ in given:
            assert flag == "config" or flag.startswith("config.") or f'("{flag}"' in FLAGS, flag
        specs = [value for flag, _, value in given if flag == "config"]
        overrides = [f"{flag[7:]}={value}" for flag, _, value in given if flag.startswith("config.")]
        varied = [value for flag, _, value in given if flag == "of"]
        for spec in specs:
            config = load_config(spec, overrides)
            parse_config(config)
            for key, values in (scans.points_of(plain(config), varied) if varied else {}).items():
                for value in values:
                    parse_config(load_config(spec, [*overrides, f"{key}={value}"]))


def test_the_list_can_be_pasted():
    listed = command("measure_gpu", "--list", "--only=base,beam", "--results=there")
    assert listed.returncode == 0
    assert "# base\npython experiments/benchmark.py train --config=configs/wmt14.py:base" in listed.stdout
    assert "--output=there/beam.json" in listed.stdout
    wrong = command("measure_gpu", "--list", "--only=bases")
    assert wrong.returncode == 2
    assert "no measurement bases" in wrong.stderr
    nowhere = command("measure_gpu", "--list", "--tatoeba=nowhere")
    assert (nowhere.returncode, "--tatoeba=nowhere: there is no such folder" in nowhere.stderr) == (2, True)


def test_what_fails_or_takes_too_long_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    """All that a command has started is ended with it; what there is of results is kept after each."""
    script, started = tmp_path / "script.py", tmp_path / "started"
    script.write_text(
        "import json, pathlib, subprocess, sys, time\n"
        "print('says', sys.argv[1])\n"
        "if sys.argv[1] == 'hangs':\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"    pathlib.Path({str(started)!r}).write_text(str(child.pid))\n"
        "    time.sleep(100)\n"
        "if sys.argv[1] == 'works':\n"
        "    pathlib.Path(sys.argv[2]).write_text(json.dumps({'speed': 3}))\n"
        "sys.exit(sys.argv[1] == 'fails')\n"
    )
    again, works = [str(script), "again"], [str(script), "works", str(tmp_path / "c.json")]
    (tmp_path / "b.json").write_text('{"speed": "of another time"}')
    for name, several, status in (
        ("a", [[str(script), "hangs"]], "ended after 5 s"),
        ("b", [[str(script), "fails"], again], "failed with status 1"),
        ("c", [again, works], "done"),
    ):
        found = measure_gpu._measure(name, several, tmp_path, 5.0)
        assert found["status"] == status
        assert found["seconds"] < 20
        assert ("says again" in found["log"]) == (name == "c")
        assert found.get("result") == ({"speed": 3} if name == "c" else None)
    child = Path(f"/proc/{started.read_text()}/status")
    assert not child.exists() or "zombie" in child.read_text()


def test_made_text_is_as_asked_for(tmp_path):
    made_text.write_pairs(tmp_path / "pairs", {"train": 300, "test": 20}, words=500)
    sides = [(tmp_path / "pairs" / f"train.{side}").read_text().splitlines() for side in ("en", "de")]
    assert [len(side) for side in sides] == [300, 300]
    lengths = np.array([[len(line.split()) for line in side] for side in sides])
    assert lengths.min() >= 2
    assert lengths.max() <= 84
    assert (lengths[0] / lengths[1]).max() < 1.3
    words = [word for line in sides[0] for word in line.split()]
    counts = np.unique(words, return_counts=True)[1]
    assert 100 < len(counts) <= 500
    assert 0.1 < counts.max() / len(words) < 0.2  # 1 / (1 + 1/2 + … + 1/500) is 0.147
    made_text.write_documents(tmp_path / "documents", {"train": 2}, length=100)
    assert len((tmp_path / "documents" / "train-01.txt").read_text().split()) == 100
