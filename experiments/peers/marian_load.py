"""Loads an exported run in Transformers and translates a sentence, which is what is measured; in its own environment.

python marian_load.py FOLDER REQUEST.json RESULT.json
"""

import json
import sys
import time

BEGIN = time.monotonic()


def main(folder: str, asked: str, result: str) -> None:
    """Loads and translates; the seconds of each part, and the text."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    imported = time.monotonic()
    with open(asked) as file:
        request = json.load(file)
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    loaded = time.monotonic()
    tokens = request["forced_tokens"]
    inputs = tokenizer([request["sentence"]], return_tensors="pt")
    ids = network.generate(
        **inputs, num_beams=request["beam_size"], min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False
    )
    text = tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
    end = time.monotonic()
    with open("/proc/self/status") as status:  # not getrusage, which counts the process that became this one
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    record = {
        "imports": imported - BEGIN,
        "load": loaded - imported,
        "translate": end - loaded,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "input_ids": inputs["input_ids"][0].tolist(),
        "text": text,
        "peak_rss_bytes": 1024 * peak,
    }
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
