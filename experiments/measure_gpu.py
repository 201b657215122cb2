"""Runs the measurements that want a GPU, one after another, each with its command, log and result in a folder.

    python experiments/measure_gpu.py --list
    python experiments/measure_gpu.py --results=gpu
    python experiments/measure_gpu.py --results=gpu --only=base,base-peer --seconds=20
    python experiments/measure_gpu.py --results=gpu --multi30k=FOLDER --tatoeba=FOLDER

Speeds are of made text (experiments/benchmarking/made_text.py), which needs no download; Shakespeare, Multi30k and
Tatoeba are trained to their end, the last two from folders of train, val (valid) and test files. The measurements named
-peer install PyTorch on first use. One that fails is reported, and the next one begins. Everything can be repeated with
the commands shown.
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from experiments import command_line
from transformer_jax.errors import UserError

RESULTS = flags.DEFINE_string("results", "gpu", "folder for made text, logs, runs and results")
LIST = flags.DEFINE_bool("list", False, "print the commands, and stop")
ONLY = flags.DEFINE_list("only", [], "names of the measurements to run; default: all")
SECONDS = flags.DEFINE_float("seconds", 60.0, "of each measurement of speed")
MULTI30K = flags.DEFINE_string("multi30k", None, "folder of Multi30k; without it, it is downloaded")
TATOEBA = flags.DEFINE_string("tatoeba", None, "folder with train, valid and test, .de.gz and .en.gz")

BENCHMARK = "experiments/benchmark.py"
SEEDS = (1, 2, 3)
Commands = dict[str, list[list[str]]]


def commands(folder: str, seconds: float, multi30k: str | None, tatoeba: str | None) -> Commands:
    """What to run for each measurement: words after the name of Python."""
    speed, turns = [f"--seconds={seconds:g}"], [f"--seconds={seconds:g}", "--rounds=3"]
    output = lambda name: f"--output={folder}/{name}.json"
    pairs = {
        "dataset.name": "parallel_text",
        "dataset.path": f"{folder}/pairs",
        "dataset.train": "train.en,train.de",
        "dataset.validation": "validation.en,validation.de",
        "dataset.test": "test.en,test.de",
        "model.dtype": "bfloat16",
        "task.loss_chunk": 4096,
    }
    text = {
        "dataset.name": "text_files",
        "dataset.path": f"{folder}/documents",
        "dataset.train": "train-*.txt",
        "dataset.validation": "validation-00.txt",
        "batching.rows": 32,
        "model.remat": "none",
        "model.scan_layers": False,
        "task.loss_chunk": 8192,
    }
    base, big = (["--config=configs/wmt14.py:" + size, *_set(pairs)] for size in ("base", "big"))
    gpt = ["--config=configs/language_model.py:gpt2", *_set(text)]
    found: Commands = {}
    for name, config in (("base", base), ("big", big)):
        found[name] = [[BENCHMARK, "train", *config, *speed, output(name)]]
        found[f"{name}-peer"] = [[BENCHMARK, "train", "--against=pytorch", *config, *turns, output(f"{name}-peer")]]
    found["gpt2"] = [[BENCHMARK, "train", *gpt, *speed, output("gpt2")]]
    found["gpt2-peer"] = [[BENCHMARK, "train", "--against=pytorch", *gpt, *turns, output("gpt2-peer")]]
    tuned: dict[str, tuple[list[str], str]] = {
        "base-chunk": (base, "task.loss_chunk=1024,4096,16384"),
        "base-attention": (base, "model.attention_implementation=plain,xla,cudnn"),
        "gpt2-attention": (gpt, "model.attention_implementation=plain,xla,cudnn"),
        "gpt2-rows": (gpt, "batching.rows=16,32,64"),
    }
    for name, (config, varied) in tuned.items():
        found[name] = [[BENCHMARK, "scan", *config, f"--of={varied}", f"--seconds={seconds / 3:g}", output(name)]]
    beam = ["--random", "--forced_tokens=25", "--lines=3000", "--beam_size=5", "--batch_size=1024"]
    found["beam"] = [[BENCHMARK, "decode", *beam, *base, output("beam")]]
    found["start"] = [[BENCHMARK, "start", *base, output("start")]]
    found["memory"] = [[BENCHMARK, "memory", *base, "--vocabularies=8000,37000,64000", output("memory")]]
    found["profile"] = [[BENCHMARK, "profile", *base, f"--trace={folder}/trace", output("profile")]]
    run, nanogpt = f"{folder}/shakespeare", "--config=configs/language_model.py:shakespeare-gpu"
    found["shakespeare"] = [
        ["experiments/train.py", nanogpt, f"--workdir={run}"],
        ["experiments/evaluate.py", run, "--split=validation"],
    ]
    best = "configs/multi30k.py:best"
    at = _set({"dataset.path": multi30k}) if multi30k else []
    runs = [f"{folder}/multi30k-{seed}" for seed in SEEDS]
    found["multi30k"] = [
        ["experiments/train.py", f"--config={best}", *at, f"--config.seed={seed}", f"--workdir={run}"]
        for seed, run in zip(SEEDS, runs, strict=True)
    ]
    found["multi30k"] += [["experiments/evaluate.py", run, "--split=validation"] for run in runs]
    if tatoeba:
        run = f"--workdir={folder}/tatoeba"
        config = ["--config=configs/tatoeba.py:gpu", *_set({"dataset.path": tatoeba})]
        found["tatoeba"] = [["experiments/train.py", *config, run]]
        found["tatoeba"] += [["experiments/evaluate.py", f"{folder}/tatoeba", "--split=validation"]]
    return found


def _set(values: dict[str, object]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in values.items()]


def main(arguments: list[str]) -> int:
    folder = Path(RESULTS.value)
    found = commands(RESULTS.value, SECONDS.value, MULTI30K.value, TATOEBA.value)
    unknown = [name for name in ONLY.value if name not in found]
    if unknown:
        raise UserError(f"--only: there is no measurement {unknown[0]}; there are {', '.join(found)}.")
    chosen = {name: found[name] for name in ONLY.value or found}
    if LIST.value:
        for name, several in chosen.items():
            print(f"# {name}", *(shlex.join(["python", *words]) for words in several), "", sep="\n")
        return 0
    from experiments.benchmarking import made_text

    if not (folder / "documents" / "validation-00.txt").exists():  # the last file of them
        made_text.write_pairs(folder / "pairs")
        made_text.write_documents(folder / "documents")
    failed = []
    for name, several in chosen.items():
        begin, log = time.monotonic(), folder / f"{name}.log"
        with log.open("w") as output:
            status = 0
            for words in several:
                if not status:
                    output.write(f"{shlex.join(['python', *words])}\n")
                    output.flush()
                    status = subprocess.call([sys.executable, *words], stdout=output, stderr=subprocess.STDOUT)
        print(f"== {name}: {'failed' if status else 'done'} in {time.monotonic() - begin:.0f} s, {log}", flush=True)
        print("\n".join(log.read_text(errors="replace").splitlines()[-20:]), flush=True)
        failed += [name] * bool(status)
    print(f"failed: {', '.join(failed)}" if failed else "all done")
    return bool(failed)


if __name__ == "__main__":
    command_line.run_main(main)
