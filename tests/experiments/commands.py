"""Runs the commands as a person does, in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.made_files import CHECKOUT, CONFIG, overrides


def environment(devices: int = 2) -> dict[str, str]:
    """The settings that prepare_cpu would make, for few cores."""
    return {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
        "TRANSFORMER_JAX_PREPARED": "1",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }


def command(name: str, *words: object, text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs experiments/NAME.py to its end."""
    return subprocess.run(
        [sys.executable, CHECKOUT / "experiments" / f"{name}.py", *map(str, words)],
        input=text,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
        check=False,
    )


def train_words(data: Path, run: Path, **changes: object) -> list[str]:
    words = [f"--config.{override}" for override in overrides(data, **changes)]
    return [f"--config={CONFIG}", f"--workdir={run}", *words]


def train(data: Path, run: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    return command("train", *train_words(data, run, **changes))


def train_and_signal(number: signal.Signals, step: int, data: Path, run: Path, **changes: object) -> tuple[int, str]:
    """Starts train.py and signals it as soon as its metrics reach a step; returns (exit status, output)."""
    with subprocess.Popen(
        [sys.executable, CHECKOUT / "experiments" / "train.py", *train_words(data, run, **changes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            metrics = run / "metrics.jsonl"
            if metrics.exists() and f'"step": {step},' in metrics.read_text():
                process.send_signal(number)
                break
            time.sleep(0.002)
        output, _ = process.communicate(timeout=300)
    return process.returncode, output
