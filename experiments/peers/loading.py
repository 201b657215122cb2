"""Opening a trained model and translating one sentence in a fresh process: seconds and peak memory, in turn."""

import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from experiments.peers import exports
from experiments.peers.environments import interpreter, run
from transformer_jax.analysis.run import load_run
from transformer_jax.analysis.tables import Table
from transformer_jax.conversion.runs import export_run
from transformer_jax.run_directory import write_json

HERE = Path(__file__).resolve().parent
SENTENCE = "Two men are cooking."
Result = dict[str, Any]


def compare_loading(path: str, checkpoint: str, forced_tokens: int, rounds: int, folder: Path) -> Result:
    """This project's run, and the same weights in Transformers, as MarianMT or as Pegasus, both ``rounds`` times.

    Ours is measured with an empty cache of compiled programs, once, and then with what that left, as the second
    process of a user finds it. Outputs are forced to one length; all cores are free for all.

    Raises: UserError for a run that Transformers cannot open, and where a process fails.
    """
    opened = load_run(path, checkpoint)
    python = interpreter(folder, "marian")
    request, marian = folder / "request.json", folder / "marian-model"
    shutil.rmtree(marian, ignore_errors=True)
    export_run(opened, marian)
    asked = exports.decoding_request(opened, [], forced_tokens, 1)
    write_json(request, {**asked, "sentence": SENTENCE})

    empty = folder / "empty-cache"
    shutil.rmtree(empty, ignore_errors=True)
    ours = [sys.executable, str(HERE / "our_load.py"), str(Path(path).absolute()), checkpoint, str(request)]
    theirs = [str(python), str(HERE / "marian_load.py"), str(marian), str(request)]
    settings = {"TRANSFORMER_JAX_CACHE": str(empty)}
    first = _timed(ours, folder, "ours", settings)
    found: dict[str, list[Result]] = {"transformer_jax": [], "Transformers": []}
    for number in range(1, rounds + 1):
        found["transformer_jax"].append(_timed(ours, folder, "ours", settings))
        found["Transformers"].append(_timed(theirs, folder, "marian", {}))
        seconds = " and ".join(f"{rows[-1]['process']:.2f} s" for rows in found.values())
        print(f"round {number}: {seconds}", flush=True)
    return {"sentence": SENTENCE, "tokens": forced_tokens, "beam_size": asked["beam_size"], "first": first, **found}


def _timed(command: list[str], folder: Path, name: str, settings: dict[str, str]) -> Result:
    target = folder / f"{name}-load.json"
    begin = time.monotonic()
    run([*command, str(target)], folder / f"{name}-load.log", settings)
    return {"process": time.monotonic() - begin, **json.loads(target.read_text())}


def loading_table(result: Result) -> Table:
    """A row for each, medians over rounds."""
    measured = {
        "transformer_jax, first ever": [result["first"]],
        "transformer_jax": result["transformer_jax"],
        "Transformers": result["Transformers"],
    }
    timed = ("process", "imports", "load", "translate")
    rows = []
    for name, records in measured.items():
        middle = [f"{statistics.median(record[key] for record in records):.2f}" for key in timed]
        peak = statistics.median(record["peak_rss_bytes"] for record in records) / 2**20
        rows.append([name, *middle, f"{peak:,.0f}", f"{records[0]['parameters']:,}"])
    title = f"one sentence, {result['tokens']} forced tokens, beam {result['beam_size']}; seconds"
    same = result["transformer_jax"][0]["text"] == result["Transformers"][0]["text"]
    notes = [f"same translation: {'yes' if same else 'no'}"]
    return Table(title, ("", *timed, "peak MiB", "parameters"), rows, notes=notes)
