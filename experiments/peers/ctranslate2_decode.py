"""Converts the project's weights for CTranslate2 and measures its beam search. Runs in its own environment.

    python ctranslate2_decode.py WEIGHTS.npz REQUEST.json RESULT.json

The threads and batch size that are fastest for a compute type are found first, and then used.
"""

import json
import os
import shutil
import statistics
import sys
import time
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import transformer_spec

BATCH_SIZES = (32, 64, 128)


def convert(weights: dict, request: dict, folder: str) -> None:
    """Writes a CTranslate2 model that computes what the project's model computes."""
    model = request["model"]
    spec = transformer_spec.TransformerSpec.from_config(
        (model["num_encoder_layers"], model["num_decoder_layers"]),
        model["num_heads"],
        pre_norm=model["norm_placement"] == "pre",
    )

    def linear(target: Any, *names: str) -> None:
        """One layer [out, in] of several kernels [in, out] side by side."""
        target.weight = np.concatenate([weights[f"{name}/kernel"].T for name in names]).copy()
        target.bias = np.concatenate([weights[f"{name}/bias"] for name in names])

    def norm(target: Any, name: str) -> None:
        target.gamma, target.beta = weights[f"{name}/scale"], weights[f"{name}/bias"]

    for side, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        embeddings = stack.embeddings[0] if side == "encoder" else stack.embeddings
        embeddings.weight = weights["shared_embedding/embedding"]
        stack.scale_embeddings = np.float32(model["d_model"] ** 0.5)
        stack.position_encodings.encodings = weights["positions"]
        if model["norm_placement"] == "pre":
            norm(stack.layer_norm, f"{side}/final_norm")
        for i, layer in enumerate(stack.layer):
            own = f"{side}/layer_{i}"
            attention = f"{own}/self_attention"
            linear(layer.self_attention.linear[0], *(f"{attention}/{part}" for part in ("query", "key", "value")))
            linear(layer.self_attention.linear[1], f"{attention}/output")
            norm(layer.self_attention.layer_norm, f"{attention}_norm")
            if side == "decoder":
                cross = f"{own}/cross_attention"
                linear(layer.attention.linear[0], f"{cross}/query")
                linear(layer.attention.linear[1], f"{cross}/key", f"{cross}/value")
                linear(layer.attention.linear[2], f"{cross}/output")
                norm(layer.attention.layer_norm, f"{cross}_norm")
            linear(layer.ffn.linear_0, f"{own}/feed_forward/input")
            linear(layer.ffn.linear_1, f"{own}/feed_forward/output")
            norm(layer.ffn.layer_norm, f"{own}/feed_forward_norm")
    spec.decoder.projection.weight = weights["shared_embedding/embedding"]
    spec.register_source_vocabulary(request["pieces"])
    spec.register_target_vocabulary(request["pieces"])
    _, spec.config.eos_token, spec.config.unk_token, spec.config.bos_token = request["pieces"][:4]
    spec.config.decoder_start_token = spec.config.bos_token
    spec.config.layer_norm_epsilon = model["norm_epsilon"]
    spec.validate()
    spec.optimize()
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    spec.save(folder)


def main(weights: str, asked: str, result: str) -> None:
    with open(asked) as file:
        request = json.load(file)
    folder = os.path.splitext(result)[0] + "-model"
    convert(dict(np.load(weights)), request, folder)
    pieces, cores = request["pieces"], len(os.sched_getaffinity(0))
    number = {piece: i for i, piece in enumerate(pieces)}
    sources = [[pieces[i] for i in source] + [pieces[1]] for source in request["sources"]]

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
