"""Scores a run on a test set and writes one record of it: the numbers, and all that produced them."""

import datetime
import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_jax.analysis.ensemble import EnsembleRun
from transformer_jax.analysis.run import Run
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.distributed import is_main
from transformer_jax.errors import UserError
from transformer_jax.evaluation.bleu import translation_scores
from transformer_jax.progress import counted
from transformer_jax.run_directory import AVERAGED, git_state, write_json, write_text

PACKAGES = ("jax", "flax", "numpy", "sacrebleu", "sentencepiece")


@dataclass(frozen=True)
class SentenceScores:
    """What an evaluation found, sentence by sentence.

    Attributes:
      translations: the system's outputs.
      log_probs: natural log-probability float64[N] of each reference, its end included; NaN where it, or its source,
        is too long to be scored whole.
      tokens: what that is the sum over, float64[N], the end included; NaN likewise.
    """

    translations: list[str]
    log_probs: np.ndarray
    tokens: np.ndarray


def evaluate_run(
    run: TranslationRun, sources: Sequence[str], references: Sequence[str], data: dict[str, Any], **decoding: Any
) -> dict[str, Any]:
    """Translates sources, scores them, and writes ``scores/NAME.json`` and ``translations/NAME.txt`` in the run.

    NAME follows from the data, the checkpoint and the decoding settings, so the same evaluation is one record. Beside
    it, ``scores/NAME.tsv`` has the log-probability and the number of tokens of each reference.

    Args:
      data: where the pairs are from; ``data["split"]`` starts the record's name.
      decoding: settings that differ from the run's own, as for `Run.translator`.
    Returns: the record.
    Raises: UserError when there are no pairs, or not as many references as sources.
    """
    translator = run.translator(**decoding)
    name, record = _begin(run, sources, references, data, asdict(translator.config))
    begin = time.monotonic()
    found = translator.stream(sources)
    if is_main():
        found = counted(found, "translating", len(sources))
    translations = [best[0].text for best in found]
    seconds = time.monotonic() - begin
    log_probs, tokens = reference_log_probs(run, sources, references)
    text, columns, _ = _files(run, name)
    rows = (f"{p!r}\t{n!r}\n" for p, n in zip(log_probs.tolist(), tokens.tolist(), strict=True))
    if is_main():
        write_text(text, "".join(f"{line}\n" for line in translations))
        write_text(columns, "".join(rows))
    results = {
        "scores": translation_scores(translations, references) | perplexity(log_probs, tokens),
        "translation_seconds": seconds,
        "translations": f"translations/{name}.txt",
    }
    return finish_record(run, name, {**record, **results})


def sentence_scores(
    run: TranslationRun, sources: Sequence[str], references: Sequence[str], data: dict[str, Any], **decoding: Any
) -> SentenceScores:
    """The sentences of this evaluation, read from its record if there is one, else as `evaluate_run` writes them."""
    settings = asdict(run.decoding(**decoding))
    name, _ = _begin(run, sources, references, data, settings)
    text, columns, file = _files(run, name)
    if not (file.is_file() and columns.is_file()):
        evaluate_run(run, sources, references, data, **decoding)
    numbers = np.loadtxt(columns, ndmin=2)
    return SentenceScores(text.read_text(encoding="utf-8").split("\n")[:-1], numbers[:, 0], numbers[:, 1])


def _files(run: TranslationRun, name: str) -> tuple[Path, Path, Path]:
    """The translations of a record, the scores of its references, and the record."""
    inside = run.directory.inside
    return inside(f"translations/{name}.txt"), inside(f"scores/{name}.tsv"), inside(f"scores/{name}.json")


def _begin(
    run: TranslationRun,
    sources: Sequence[str],
    references: Sequence[str],
    data: dict[str, Any],
    decoding: dict[str, Any],
) -> tuple[str, dict[str, Any]]:
    if not sources or len(sources) != len(references):
        raise UserError(
            f"{len(sources)} sources and {len(references)} references; there must be as many, at least one."
        )
    text = "\n".join([*sources, "", *references])
    data = {**data, "sentences": len(sources), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return begin_record(run, data, {"decoding": decoding})


def begin_record(run: Run, data: dict[str, Any], settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What an evaluation is of: its name, and a record of the data, the checkpoint and the settings.

    Of an ensemble, "ensemble" has the directory and the checkpoint of each member, the first included; "pooled" says
    whether their candidates were put together instead of their probabilities averaged.
    """
    record: dict[str, Any] = {"data": data, "checkpoint": _checkpoint(run), **settings}
    if isinstance(run, EnsembleRun):
        record["ensemble"] = [{"run": str(one.directory.path), "checkpoint": _checkpoint(one)} for one in run.members]
        record["pooled"] = run.pool
    return f"{data['split']}-{run.checkpoint.replace(':', '')}-{_digest(record)}", record


def _checkpoint(run: Run) -> dict[str, Any]:
    record: dict[str, Any] = {
        "choice": run.checkpoint,
        "steps": run.steps,
        "weights": run.weights,
    }
    average = run.directory.path / AVERAGED
    return record | ({"averaged": json.loads(average.read_text())} if average.is_file() else {})


def finish_record(run: Run, name: str, record: dict[str, Any]) -> dict[str, Any]:
    """Writes ``scores/NAME.json`` in the run, with the machine and the versions. Returns it with its "file"."""
    record = record | {
        "devices": [str(device) for device in jax.devices()],
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "git": git_state(Path(__file__).resolve().parents[2]),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    file = run.directory.inside(f"scores/{name}.json")
    if is_main():
        write_json(file, record)
    return {**record, "file": str(file)}


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def reference_log_probs(
    run: TranslationRun, sources: Sequence[str], references: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """For each pair the log-probability of the reference and its tokens, as in `SentenceScores`."""
    limit = run.config.decoding.max_source_length
    encoded = list(
        zip(
            run.tokenizers.source.encode(list(sources)),
            run.tokenizers.target.encode(list(references)),
            strict=True,
        )
    )
    fitting = [k for k, (s, t) in enumerate(encoded) if max(len(s), len(t)) < limit]
    rows = run.token_log_probs([encoded[k][0] for k in fitting], [encoded[k][1] for k in fitting])
    log_probs, tokens = np.full((2, len(encoded)), np.nan)
    for k, row in zip(fitting, rows, strict=True):
        log_probs[k], tokens[k] = row.sum(dtype=np.float64), len(row)
    return log_probs, tokens


def perplexity(log_probs: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Perplexity per target token, ends of sentence included; pairs that were not scored are counted."""
    nll = -float(np.nansum(log_probs)) / max(float(np.nansum(tokens)), 1.0)
    return {
        "perplexity": math.exp(min(nll, 700.0)),
        "perplexity_pairs_left_out": float(np.isnan(log_probs).sum()),
    }


def format_scores(record: dict[str, Any], of: str) -> str:
    """A record of numbers alone for a terminal; ``of`` says what was measured."""
    checkpoint = record["checkpoint"]
    head = f"{of} of {record['data']['split']}, checkpoint {checkpoint['choice']} (steps {checkpoint['steps']})"
    return "\n".join([head, *(f"{name:<16} {value:9.4f}" for name, value in record["scores"].items())])


def found_by(decoding: dict[str, Any]) -> str:
    """The method of a record, with what it chose from."""
    text = f"{decoding['method']} {decoding['beam_size']}" if decoding["method"] == "beam" else decoding["method"]
    if decoding["rerank"] == "none":
        return text
    return f"{text}, {decoding['candidates']} candidates by expected {decoding['rerank']}"


def format_record(record: dict[str, Any]) -> str:
    """The record for a terminal."""
    scores, decoding = record["scores"], record["decoding"]
    members = record.get("ensemble", ())
    lines = [
        f"{record['data']['sentences']} sentences of {record['data']['split']}, "
        f"{f'ensemble of {len(members)}, ' if members else ''}checkpoint {record['checkpoint']['choice']} "
        f"(steps {record['checkpoint']['steps']}), {found_by(decoding)}, "
        f"{record['translation_seconds']:.1f} s",
        f"BLEU (cased)                   {scores['bleu']:6.2f}   {scores['bleu_signature']}",
        f"chrF2                          {scores['chrf']:6.2f}   {scores['chrf_signature']}",
        f"BLEU (lower-cased, tokenised)  {scores['bleu_lowercase_tokenized']:6.2f}   "
        f"{scores['bleu_lowercase_tokenized_signature']}",
        f"exact matches                  {100 * scores['exact_match']:6.2f} %",
        f"perplexity                     {scores['perplexity']:6.2f}",
    ]
    return "\n".join(lines)
