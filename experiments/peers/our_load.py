"""Loads a run and translates a sentence: what is measured beside MarianMT, from the start of Python to the text.

python our_load.py RUN CHECKPOINT REQUEST.json RESULT.json
"""

import json
import sys
import time

BEGIN = time.monotonic()


def main(path: str, checkpoint: str, asked: str, result: str) -> None:
    import jax

    import transformer_jax
    from transformer_jax.host import peak_memory

    open_run = transformer_jax.load_run
    imported = time.monotonic()
    with open(asked) as file:
        request = json.load(file)
    run = open_run(path, checkpoint)
    tokens, limit = request["forced_tokens"], {"max_length_factor": 0.0, "max_length_offset": request["forced_tokens"]}
    translator = run.translator(beam_size=request["beam_size"], min_length=tokens, max_target_length=tokens, **limit)
    loaded = time.monotonic()
    text = translator.translate([request["sentence"]])[0]
    end = time.monotonic()
    record = {
        "imports": imported - BEGIN,
        "load": loaded - imported,
        "translate": end - loaded,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "text": text,
        "peak_rss_bytes": peak_memory(),
    }
    with open(result, "w") as file:
        json.dump(record, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
