"""Loads the project's weights into JoeyNMT and measures its beam search. Runs in its own environment.

python joeynmt_decode.py WEIGHTS.npz REQUEST.json RESULT.json
"""

import json
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import joeynmt
import numpy as np
import torch
from joeynmt.batch import Batch
from joeynmt.model import build_model
from joeynmt.search import search
from joeynmt.vocabulary import Vocabulary

ORDER = (2, 0, 3, 1)  # JoeyNMT's first ids are unknown, padding, beginning, end: these ids of ours
BATCH_SIZE = 100
PAD, END = 1, 3


def load_weights(network: torch.nn.Module, weights: dict, model: dict) -> None:
    """Copies every weight; raises KeyError or RuntimeError when one is left over or missing."""
    table = weights["shared_embedding/embedding"]
    table = np.concatenate([table[list(ORDER)], table[4:]])
    state = {name: table for name in ("src_embed.lut.weight", "trg_embed.lut.weight", "decoder.output_layer.weight")}

    def linear(target: str, name: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = (
            weights[f"{name}/kernel"].T,
            weights[f"{name}/bias"],
        )

    def norm(target: str, name: str) -> None:
        state[f"{target}.weight"], state[f"{target}.bias"] = weights[f"{name}/scale"], weights[f"{name}/bias"]

    def attention(target: str, name: str) -> None:
        for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "output")):
            linear(f"{target}.{short}_layer", f"{name}/{part}")

    for side in ("encoder", "decoder"):
        if model["norm_placement"] == "pre":
            norm(f"{side}.layer_norm", f"{side}/final_norm")
        for i in range(model[f"num_{side}_layers"]):
            to, own = f"{side}.layers.{i}", f"{side}/layer_{i}"
            attention(f"{to}.{'src_src' if side == 'encoder' else 'trg_trg'}_att", f"{own}/self_attention")
            norm(f"{to}.{'layer_norm' if side == 'encoder' else 'x_layer_norm'}", f"{own}/self_attention_norm")
            if side == "decoder":
                attention(f"{to}.src_trg_att", f"{own}/cross_attention")
                norm(f"{to}.dec_layer_norm", f"{own}/cross_attention_norm")
            linear(f"{to}.feed_forward.pwff_layer.0", f"{own}/feed_forward/input")
            linear(f"{to}.feed_forward.pwff_layer.3", f"{own}/feed_forward/output")
            norm(f"{to}.feed_forward.layer_norm", f"{own}/feed_forward_norm")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    left = [name for name in missing if not name.endswith(".pe")]
    if left or unexpected:
        raise RuntimeError(f"weights do not fit: missing {left}, unexpected {unexpected}")


def main(weights: str, asked: str, result: str) -> None:
    with open(asked) as file:
        request = json.load(file)
    model = request["model"]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    special = dict(unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", sep_token=None)
    ids = dict(unk_id=0, pad_id=PAD, bos_id=2, eos_id=END, sep_id=None)
    vocabulary = Vocabulary(request["pieces"][4:], SimpleNamespace(**special, **ids, lang_tags=[]))
    sizes = dict(
        type="transformer",
        num_heads=model["num_heads"],
        embeddings={"embedding_dim": model["d_model"], "scale": True},
        hidden_size=model["d_model"],
        ff_size=model["d_ff"],
        layer_norm=model["norm_placement"],
    )
    stacks = {side: {**sizes, "num_layers": model[f"num_{side}_layers"]} for side in ("encoder", "decoder")}
    network = build_model(
        {**stacks, "tied_embeddings": True, "tied_softmax": True}, src_vocab=vocabulary, trg_vocab=vocabulary
    ).eval()
    load_weights(network, dict(np.load(weights)), model)

    theirs = {ours: joey for joey, ours in enumerate(ORDER)}
    sources = [[theirs.get(i, i) for i in (*source, 1)] for source in request["sources"]]
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))

    def translate(**options: Any) -> tuple[float, list[list[int]]]:
        outputs: list[list[int]] = [[] for _ in sources]
        begin = time.monotonic()
        for first in range(0, len(order), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            lengths = torch.tensor([len(sources[i]) for i in rows])
            source = torch.full((len(rows), int(lengths.max())), PAD)
            for row, i in enumerate(rows):
                source[row, : len(sources[i])] = torch.tensor(sources[i])
            batch = Batch(
                src=source,
                src_length=lengths,
                src_prompt_mask=None,
                trg=None,
                trg_prompt_mask=None,
                indices=torch.arange(len(rows)),
                device=torch.device("cpu"),
                pad_index=PAD,
                eos_index=END,
                is_train=False,
            )
            found, _, _ = search(network, batch, n_best=1, generate_unk=False, **options)
            for i, row in zip(rows, np.asarray(found).tolist(), strict=True):
                ended = row[: row.index(END)] if END in row else row
                outputs[i] = [ORDER[token] if token < 4 else token for token in ended if token != PAD]
        return time.monotonic() - begin, outputs

    forced, beam = request["forced_tokens"], {"beam_size": request["beam_size"]}
    modes = {
        "forced": {**beam, "beam_alpha": 1.0, "max_output_length": forced, "min_output_length": forced},
        "free": {**beam, "beam_alpha": request["length_penalty"], "max_output_length": request["max_tokens"]},
        "greedy": {"beam_size": 1, "beam_alpha": -1, "max_output_length": request["max_tokens"]},
    }
    record: dict = {"versions": {"joeynmt": joeynmt.__version__, "torch": torch.__version__}}
    for name, options in modes.items():
        with torch.inference_mode():
            seconds, outputs = translate(**options)
        record[name] = {"median": len(sources) / seconds, "best": len(sources) / seconds, "outputs": outputs}
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
