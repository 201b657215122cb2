"""Few-shot evaluation (Brown et al. 2020, section 2.4): a task as examples in the prompt, scored by likelihood."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.analysis.language_model import LanguageModelRun
from transformer_jax.analysis.scores import begin_record, finish_record
from transformer_jax.config import build
from transformer_jax.errors import UserError

MEASURES = ("sum", "per_token", "per_byte", "unconditional")


@dataclass(frozen=True)
class Item:
    """One question: what is asked, the answers to choose from, and which of them is right."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.choices) or not all(self.choices):
            raise UserError(
                f"few-shot item {self.prompt[:40]!r}: answer is {self.answer} of the choices {self.choices}; it must "
                "be the number of one of them, from 0, and none may be empty."
            )


def read_items(path: str | Path) -> list[Item]:
    """Items of a file of JSON lines {"prompt": …, "choices": […], "answer": 0}.

    Raises: UserError naming the file and line of what is not an item.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a file of JSON lines.") from None
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                items.append(build(Item, json.loads(line)))
            except (ValueError, UserError) as error:
                raise UserError(f"{path}: line {number} is no item: {error}") from None
    if not items:
        raise UserError(f"{path} holds no items.")
    return items


def few_shot(
    run: LanguageModelRun,
    items: Sequence[Item],
    shots: int,
    *,
    examples: Sequence[Item] | None = None,
    separator: str = "\n\n",
    answer_context: str = "Answer: ",
    seed: int = 0,
) -> dict[str, Any]:
    """Puts each item after ``shots`` solved examples, and takes the likeliest choice for the model's answer.

    An answer follows its prompt as it stands: a space between them belongs to one or the other. Examples that do not
    fit the model's context are left out, the first ones first, and counted.

    Args:
      examples: where shots are drawn from, anew for each item; None: the other items.
      answer_context: what "unconditional" divides the likelihood by that of the choice after.
    Returns: "accuracy" and "standard_error" by measure, where "sum" is the log-probability of a choice, "per_token" and
      "per_byte" that divided by its length, and "unconditional" log P(choice | prompt) less log P(choice |
      answer_context); "chance"; "answers", the choice taken for each item by "sum"; "shots_left_out", of all items.
    Raises: UserError when there are too few examples, or an item alone is too long.
    """
    pool = list(items if examples is None else examples)
    if shots > len(pool) - (examples is None):
        raise UserError(f"few-shot: {shots} shots of {len(pool)} examples; ask for fewer, or give more.")
    contexts, choices, owners, left_out = [], [], [], 0
    for number, item in enumerate(items):
        others = [i for i in range(len(pool)) if examples is not None or i != number]
        drawn = np.random.default_rng((seed, number)).permutation(others)[:shots]
        solved = [pool[i].prompt + pool[i].choices[pool[i].answer] for i in drawn]
        while solved and not _fits(run, separator.join([*solved, item.prompt]), item):
            solved.pop(0)
            left_out += 1
        for choice in item.choices:
            contexts.append(separator.join([*solved, item.prompt]))
            choices.append(choice)
            owners.append(number)
    total = run.score(contexts, choices)
    tokens = np.asarray([max(len(row), 1) for row in run.tokenizer.encode(choices)])
    size = np.asarray([len(choice.encode()) for choice in choices])
    alone = run.score([answer_context] * len(choices), choices)
    measured = {"sum": total, "per_token": total / tokens, "per_byte": total / size, "unconditional": total - alone}
    owner, right = np.asarray(owners), np.asarray([item.answer for item in items])
    taken = {
        name: np.asarray([int(np.argmax(values[owner == number])) for number in range(len(items))])
        for name, values in measured.items()
    }
    accuracy = {name: float((answers == right).mean()) for name, answers in taken.items()}
    return {
        "accuracy": accuracy,
        "standard_error": {name: math.sqrt(p * (1 - p) / len(items)) for name, p in accuracy.items()},
        "chance": float(np.mean([1 / len(item.choices) for item in items])),
        "answers": taken["sum"].tolist(),
        "shots_left_out": left_out,
    }


def _fits(run: LanguageModelRun, context: str, item: Item) -> bool:
    longest = max(len(row) for row in run.tokenizer.encode([context + choice for choice in item.choices]))
    return longest < run.model.config.max_length


def evaluate_few_shot(run: LanguageModelRun, path: str, shots: int, examples: str | None, seed: int) -> dict[str, Any]:
    """`few_shot` of a file, as a record in the run's scores; the record has its "file"."""
    items = read_items(path)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    data = {"split": f"few_shot-{Path(path).stem}", "files": path, "items": len(items), "sha256": digest}
    name, record = begin_record(run, data, {"few_shot": {"shots": shots, "examples": examples, "seed": seed}})
    scores = few_shot(run, items, shots, examples=None if examples is None else read_items(examples), seed=seed)
    return finish_record(run, name, {**record, "scores": scores})


def format_few_shot(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    scores, shots = record["scores"], record["few_shot"]["shots"]
    lines = [f"{record['data']['items']} items, {shots} shots; chance is {scores['chance']:.1%}"]
    for name in MEASURES:
        lines.append(f"{name:<14} {scores['accuracy'][name]:6.1%} ± {scores['standard_error'][name]:.1%}")
    if scores["shots_left_out"]:
        lines.append(f"{scores['shots_left_out']} shots were left out: they did not fit the model's context.")
    return "\n".join(lines)
