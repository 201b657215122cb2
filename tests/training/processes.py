"""One process of several that train together; run as a module, with the variables of `transformer_jax.distributed`.

    python -m tests.training.processes DATA RUN MESH

trains a tiny run, reads it, and prints JSON: what this process saw of batches, translations and errors.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.made_files import FULL, tiny_config
from transformer_jax import distributed
from transformer_jax.analysis.run import load_run
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.sharding import fetch, make_mesh, own_blocks, place_batch
from transformer_jax.training.loop import train

CHANGES = {
    **FULL,
    "training__total_steps": 8,
    "training__log_every_steps": 1,
    "checkpoints__every_steps": 4,
    "evaluation__every_steps": 4,
    "evaluation__max_sentences": 8,
    "batching__rows_multiple": 8,
    "decoding__max_target_length": 12,
}


def failing(index: int) -> Any:
    if jax.process_index() == index:
        raise UserError(f"nothing works on {index}")


def error_of(call: Any) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def main(data: Path, run: Path, mesh: str) -> None:
    distributed.HEARTBEAT_SECONDS = 600  # a busy machine is no dead one
    distributed.start()
    sizes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), map(int, mesh.split(",")), strict=True))
    config = tiny_config(data, **CHANGES, **sizes)
    outcome = train(config, run)
    parsed = parse_config(config)
    placed_on = make_mesh(parsed.mesh)
    experiment = find_family(parsed.family).prepare(parsed, None)
    iterator = experiment.batches.iterator(blocks=own_blocks(placed_on)[0], count=own_blocks(placed_on)[1])
    digest, own_rows = hashlib.sha256(), []
    for _ in range(5):
        local = next(iterator)
        own_rows.append(len(local["source"]))
        whole = fetch(place_batch(placed_on, local))
        digest.update(b"".join(np.ascontiguousarray(whole[side]).tobytes() for side in ("source", "target")))
    opened = load_run(run, "latest")
    lines = (data / "test.en").read_text().splitlines()[:10]
    last = jax.process_count() - 1
    report = {
        "step": outcome.step,
        "processes": jax.process_count(),
        "own rows": own_rows,
        "batches": digest.hexdigest(),
        "translations": opened.translate(lines),
        "scores": opened.score(lines, lines).tolist(),
        "main says": distributed.from_main(lambda: f"from {jax.process_index()}"),
        "errors": [
            error_of(lambda: distributed.together(lambda: failing(last))),
            error_of(lambda: distributed.main_first(lambda: failing(0))),
            error_of(lambda: distributed.from_main(lambda: failing(0))),
        ],
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
