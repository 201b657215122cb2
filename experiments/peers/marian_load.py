"""Writes the project's weights as a MarianMT model, or loads one and translates a sentence; in its own environment.

    python marian_load.py convert WEIGHTS.npz REQUEST.json FOLDER
    python marian_load.py translate FOLDER REQUEST.json RESULT.json

The second is what is measured: from the start of Python to the text of the translation.
"""

import json
import shutil
import sys
import time

BEGIN = time.monotonic()


def convert(weights_file: str, asked: str, folder: str) -> None:
    """Makes a folder that ``MarianMTModel.from_pretrained`` and ``MarianTokenizer.from_pretrained`` load."""
    import os

    import numpy as np
    import torch
    from marian_train import make_model

    with open(asked) as file:
        request = json.load(file)
    weights, model = dict(np.load(weights_file)), request["model"]
    network = make_model(model).eval()
    # Marian's positions have all sines before all cosines, ours have them in turn: its axes are ours in that order.
    order = np.r_[0 : model["d_model"] : 2, 1 : model["d_model"] : 2]
    state = {"final_logits_bias": np.zeros((1, model["target_vocab_size"]), np.float32)}
    for name in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        state[f"{name}.weight"] = weights["shared_embedding/embedding"][:, order]

    def linear(target: str, name: str) -> None:
        weight, bias = weights[f"{name}/kernel"].T, weights[f"{name}/bias"]
        if name.endswith("/output"):
            weight, bias = weight[order], bias[order]
        else:
            weight = weight[:, order]
        state[f"{target}.weight"], state[f"{target}.bias"] = weight, bias

    def norm(target: str, name: str) -> None:
        state[f"{target}.weight"] = weights[f"{name}/scale"][order]
        state[f"{target}.bias"] = weights[f"{name}/bias"][order]

    kinds = {"encoder": {"self_attention": "self_attn"}, "decoder": {"self_attention": "self_attn"}}
    kinds["decoder"]["cross_attention"] = "encoder_attn"
    for side, attentions in kinds.items():
        for i in range(model[f"num_{side}_layers"]):
            to, own = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            for name, short in attentions.items():
                for part, theirs in (
                    ("query", "q_proj"),
                    ("key", "k_proj"),
                    ("value", "v_proj"),
                    ("output", "out_proj"),
                ):
                    linear(f"{to}.{short}.{theirs}", f"{own}/{name}/{part}")
                norm(f"{to}.{short}_layer_norm", f"{own}/{name}_norm")
            linear(f"{to}.fc1", f"{own}/feed_forward/input")
            linear(f"{to}.fc2", f"{own}/feed_forward/output")
            norm(f"{to}.final_layer_norm", f"{own}/feed_forward_norm")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    if unexpected or [name for name in missing if not name.endswith("embed_positions.weight")]:
        raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    network.save_pretrained(folder)
    for name in ("source.spm", "target.spm"):
        shutil.copy(request["sentencepiece"], os.path.join(folder, name))
    with open(os.path.join(folder, "vocab.json"), "w") as file:
        json.dump({piece: i for i, piece in enumerate(request["pieces"])}, file)
    special = {"unk_token": 2, "eos_token": 1, "pad_token": 0}
    settings = {name: request["pieces"][i] for name, i in special.items()}
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump({"tokenizer_class": "MarianTokenizer", "source_lang": "a", "target_lang": "b", **settings}, file)


def translate(folder: str, asked: str, result: str) -> None:
    """Loads and translates; the seconds of each part, and the text."""
    import resource

    from transformers import MarianMTModel, MarianTokenizer

    imported = time.monotonic()
    with open(asked) as file:
        request = json.load(file)
    tokenizer, network = MarianTokenizer.from_pretrained(folder), MarianMTModel.from_pretrained(folder).eval()
    loaded = time.monotonic()
    tokens = request["forced_tokens"]
    inputs = tokenizer([request["sentence"]], return_tensors="pt")
    ids = network.generate(
        **inputs, num_beams=request["beam_size"], min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False
    )
    text = tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
    end = time.monotonic()
    record = {
        "imports": imported - BEGIN,
        "load": loaded - imported,
        "translate": end - loaded,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "input_ids": inputs["input_ids"][0].tolist(),
        "text": text,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    {"convert": convert, "translate": translate}[sys.argv[1]](*sys.argv[2:])
