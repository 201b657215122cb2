"""The toolkits in turn, each in a process of its own, and the ratios of what they reach."""

import dataclasses
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarking.processes import write_config
from experiments.peers import exports
from experiments.peers.environments import interpreter, run
from transformer_jax.analysis.run import load_run
from transformer_jax.analysis.tables import Table
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.conversion.runs import export_run
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.pipeline import Pipeline
from transformer_jax.data.tokenizers import train_tokenizers
from transformer_jax.evaluation.bleu import translation_scores
from transformer_jax.experiment import parse_config, plain
from transformer_jax.families.translation import make_model
from transformer_jax.host import has_accelerator
from transformer_jax.run_directory import write_json

HERE = Path(__file__).resolve().parent
Result = dict[str, Any]


TRAINERS = {"marian": ("marian", "MarianMT"), "pytorch": ("gpt", "PyTorch")}
"""Scripts that train, by the start of their names: the environment of each, and what it is called."""
ONCE = "joeynmt"
"""So slow that one round must do."""


def compare_training(mapping: Any, peer: str, seconds: float, rounds: int, folder: Path) -> Result:
    """Target tokens/s of this project and of a peer in float32 and with autocast, in turns.

    Args:
      mapping: the config; its model is made the peers': normalised after sublayers, with biases everywhere.
      peer: one of TRAINERS.
      seconds: of each turn, without installing, compiling and warming up.
    """
    values = plain(mapping)
    values["model"] |= {"norm_placement": "post", "attention_bias": True}
    if values["batching"]["packed_length"]:
        # MarianMT reads a row as one sentence, so both sides get rows of one.
        values["batching"] |= {"packed_length": 0, "num_shapes": 8}
    config = parse_config(values)
    environment, called = TRAINERS[peer]
    python = interpreter(folder, environment)
    dataset = load_dataset(config.dataset)
    tokenizers = train_tokenizers(dataset, config.tokenizer)
    model = make_model(config, tokenizers).config
    exports.check_model(model)
    pipeline = Pipeline(dataset, tokenizers, config.batching, config.seed)
    batches, settings = folder / "batches.npz", folder / "training.json"
    count = exports.write_batches(batches, pipeline)
    write_json(settings, exports.training_settings(config, model, warm_steps=2 * len(pipeline.shapes)))
    configured = write_config(folder / "config.py", values)
    # On a GPU float32 is slower, and compiles for minutes.
    precisions = ("bfloat16",) if peer == "pytorch" and has_accelerator() else ("float32", "bfloat16")
    ours: list[Result] = []
    theirs: list[list[Result]] = []
    for number in range(1, rounds + 1):
        command = ["train", f"--config={configured}", f"--seconds={seconds}", "--windows=1"]
        ours.append(_ours(command, folder))
        theirs.append([])
        for precision in precisions:
            target = folder / f"{peer}.json"
            arguments = map(str, (batches, settings, precision, seconds, target))
            run([str(python), str(HERE / f"{peer}_train.py"), *arguments], folder / f"{peer}.log")
            theirs[-1].append(json.loads(target.read_text()))
        rates = [_rate(ours[-1]), *map(_rate, theirs[-1])]
        print(f"round {number}: {', '.join(f'{rate:,.0f}' for rate in rates)} target tokens/s", flush=True)
    ratios = [_rate(a) / max(map(_rate, b)) for a, b in zip(ours, theirs, strict=True)]
    return {
        "peer": called,
        "dtype": config.model["dtype"],
        "batches": count,
        "seconds": seconds,
        "ours": ours,
        "theirs": theirs,
        "ratios": ratios,
    }


def training_table(result: Result) -> Table:
    """A row for each round; the median of their ratios below."""
    kinds = [f"{result['peer']}, {record['precision']}" for record in result["theirs"][0]]
    columns = ("round", "transformer_jax", *kinds, "ratio")
    rows = []
    for number, (ours, theirs) in enumerate(zip(result["ours"], result["theirs"], strict=True), 1):
        rates = [f"{_rate(record):,.0f}" for record in (ours, *theirs)]
        rows.append([str(number), *rates, f"{result['ratios'][number - 1]:.2f}"])
    ours, theirs = result["ours"][0], result["theirs"][0][0]
    notes = (
        f"median ratio to the faster {statistics.median(result['ratios']):.2f}",
        f"model.dtype {result['dtype']}, parameters {ours['parameters']:,} and {theirs['parameters']:,}",
        f"compiling took {ours['compile']['seconds']:.1f} s in the first round and is not counted",
        f"jax {ours['jax']}, {_versions(theirs)}; {os.cpu_count()} cores",
    )
    return Table("target tokens/s, padding not counted", columns, rows, notes=notes)


def compare_decoding(
    path: str,
    checkpoint: str,
    peers: Sequence[str],
    beam: dict[str, Any],
    lines: int | None,
    forced_tokens: int,
    repeats: int,
    rounds: int,
    folder: Path,
) -> Result:
    """Sentences/s of beam search, tokens to tokens: this project, CTranslate2, and in one round JoeyNMT.

    Args:
      peers: of "ctranslate2" and "joeynmt".
      beam: ``beam_size`` and ``length_penalty`` where they are to differ from the run's own.
    """
    opened = load_run(path, checkpoint)
    opened.config = dataclasses.replace(opened.config, decoding=opened.decoding(**beam))
    exports.check_model(opened.model.config)
    pythons = {peer: interpreter(folder, peer) for peer in peers}
    texts, references = (
        side[:lines] for side in load_dataset(opened.config.dataset.each_once()).splits["test"].texts()
    )
    sources = opened.tokenizers.source.encode(texts)
    weights = {"joeynmt": folder / "weights.npz", "ctranslate2": folder / "ctranslate2-model"}
    request = folder / "request.json"
    if "joeynmt" in peers:
        exports.write_arrays(weights["joeynmt"], exports.flat_weights(opened.params, opened.model.config))
    if "ctranslate2" in peers:
        shutil.rmtree(weights["ctranslate2"], ignore_errors=True)
        export_run(opened, weights["ctranslate2"], "ctranslate2")
    write_json(request, exports.decoding_request(opened, sources, forced_tokens, repeats))
    outputs = _own_outputs(opened, sources)
    own = ["decode", path, f"--checkpoint={checkpoint}", f"--repeats={repeats}"]
    own += [f"--lines={lines}"] if lines else []
    own += [f"--{name}={value}" for name, value in beam.items()]
    rows: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for mode, flags in (("forced", [f"--forced_tokens={forced_tokens}"]), ("free", [])):
            found = _ours([*own, *flags], folder)["search_lines_per_second"]["median"]
            rows.setdefault("transformer_jax", {}).setdefault(mode, []).append(found)
        for peer in (peer for peer in peers if number == 0 or peer != ONCE):
            target = folder / f"{peer}.json"
            script = [
                str(pythons[peer]),
                str(HERE / f"{peer}_decode.py"),
                *map(str, (weights[peer], request, target)),
            ]
            run(script, folder / f"{peer}.log")
            record = json.loads(target.read_text())
            for kind, measured in record.get("by_type", {"float32": record}).items():
                name = f"{peer} {kind}"
                outputs[name] = {mode: measured[mode]["outputs"] for mode in ("greedy", "free")}
                for mode in ("forced", "free"):
                    rows.setdefault(name, {}).setdefault(mode, []).append(measured[mode]["median"])
        print(f"round {number + 1} of {rounds} done", flush=True)
    return {
        "sentences": len(sources),
        "forced_tokens": forced_tokens,
        "decoding": dataclasses.asdict(opened.config.decoding),
        "sentences_per_second": rows,
        "agreement": _agreement(opened, outputs, references),
    }


def _own_outputs(opened: TranslationRun, sources: Sequence[Sequence[int]]) -> dict[str, dict[str, list[list[int]]]]:
    settings: dict[str, dict[str, Any]] = {
        "greedy": {"method": "greedy", "max_length_offset": opened.config.decoding.max_target_length},
        "free": {},
    }
    outputs = {}
    for name, overrides in settings.items():
        translator = opened.translator(**overrides)
        outputs[name] = [best[0].tokens for best in translator.decoder.decode(translator.params, sources)]
    return {"transformer_jax": outputs}


def _agreement(opened: TranslationRun, outputs: Result, references: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each toolkit, BLEU with the beam, and the share of outputs equal to ours, greedy and with it."""
    found = {}
    for name, modes in outputs.items():
        equal = {}
        for mode in ("greedy", "free"):
            pairs = zip(modes[mode], outputs["transformer_jax"][mode], strict=True)
            equal[f"{mode}_equal"] = statistics.mean(list(a) == list(b) for a, b in pairs)
        texts = opened.tokenizers.target.decode(modes["free"])
        found[name] = {**equal, "bleu": float(translation_scores(texts, references)["bleu"])}
    return found


def decoding_table(result: Result) -> Table:
    """A row for each toolkit: medians over rounds, and this project's ratio to it."""
    columns = ["", f"{result['forced_tokens']} tokens", "ratio", "own lengths", "ratio", "BLEU"]
    rates = result["sentences_per_second"]
    rows = []
    for name, modes in rates.items():
        row = [name]
        for mode in ("forced", "free"):
            own, rate = (statistics.median(each[mode]) for each in (rates["transformer_jax"], modes))
            row += [f"{rate:,.1f}", f"{own / rate:.2f}"]
        agreement = result["agreement"][name]
        equal = (f"{agreement[f'{mode}_equal']:.1%}" for mode in ("greedy", "free"))
        rows.append([*row, f"{agreement['bleu']:.2f}", *equal])
    title = f"beam {result['decoding']['beam_size']}, {result['sentences']} sentences, sentences/s"
    columns += ["outputs equal to ours, greedy", "beam"]
    return Table(title, columns, rows, notes=["ratio: this project to that toolkit; medians of rounds"])


def _ours(arguments: Sequence[str], folder: Path) -> Result:
    target = folder / "ours.json"
    command = [sys.executable, str(HERE.parent / "benchmark.py"), *arguments, f"--output={target}"]
    run(command, folder / "ours.log")
    return json.loads(target.read_text())


def _rate(record: Result) -> float:
    rate = record["target_tokens_per_second"]
    return rate["median"] if isinstance(rate, dict) else rate


def _versions(record: Result) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())
