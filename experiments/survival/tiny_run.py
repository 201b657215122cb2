"""The smallest run that has everything a kill can hit, started as a person does: the train command in a process."""

import hashlib
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from transformer_jax.data.cache import cache_directory
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.metric_writer import read_metrics

CHECKOUT = Path(__file__).resolve().parents[2]
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TOTAL_STEPS = 120
SETTINGS: dict[str, Any] = {
    "dataset.train": "train.tsv",
    "dataset.validation": "validation.tsv",
    "tokenizer.vocab_size": 48,
    "tokenizer.sampling": 0.1,
    "batching.tokens_per_batch": 256,
    "batching.num_shapes": 2,
    "batching.max_length": 32,
    "batching.rows_multiple": 4,
    "model.d_model": 16,
    "model.d_ff": 32,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 1,
    "model.num_heads": 2,
    "optimizer.peak_learning_rate": 1e-2,
    "optimizer.warmup_steps": 10,
    "training.total_steps": TOTAL_STEPS,
    "training.ema_decay": 0.9,
    "training.log_every_steps": 7,
    "checkpoints.every_steps": 5,
    "checkpoints.keep_latest": 3,
    "evaluation.every_steps": 20,
    "evaluation.average": 3,
    "evaluation.weights": "average",
    "evaluation.decode": "none",
    "evaluation.metric": "loss",
}
OF_THE_CLOCK = (
    "target_tokens_per_second",
    "step_seconds",
    "evaluation_seconds",
    "compile_count",
    "device_memory_bytes",
)


def write_data(folder: Path) -> None:
    """Pairs of counted words and the same words backwards."""
    rng = random.Random(1)
    folder.mkdir(parents=True)
    for split, count in {"train": 400, "validation": 24}.items():
        rows = [rng.choices(WORDS, k=rng.randint(1, 8)) for _ in range(count)]
        lines = (f"{' '.join(row)}\t{' '.join(word[::-1] for word in row)}\n" for row in rows)
        (folder / f"{split}.tsv").write_text("".join(lines))


def start(run: Path, processes: int, log: IO[str]) -> list[subprocess.Popen[str]]:
    """The train command on a run, in as many processes as are asked for, on this machine."""
    settings = {"dataset.path": run.parent / "data", **SETTINGS}
    words = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, CHECKOUT / "experiments" / "train.py", f"--workdir={run}", *words]
    command.insert(2, f"--config={CHECKOUT / 'configs' / 'parallel_text.py'}")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(processes):
        environment = {
            **os.environ,
            "PYTHONPATH": str(CHECKOUT),
            "TRANSFORMER_JAX_PREPARED": "1",
            "TRANSFORMER_JAX_CACHE": str(cache_directory()),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2" if processes == 1 else "1",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        started.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, text=True, env=environment))
    return started


def finish(run: Path, processes: int, log: IO[str], timeout: float = 600.0) -> list[int]:
    """Runs the train command to its end; the exit statuses."""
    started = start(run, processes, log)
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def contents(run: Path) -> dict[str, str]:
    """A digest of every array of every checkpoint, by step and path, and of the metrics that are no times."""
    found = {}
    with Checkpoints(run / "checkpoints") as checkpoints:
        for step in checkpoints.steps():
            for part in checkpoints.parts(step):
                tree = checkpoints.restore_parameters(step, part)
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                    name = f"{step}/{part}{jax.tree_util.keystr(path)}"
                    found[name] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["name"] not in OF_THE_CLOCK]
    return {**found, "metrics": hashlib.sha256(repr(rows).encode()).hexdigest()}


def copy_run(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to
