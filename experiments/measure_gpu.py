"""Runs the measurements that want a GPU, one after another, each with its command, log and result in a folder.

    python experiments/measure_gpu.py --list
    python experiments/measure_gpu.py --results=gpu
    python experiments/measure_gpu.py --results=gpu --only=base,base-peer --seconds=20
    python experiments/measure_gpu.py --results=gpu --multi30k=FOLDER --tatoeba=FOLDER --shakespeare=FOLDER
    python experiments/measure_gpu.py --results=gpu --minutes=10 --limit=150 --seconds=10    # as much as that holds

Speeds are of made text (experiments/benchmarking/made_text.py), which needs no download; Shakespeare, Multi30k and
Tatoeba are trained to their end, from folders of their files. The measurements named -peer install PyTorch on first
use, or use the Python that TRANSFORMER_JAX_PEER_PYTHON names. What matters most comes first. One that fails or takes
too long is reported, and the next one begins; summary.json has the result, or the end of the log, of each so far.
Everything can be repeated with the commands shown. `profile` needs XLA_FLAGS=--xla_gpu_enable_command_buffer= for
a GPU to tell operations apart.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError
from transformer_jax.host import has_accelerator
from transformer_jax.run_directory import write_json

RESULTS = flags.DEFINE_string("results", "gpu", "folder for made text, logs, runs and results")
LIST = flags.DEFINE_bool("list", False, "print the commands, and stop")
ONLY = flags.DEFINE_list("only", [], "names of the measurements to run; default: all")
SECONDS = flags.DEFINE_float("seconds", 60.0, "of each measurement of speed")
MINUTES = flags.DEFINE_float("minutes", None, "for everything; then what runs is ended")
LIMIT = flags.DEFINE_float("limit", 3600.0, "seconds that one measurement may take")
MULTI30K = flags.DEFINE_string("multi30k", None, "folder of Multi30k; without it, it is downloaded")
SHAKESPEARE = flags.DEFINE_string("shakespeare", None, "folder of Tiny Shakespeare; without it, it is downloaded")
TATOEBA = flags.DEFINE_string("tatoeba", None, "folder with train, valid and test, .de.gz and .en.gz")

BENCHMARK = "experiments/benchmark.py"
SEEDS = (1, 2, 3)
GRACE = 10.0
"""Seconds in which what is told to end may save."""
Commands = dict[str, list[list[str]]]


def commands(folder: str, seconds: float, data: dict[str, str | None]) -> Commands:
    """What to run for each measurement: words after the name of Python.

    Args: data: folders of "shakespeare", "multi30k" and "tatoeba", or None.
    """
    speed, turns = [f"--seconds={seconds:g}"], [f"--seconds={seconds:g}", "--rounds=2"]
    output = lambda name: f"--output={folder}/{name}.json"
    pairs: dict[str, object] = {
        "dataset.name": "parallel_text",
        "dataset.path": f"{folder}/pairs",
        "dataset.train": "train.en,train.de",
        "dataset.validation": "validation.en,validation.de",
        "dataset.test": "test.en,test.de",
        "model.dtype": "bfloat16",
    }
    text = {
        "dataset.name": "text_files",
        "dataset.path": f"{folder}/documents",
        "dataset.train": "train-*.txt",
        "dataset.validation": "validation-00.txt",
        "batching.rows": 32,
        "model.remat": "none",
        "model.scan_layers": False,
    }
    # Few shapes: a GPU's compiler tries out every product of each. The peers read no rows of several pairs.
    packed, apart = {"batching.packed_length": 128, "batching.num_shapes": 2}, {"batching.num_shapes": 3}
    base, big = (["--config=configs/wmt14.py:" + size, *_set(pairs | packed)] for size in ("base", "big"))
    gpt = ["--config=configs/language_model.py:gpt2", *_set(text)]
    beam = ["--random", "--forced_tokens=25", "--lines=3000", "--beam_size=5", "--batch_size=1024"]
    found: Commands = {
        "base": [[BENCHMARK, "train", *base, *speed, output("base")]],
        "gpt2": [[BENCHMARK, "train", *gpt, *speed, output("gpt2")]],
        "beam": [[BENCHMARK, "decode", *beam, *base, output("beam")]],
        "big": [[BENCHMARK, "train", *big, *speed, output("big")]],
    }
    # That config is a CPU's too: here all logits are held at once, without a loop that waits for the host.
    captions = {"dataset.path": data["multi30k"], "task.loss_chunk": 16384}
    trained: dict[str, tuple[str, dict[str, Any]]] = {
        "shakespeare": ("configs/language_model.py:shakespeare-gpu", {"dataset.path": data["shakespeare"]}),
        **{f"multi30k-{n}": ("configs/multi30k.py:best", {**captions, "seed": n}) for n in SEEDS},
        "tatoeba": ("configs/tatoeba.py:gpu", {"dataset.path": data["tatoeba"]}),
    }
    if not data["tatoeba"]:
        del trained["tatoeba"]
    for name, (spec, values) in trained.items():
        run, given = f"{folder}/{name}", _set({key: value for key, value in values.items() if value})
        found[name] = [
            ["experiments/train.py", f"--config={spec}", *given, f"--workdir={run}"],
            ["experiments/evaluate.py", run, "--split=validation"],
        ]
    for name in ("base", "big"):
        beside = [f"--config=configs/wmt14.py:{name}", *_set(pairs | apart), *turns]
        found[f"{name}-peer"] = [[BENCHMARK, "train", "--against=pytorch", *beside, output(f"{name}-peer")]]
    found["gpt2-peer"] = [[BENCHMARK, "train", "--against=pytorch", *gpt, *turns, output("gpt2-peer")]]
    tuned: dict[str, tuple[list[str], str]] = {
        "gpt2-attention": (gpt, "model.attention_implementation=plain,cudnn"),
        "base-attention": (base, "model.attention_implementation=plain,cudnn"),
        "base-chunk": (base, "task.loss_chunk=2048,4096,8192,32768"),
        "gpt2-rows": (gpt, "batching.rows=16,32,64"),
    }
    for name, (config, varied) in tuned.items():
        found[name] = [[BENCHMARK, "scan", *config, f"--of={varied}", f"--seconds={seconds / 3:g}", output(name)]]
    sizes = ["--vocabularies=8000,37000", "--lengths=128,256", "--remat=none,dots"]
    found["memory"] = [[BENCHMARK, "memory", *base, *sizes, output("memory")]]
    found["profile"] = [[BENCHMARK, "profile", *base, f"--trace={folder}/trace", output("profile")]]
    found["start"] = [[BENCHMARK, "start", *base, output("start")]]
    return found


def _set(values: dict[str, object]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


def main(arguments: list[str]) -> int:
    folder = Path(RESULTS.value)
    data = {"shakespeare": SHAKESPEARE.value, "multi30k": MULTI30K.value, "tatoeba": TATOEBA.value}
    found = commands(RESULTS.value, SECONDS.value, data)
    for name, place in data.items():
        if place is not None and not Path(place).is_dir():
            raise UserError(f"--{name}={place}: there is no such folder.")
    unknown = [name for name in ONLY.value if name not in found]
    if unknown:
        raise UserError(f"--only: there is no measurement {unknown[0]}; there are {', '.join(found)}.")
    chosen = {name: found[name] for name in ONLY.value or found}
    if LIST.value:
        for name, several in chosen.items():
            print(f"# {name}", *(shlex.join(["python", *words]) for words in several), "", sep="\n")
        return 0
    if not has_accelerator() and "JAX_PLATFORMS" not in os.environ:
        raise UserError("there is no GPU here; JAX_PLATFORMS=cpu runs the measurements all the same, for days.")
    from experiments.benchmarking import made_text

    begin = time.monotonic()
    if not (folder / "documents" / "validation-00.txt").exists():  # the last file of them
        made_text.write_pairs(folder / "pairs")
        made_text.write_documents(folder / "documents")
    summary: dict[str, dict[str, Any]] = {}
    for name, several in chosen.items():
        left = 60 * MINUTES.value - (time.monotonic() - begin) if MINUTES.value else float("inf")
        if left <= 0:
            print(f"no time is left for {', '.join(list(chosen)[len(summary) :])}", flush=True)
            break
        print(f"== {name}" + (f", {left:.0f} s left" if MINUTES.value else ""), flush=True)
        summary[name] = _measure(name, several, folder, min(left, LIMIT.value))
        write_json(folder / "summary.json", summary)
        print(f"== {name}: {summary[name]['status']} in {summary[name]['seconds']:.0f} s", flush=True)
        print(summary[name]["log"], flush=True)
    bad = [name for name in chosen if summary.get(name, {}).get("status") != "done"]
    print(f"not done: {', '.join(bad)}" if bad else "all done")
    return bool(bad)


def _measure(name: str, several: list[list[str]], folder: Path, limit: float) -> dict[str, Any]:
    """Runs the commands of one measurement until one fails or the time is over.

    Returns: "status", "seconds", the last lines of the "log", and the "result" if one was written.
    """
    begin, log, target = time.monotonic(), folder / f"{name}.log", folder / f"{name}.json"
    target.unlink(missing_ok=True)
    status = "done"
    with log.open("w") as output:
        for words in several:
            if status == "done":
                output.write(f"{shlex.join(['python', *words])}\n")
                output.flush()
                status = _run(words, output, max(0.0, limit - (time.monotonic() - begin)))
    end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    result = {"result": json.loads(target.read_text())} if target.exists() else {}
    return {"status": status, "seconds": time.monotonic() - begin, "log": end, **result}


def _run(words: list[str], output: IO[str], limit: float) -> str:
    """Runs a command and ends it, with all that it has started, when its seconds are over."""
    process = subprocess.Popen(
        [sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        status = process.wait(limit)
        return f"failed with status {status}" if status else "done"
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # also for what is left of it after an error or Ctrl-C
            try:
                os.killpg(process.pid, number)
                process.wait(GRACE)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


if __name__ == "__main__":
    command_line.run_main(main)
