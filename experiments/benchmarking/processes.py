"""Measures what only fresh processes can show: starting, from nothing and with caches, and everything in turn."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.peers.environments import clean_environment, run
from transformer_jax.data.cache import VARIABLE
from transformer_jax.errors import UserError
from transformer_jax.experiment import plain
from transformer_jax.run_directory import write_json

HERE = Path(__file__).resolve().parent
COMMANDS = HERE.parent
FORCED_TOKENS = 25  # of outputs decoded with random weights
Result = dict[str, Any]


def write_config(path: Path, mapping: Any) -> Path:
    """A config with all its overrides as a file that --config can name."""
    text = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({plain(mapping)!r})\n"
    path.write_text(text)
    return path


def measured(words: Sequence[str], folder: Path, settings: Mapping[str, str] | None = None) -> Result:
    """What experiments/benchmark.py measures with these words in a process of its own, which has these variables too.

    Raises: UserError when it fails.
    """
    target = folder / "result.json"
    command = [sys.executable, str(COMMANDS / "benchmark.py"), *words, f"--output={target}"]
    run(command, folder / "benchmark.log", settings)
    return json.loads(target.read_text())


def measure_start(mapping: Any) -> Result:
    """Seconds from the start of a process to the end of its first training step, in three processes one after another.

    They share a temporary cache folder: the first finds nothing in it, the second data and tokenizers but no compiled
    programs, the third all. Data that has to be downloaded is so in the first.

    Returns: "starts": for each of the three the seconds of its parts, which add up to "all". "compile" is everything
      between data and the first step: tracing, programs, and the state.
    """
    starts = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configured, target, cache = folder / "config.json", folder / "result.json", folder / "cache"
        write_json(configured, plain(mapping))
        for state in ("nothing cached", "data cached", "all cached"):
            if state == "data cached":
                shutil.rmtree(cache / "compiled", ignore_errors=True)
            words = [str(HERE / "first_step.py"), str(configured), str(time.monotonic()), str(target)]
            run([sys.executable, *words], folder / "start.log", {VARIABLE: str(cache)})
            starts[state] = json.loads(target.read_text())
    return {"measured": "start", "config": plain(mapping)["name"], "starts": starts}


def measure_first_translation(path: str, checkpoint: str, text: str) -> Result:
    """Seconds from the start of experiments/translate.py to the first translation that it writes, twice.

    Returns: "starts": with an empty cache folder, and again with the programs that were compiled then.
    Raises: UserError when it writes none.
    """
    starts = {}
    command = [sys.executable, str(COMMANDS / "translate.py"), path, f"--checkpoint={checkpoint}"]
    with tempfile.TemporaryDirectory() as folder:
        environment, source = clean_environment({VARIABLE: f"{folder}/cache"}), Path(folder) / "text"
        source.write_text(text + "\n")
        for state in ("nothing cached", "all cached"):
            begin = time.monotonic()
            with (
                source.open() as given,
                subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, text=True, env=environment) as process,
            ):
                assert process.stdout is not None
                line = process.stdout.readline()
                starts[state] = {"all": time.monotonic() - begin}
            if process.returncode or not line:
                raise UserError(
                    f"{' '.join(command[1:])} translated nothing; it ended with status {process.returncode}."
                )
    return {"measured": "start", "config": path, "starts": starts}


def measure_all(mapping: Any, seconds: float) -> Result:
    """Starting, training, the pipeline, checkpoints and, of translation, beam and greedy search of random weights.

    Each is measured in a process of its own, so that its peak memory is its own.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = f"--config={write_config(folder / 'config.py', mapping)}"
        actions = [["train", f"--seconds={seconds}"], ["pipeline", f"--seconds={seconds / 4}"], ["checkpoints"]]
        if plain(mapping)["family"] == "translation":
            decode = ["decode", "--random", f"--forced_tokens={FORCED_TOKENS}"]
            actions += [[*decode, f"--method={method}"] for method in ("beam", "greedy")]
        results = [measure_start(mapping)]
        for words in actions:
            print(f"measuring {' '.join(words)}", flush=True)
            results.append(measured([*words, given], folder))
    return {"measured": "all", "config": plain(mapping)["name"], "results": results}
