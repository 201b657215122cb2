"""Measures CTranslate2's beam search with an exported run. Runs in its own environment.

    python ctranslate2_decode.py FOLDER REQUEST.json RESULT.json

The threads and batch size that are fastest for a compute type are found first, and then used.
"""

import json
import os
import statistics
import sys
import time
from typing import Any

import ctranslate2

BATCH_SIZES = (32, 64, 128)


def main(folder: str, asked: str, result: str) -> None:
    with open(asked) as file:
        request = json.load(file)
    pieces, cores = request["pieces"], len(os.sched_getaffinity(0))
    number = {piece: i for i, piece in enumerate(pieces)}
    sources = [[pieces[i] for i in source] for source in request["sources"]]  # their end is added by the model

    def translate(translator: Any, batch_size: int, **options: Any) -> tuple[float, list[list[int]]]:
        begin = time.monotonic()
        found = translator.translate_batch(
            sources,
            max_batch_size=batch_size,
            disable_unk=True,
            **{"beam_size": request["beam_size"], "max_decoding_length": request["max_tokens"], **options},
        )
        seconds = time.monotonic() - begin
        return seconds, [[number[piece] for piece in one.hypotheses[0]] for one in found]

    modes = {
        "forced": {
            "min_decoding_length": request["forced_tokens"],
            "max_decoding_length": request["forced_tokens"],
        },
        "free": {"length_penalty": request["length_penalty"]},
    }
    record: dict = {"versions": {"ctranslate2": ctranslate2.__version__}, "by_type": {}}
    for compute_type in request["compute_types"]:
        tried = {}
        for inter in sorted({cores, max(1, cores // 2), 1}, reverse=True):
            translator = ctranslate2.Translator(
                folder, compute_type=compute_type, inter_threads=inter, intra_threads=max(1, cores // inter)
            )
            for batch_size in BATCH_SIZES:
                seconds = min(translate(translator, batch_size, **modes["forced"])[0] for _ in range(2))
                tried[inter, batch_size] = len(sources) / seconds
            del translator
        inter, batch_size = max(tried, key=lambda setting: tried[setting])
        translator = ctranslate2.Translator(
            folder, compute_type=compute_type, inter_threads=inter, intra_threads=max(1, cores // inter)
        )
        own: dict = {
            "setting": {"inter_threads": inter, "batch_size": batch_size},
            "tried": {f"inter {i}, batch {b}": rate for (i, b), rate in tried.items()},
        }
        for name, options in modes.items():
            runs = [translate(translator, batch_size, **options) for _ in range(request["repeats"])]
            rates = [len(sources) / seconds for seconds, _ in runs]
            own[name] = {"median": statistics.median(rates), "best": max(rates), "outputs": runs[-1][1]}
        own["greedy"] = {"outputs": translate(translator, batch_size, beam_size=1)[1]}
        record["by_type"][compute_type] = own
        del translator
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
