"""The runs of the study: for every task and network one for each learning rate, then more seeds of the best rate.

Everything measured is a line of FOLDER/results.jsonl; what has its line is not done again, and a run that was
interrupted goes on. Each run is a run directory like any other, in FOLDER/runs.
"""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.long_range import NETWORKS, VOCABULARIES
from experiments.command_line import load_config
from experiments.sweeping.objectives import quality, training_seconds
from transformer_jax.analysis.run import load_run
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.long_range import generate
from transformer_jax.evaluation.bleu import translation_scores
from transformer_jax.experiment import parse_config
from transformer_jax.training.loop import train

Record = dict[str, Any]
TASKS = (*VOCABULARIES, "multi30k")
ALIKE = (
    "tokenizer.vocab_size",
    *(f"batching.{key}" for key in ("tokens_per_batch", "packed_length", "num_shapes")),
    "optimizer.warmup_steps",
    *("training.total_steps", "checkpoints.every_steps", "evaluation.every_steps"),
)
"""What the Transformer for Multi30k has from the config of its LSTMs."""
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
"""Peak learning rates tried, the same for all."""
WORDS = (8, 11, 14, 40)
"""Multi30k: test sentences are grouped by source words, up to each of these."""


@dataclass(frozen=True)
class Trial:
    """One run."""

    task: str
    network: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.network}-{self.rate:g}-{self.seed}"

    def config(self, overrides: Sequence[str]) -> Any:
        """Its config. Multi30k's are those of configs/multi30k.py, 1.8 million parameters each."""
        if self.task == "multi30k":
            spec = "multi30k.py:ten_minutes" if self.network == "transformer" else "multi30k.py:lstm"
            # What `lstm` spends on attention, plain LSTMs have in width; all compute alike, on the same batches;
            # and the Transformer is the one that took the place of recurrent networks (Vaswani et al. 2017).
            plain = ["model.attention=none", "model.d_model=192"]
            recurrent = load_config(f"{CONFIGS / 'multi30k.py:lstm'}")
            paper = ["model.positions=sinusoidal", "model.activation=relu", "model.d_ff=256"]
            alike = [*paper, "model.dtype=float32", *(f"{key}={attrgetter(key)(recurrent)}" for key in ALIKE)]
            own = {"lstm": plain, "lstm_attention": [], "transformer": alike}[self.network]
        else:
            spec, own = f"long_range.py:{self.task}/{self.network}", []
        own += [f"optimizer.peak_learning_rate={self.rate}", f"seed={self.seed}"]
        return load_config(f"{CONFIGS / spec}", [*own, *overrides])


class Results:
    """The lines of results.jsonl, read anew each time: several processes may write at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "results.jsonl"

    def read(self, kind: str) -> list[Record]:
        """The records of one kind: "trial", "test" or "speed"."""
        if not self.file.exists():
            return []
        lines = self.file.read_text(encoding="utf8").splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def find(self, kind: str, **fields: Any) -> Record | None:
        return next((r for r in self.read(kind) if all(r[key] == value for key, value in fields.items())), None)

    def add(self, record: Record) -> None:
        line = json.dumps(record) + "\n"
        with self.file.open("a", encoding="utf8") as file:  # one write of one line, which no other process cuts up
            file.write(line)


def run_study(
    folder: Path, tasks: Sequence[str], networks: Sequence[str], seeds: int, overrides: Sequence[str]
) -> Iterator[str]:
    """Does what is missing; yields a line for each thing done.

    Args:
      seeds: runs of the best learning rate, that of the search for it among them.
      overrides: KEY=VALUE for all configs, to make the study shorter.
    """
    results = Results(folder)
    for task in tasks:
        for network in networks:
            tried = [_trained(folder, results, Trial(task, network, rate, 1), overrides) for rate in RATES]
            yield from (line for line, _ in tried)
            best = min((record for _, record in tried), key=lambda record: record["loss"])
            for seed in range(1, seeds + 1):
                trial = Trial(task, network, best["rate"], seed)
                line, _ = _trained(folder, results, trial, overrides)
                yield from [line] * (seed > 1)
                yield _tested(folder, results, trial)


def _trained(folder: Path, results: Results, trial: Trial, overrides: Sequence[str]) -> tuple[str, Record]:
    """Trains a trial unless its record is there."""
    found = results.find("trial", task=trial.task, network=trial.network, rate=trial.rate, seed=trial.seed)
    if found is None:
        workdir, config = folder / "runs" / trial.name, trial.config(overrides)
        begin = time.process_time()
        if not train(config, workdir).finished:
            raise KeyboardInterrupt
        found = {
            "kind": "trial",
            "task": trial.task,
            "network": trial.network,
            "rate": trial.rate,
            "seed": trial.seed,
            "loss": quality(workdir, parse_config(config).evaluation) * (-1 if trial.task == "multi30k" else 1),
            "steps": config.training.total_steps,
            "cpu_seconds": time.process_time() - begin,  # of all threads; interrupted runs count their last part
            "training_seconds": training_seconds(workdir),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(load_run(workdir).params)),
        }
        results.add(found)
        jax.clear_caches()
    return f"{trial.name}: validation {found['loss']:.4g}, {found['cpu_seconds']:.0f} CPU seconds", found


def _tested(folder: Path, results: Results, trial: Trial) -> str:
    """Translates the test split unless that has been done."""
    found = results.find("test", task=trial.task, network=trial.network, rate=trial.rate, seed=trial.seed)
    if found is None:
        scores = _scores(load_run(folder / "runs" / trial.name), trial.task)
        fields = {"task": trial.task, "network": trial.network, "rate": trial.rate, "seed": trial.seed}
        found = {"kind": "test", **fields, "scores": scores}
        results.add(found)
        jax.clear_caches()
    return f"{trial.name}: test " + "  ".join(f"{at} {score:.3g}" for at, score in found["scores"].items())


def _scores(run: TranslationRun, task: str) -> dict[str, float]:
    """By distance the share of outputs that are right in full; of Multi30k, BLEU by words of the source, and of all."""
    if task == "multi30k":
        sources, targets = load_dataset(run.config.dataset).splits["test"].texts()
        outputs = run.translate(sources)
        groups = np.searchsorted(WORDS, [len(source.split()) for source in sources])
        chosen = {str(limit): np.flatnonzero(groups == i) for i, limit in enumerate(WORDS)}
        chosen["all"] = np.arange(len(sources))
        pick = lambda texts, rows: [texts[row] for row in rows]
        return {
            at: float(translation_scores(pick(outputs, rows), pick(targets, rows))["bleu"])
            for at, rows in chosen.items()
            if len(rows)
        }
    examples = generate(task)["test"]
    outputs = run.translate([example["source"] for example in examples])
    right: dict[str, list[bool]] = {}
    for example, output in zip(examples, outputs, strict=True):
        right.setdefault(str(example["distance"]), []).append(output == example["target"])
    return {at: float(np.mean(answers)) for at, answers in right.items()}


def machine() -> dict[str, Any]:
    """What timings were taken on."""
    return {"cores": len(os.sched_getaffinity(0)), "devices": jax.device_count(), "jax": jax.__version__}


__all__ = ["NETWORKS", "TASKS", "Results", "Trial", "machine", "run_study"]
