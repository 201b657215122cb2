"""Scores a run on a test set and writes one record of it: the numbers, and all that produced them."""

import datetime
import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from transformer_jax.analysis.averaging import RECORD
from transformer_jax.analysis.run import Run
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.errors import UserError
from transformer_jax.evaluation.bleu import translation_scores
from transformer_jax.run_directory import git_state, write_json, write_text

PACKAGES = ("jax", "flax", "numpy", "sacrebleu", "sentencepiece")


def evaluate_run(
    run: TranslationRun, sources: Sequence[str], references: Sequence[str], data: dict[str, Any], **decoding: Any
) -> dict[str, Any]:
    """Translates sources, scores them, and writes ``scores/NAME.json`` and ``translations/NAME.txt`` in the run.

    NAME follows from the data, the checkpoint and the decoding settings, so the same evaluation is one record.

    Args:
      data: where the pairs are from; ``data["split"]`` starts the record's name.
      decoding: settings that differ from the run's own, as for `Run.translator`.
    Returns: the record.
    Raises: UserError when there are no pairs, or not as many references as sources.
    """
    if not sources or len(sources) != len(references):
        raise UserError(
            f"{len(sources)} sources and {len(references)} references; there must be as many, at least one."
        )
    translator = run.translator(**decoding)
    begin = time.monotonic()
    translations = translator.translate(list(sources))
    seconds = time.monotonic() - begin
    text = "\n".join([*sources, "", *references])
    data = {**data, "sentences": len(sources), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    name, record = begin_record(run, data, {"decoding": asdict(translator.config)})
    write_text(run.directory.inside(f"translations/{name}.txt"), "".join(f"{line}\n" for line in translations))
    results = {
        "scores": translation_scores(translations, references) | reference_perplexity(run, sources, references),
        "translation_seconds": seconds,
        "translations": f"translations/{name}.txt",
    }
    return finish_record(run, name, {**record, **results})


def begin_record(run: Run, data: dict[str, Any], settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What an evaluation is of: its name, and a record of the data, the checkpoint and the settings."""
    record: dict[str, Any] = {
        "data": data,
        "checkpoint": {"choice": run.checkpoint, "steps": run.steps, "weights": run.config.evaluation.weights},
        **settings,
    }
    average = run.directory.path / RECORD
    if average.is_file():
        record["checkpoint"]["averaged"] = json.loads(average.read_text())
    return f"{data['split']}-{run.checkpoint.replace(':', '')}-{_digest(record)}", record


def finish_record(run: Run, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Writes ``scores/NAME.json`` in the run, with the machine and the versions. Returns it with its "file"."""
    record = record | {
        "devices": [str(device) for device in jax.devices()],
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "git": git_state(Path(__file__).resolve().parents[2]),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    file = run.directory.inside(f"scores/{name}.json")
    write_json(file, record)
    return {**record, "file": str(file)}


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def reference_perplexity(run: TranslationRun, sources: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Perplexity per target token, ends of sentence included; pairs too long to be scored whole are counted."""
    limit = run.config.decoding.max_source_length
    encoded = zip(
        run.tokenizers.source.encode(list(sources)),
        run.tokenizers.target.encode(list(references)),
        strict=True,
    )
    fitting = [(s, t) for s, t in encoded if max(len(s), len(t)) < limit]
    tokens = run.token_log_probs([s for s, _ in fitting], [t for _, t in fitting])
    count = sum(map(len, tokens))
    nll = -sum(float(row.sum()) for row in tokens) / max(count, 1)
    return {
        "perplexity": math.exp(min(nll, 700.0)),
        "perplexity_pairs_left_out": float(len(sources) - len(fitting)),
    }


def format_record(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    scores, decoding = record["scores"], record["decoding"]
    lines = [
        f"{record['data']['sentences']} sentences of {record['data']['split']}, "
        f"checkpoint {record['checkpoint']['choice']} "
        f"(steps {record['checkpoint']['steps']}), {decoding['method']} {decoding['beam_size']}, "
        f"{record['translation_seconds']:.1f} s",
        f"BLEU (cased)                   {scores['bleu']:6.2f}   {scores['bleu_signature']}",
        f"chrF2                          {scores['chrf']:6.2f}   {scores['chrf_signature']}",
        f"BLEU (lower-cased, tokenised)  {scores['bleu_lowercase_tokenized']:6.2f}   "
        f"{scores['bleu_lowercase_tokenized_signature']}",
        f"exact matches                  {100 * scores['exact_match']:6.2f} %",
        f"perplexity                     {scores['perplexity']:6.2f}",
    ]
    return "\n".join(lines)
