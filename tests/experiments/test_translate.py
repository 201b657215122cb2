"""The translate command as a person meets it: help and errors. What it does is tested under decoding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


def command(*arguments, text=""):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        [sys.executable, CHECKOUT / "experiments" / "translate.py", *map(str, arguments)],
        input=text,
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )


def test_help_names_every_decoding_setting():
    found = command("--help")
    assert found.returncode == 0
    for flag in ("--output", "--n_best", "--checkpoint", "--beam_size", "--temperature", "--long_lines"):
        assert flag in found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run"], "no-such-run"),
        ([".", "no-such-file"], "no-such-file: there is no such file"),
        ([".", "--beam_sise=3"], "beam_size"),
        ([], "RUN"),
    ],
)
def test_mistakes_end_in_one_line_that_names_them(arguments, message):
    found = command(*arguments)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
