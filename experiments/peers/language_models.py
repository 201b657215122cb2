"""This project and a GPT in plain PyTorch: tokens/s in turn, and the loss of validation after equal time."""

import dataclasses
import itertools
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.peers.environments import interpreter, run
from experiments.peers.exports import write_arrays
from transformer_jax.analysis.tables import Table
from transformer_jax.conversion import gpt2
from transformer_jax.conversion.format import require, switches
from transformer_jax.data.packing import PackedText, cached_stream, evaluation_batches
from transformer_jax.data.text import load_text
from transformer_jax.data.text_tokenizers import train_text_tokenizer
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain
from transformer_jax.families.language_model import LanguageModelRunConfig, make_task
from transformer_jax.run_directory import write_json

HERE = Path(__file__).resolve().parent
WARM_STEPS, SPEED_STEPS = 20, 200
Result = dict[str, Any]


def compare_language_models(mapping: Any, seconds: float, rounds: int, folder: Path) -> Result:
    """Speed in turn, ours, theirs, ours …, then both for as many steps as they make in ``seconds``, schedule and all.

    Args:
      mapping: the config of a language model as GPT-2's, of which biases may be missing, without dropout.
    Returns: tokens/s of each round, their ratios, and both records of the runs of equal time.
    """
    config = parse_config(mapping)
    batches, settings, configured = folder / "gpt-batches.npz", folder / "gpt.json", folder / "gpt-config.json"
    python = interpreter(folder, "gpt")
    _export(config, batches, settings)
    write_json(configured, plain(mapping))

    def ours(steps: int) -> Result:
        script = [sys.executable, str(HERE / "gpt_ours.py"), str(configured), str(steps), str(WARM_STEPS)]
        return _measured(script, folder, "ours")

    def theirs(steps: int) -> Result:
        return _measured(
            [str(python), str(HERE / "gpt_train.py"), str(batches), str(settings), str(steps)], folder, "gpt"
        )

    speeds: list[tuple[float, float]] = []
    for number in range(1, rounds + 1):
        both = tuple(side(WARM_STEPS + SPEED_STEPS)["tokens_per_second"] for side in (ours, theirs))
        speeds.append((both[0], both[1]))
        print(f"round {number}: {both[0]:,.0f} and {both[1]:,.0f} tokens/s", flush=True)
    cells = config.batching.rows * config.batching.length
    steps = [int(seconds * statistics.median(rates) / cells) for rates in zip(*speeds, strict=True)]
    return {
        "speeds": speeds,
        "ratios": [a / b for a, b in speeds],
        "equal_time": {"ours": ours(steps[0]), "theirs": theirs(steps[1]), "seconds": seconds},
    }


def language_models_table(result: Result) -> Table:
    """A row for each round; the two runs of equal time below."""
    rounds = zip(result["speeds"], result["ratios"], strict=True)
    rows = [
        [str(number), f"{ours:,.0f}", f"{theirs:,.0f}", f"{ratio:.2f}"]
        for number, ((ours, theirs), ratio) in enumerate(rounds, 1)
    ]
    notes = [f"median ratio {statistics.median(result['ratios']):.2f}, {os.cpu_count()} cores"]
    for name, title in (("ours", "transformer_jax"), ("theirs", "PyTorch")):
        record = result["equal_time"][name]
        notes.append(
            f"{title}: {record['steps']:,} steps in {record['seconds']:.0f} s, validation loss "
            f"{record['validation_loss']:.4f}, {record['parameters']:,} parameters, {record['versions']}"
        )
    return Table("tokens/s", ("round", "transformer_jax", "PyTorch", "ratio"), rows, notes=notes)


def _measured(script: list[str], folder: Path, name: str) -> Result:
    target = folder / f"{name}-gpt.json"
    run([*script, str(target)], folder / f"{name}-gpt.log")
    return json.loads(target.read_text())


def _export(config: LanguageModelRunConfig, batches: Path, settings: Path) -> None:
    """One epoch of training batches, the batches of validation, and the sizes.

    Raises: UserError for a model, optimizer or text that the PyTorch side does not have.
    """
    dataset = load_text(config.dataset)
    tokenizer = train_text_tokenizer(dataset, config.tokenizer)
    model = make_task(config, tokenizer.vocab_size).model.config
    wanted = {"activation": "gelu", "tie_embeddings": True, "end_begins": False, "initializer": "gpt2"}
    wanted |= {"dropout_rate": 0.0, "embedding_dropout_rate": 0.0}
    allowed = gpt2.ALLOWED | {f"model.{name}": (value,) for name, value in wanted.items()}
    require("the PyTorch model", switches(model), allowed)
    if (config.optimizer.name, config.optimizer.schedule) != ("adamw", "cosine"):
        raise UserError("the PyTorch model is trained with optimizer.name='adamw' and optimizer.schedule='cosine'.")
    packed = PackedText(dataset, tokenizer, config.batching, config.seed)
    epoch = list(itertools.islice(packed.iterator(), len(packed.epoch(0))))
    whole = [batch for batch in epoch if (batch["segments"] == 1).all()]
    stream = cached_stream(dataset, "validation", tokenizer)
    validation = [found.batch for found in evaluation_batches(stream, config.batching, config.batching.length)]
    if len(whole) < len(epoch) / 2 or max(batch["segments"].max() for batch in validation) > 1:
        raise UserError("the PyTorch model knows no packing: use documents that are longer than batching.length.")
    arrays = {name: np.stack([batch[name] for batch in whole]) for name in ("inputs", "targets")}
    arrays |= {f"validation_{name}": np.stack([b[name] for b in validation]) for name in ("inputs", "targets")}
    write_arrays(batches, arrays)
    write_json(
        settings, {**dataclasses.asdict(model), **dataclasses.asdict(config.optimizer), "warm_steps": WARM_STEPS}
    )
