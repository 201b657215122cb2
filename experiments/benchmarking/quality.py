"""The quality that a config reaches from a cold start, and how long that takes."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarking.processes import COMMANDS, write_config
from experiments.peers.environments import clean_environment
from transformer_jax.analysis.run import require_family
from transformer_jax.analysis.tables import Table
from transformer_jax.data.cache import VARIABLE
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain

Result = dict[str, Any]
SCORES = {"bleu": "BLEU", "bleu_lowercase_tokenized": "lower-cased", "chrf": "chrF2"}


def measure_quality(mapping: Any) -> Result:
    """Trains a translation config in a temporary run, with an empty cache, and scores it on validation.

    Returns: "seconds": the whole of experiments/train.py, from the start of Python: reading the data, tokenizers,
      compiling, training, and validating as often as the config has it. "scores": experiments/evaluate.py's of the
      validation split.
    Raises: UserError for another family, and when a command fails; what it said is on the terminal.
    """
    values = plain(mapping)
    require_family("translation", parse_config(values))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workdir, settings = folder / "run", {VARIABLE: str(folder / "cache")}
        configured = write_config(folder / "config.py", values)
        begin = time.monotonic()
        _stream("train.py", [f"--config={configured}", f"--workdir={workdir}"], settings)
        seconds = time.monotonic() - begin
        _stream("evaluate.py", [str(workdir), "--split=validation"], settings)
        [record] = (workdir / "scores").glob("*.json")
        scores = json.loads(record.read_text())["scores"]
    steps = values["training"]["total_steps"]
    return {"measured": "quality", "config": values["name"], "seconds": seconds, "steps": steps, "scores": scores}


def quality_table(result: Result) -> Table:
    """A row for this project and for each toolkit beside it."""
    rows = [
        [name, f"{each['seconds']:,.0f}", f"{each['steps']:,}", *(f"{each['scores'][score]:.2f}" for score in SCORES)]
        for name, each in {"transformer_jax": result, **result.get("against", {})}.items()
    ]
    return Table(f"{result['config']}, validation", ("", "seconds", "steps", *SCORES.values()), rows)


def _stream(command: str, words: Sequence[str], settings: dict[str, str]) -> None:
    started = [sys.executable, str(COMMANDS / command), *words]
    status = subprocess.run(started, env=clean_environment(settings), check=False).returncode
    if status:
        raise UserError(f"experiments/{command} ended with status {status}; what it said is above.")
