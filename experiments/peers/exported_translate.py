"""Translates with what was exported; runs in an environment of its own, with Transformers or CTranslate2.

    python exported_translate.py transformers FOLDER REQUEST.json RESULT.json
    python exported_translate.py ctranslate2 FOLDER REQUEST.json RESULT.json

Searches rank by log-probability, end only when no hypothesis can become the best, and give at least one token.
"""

import json
import os
import sys

BATCH = 32


def transformers(folder: str, request: dict) -> dict[str, list[str]]:
    """Texts by beam size, by ``generate`` of the model and with the tokenizer that the folder names."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    found: dict[str, list[str]] = {}
    for beam_size in request["beam_sizes"]:
        texts: list[str] = []
        for first in range(0, len(request["sentences"]), BATCH):
            inputs = tokenizer(request["sentences"][first : first + BATCH], return_tensors="pt", padding=True)
            with torch.no_grad():
                ids = model.generate(
                    **inputs,
                    num_beams=beam_size,
                    length_penalty=0.0,
                    early_stopping="never" if beam_size > 1 else False,
                    min_new_tokens=1,
                    max_length=None,
                    max_new_tokens=request["max_tokens"],
                    do_sample=False,
                )
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found[str(beam_size)] = texts
    return found


def ctranslate2(folder: str, request: dict) -> dict[str, list[str]]:
    """Texts by beam size, by ``translate_batch`` on the pieces of the folder's SentencePiece models."""
    import ctranslate2
    import sentencepiece

    source, target = (
        sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, f"{side}.spm"))
        for side in ("source", "target")
    )
    translator = ctranslate2.Translator(folder, compute_type="float32", inter_threads=1, intra_threads=1)
    sentences = source.encode(request["sentences"], out_type=str)
    found = {}
    for beam_size in request["beam_sizes"]:
        results = translator.translate_batch(
            sentences,
            beam_size=beam_size,
            length_penalty=0.0,
            disable_unk=True,
            suppress_sequences=[["<pad>"], ["<s>"]],
            max_decoding_length=request["max_tokens"],
            max_batch_size=BATCH,
        )
        found[str(beam_size)] = [target.decode(result.hypotheses[0]) for result in results]
    return found


def main(toolkit: str, folder: str, asked: str, result: str) -> None:
    with open(asked) as file:
        request = json.load(file)
    with open(result, "w") as file:
        json.dump({"transformers": transformers, "ctranslate2": ctranslate2}[toolkit](folder, request), file)


if __name__ == "__main__":
    main(*sys.argv[1:])
