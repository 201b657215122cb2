"""The same as gpt_train.py with this project: the steps of a config, timed, then the loss of validation.

    python gpt_ours.py CONFIG.json STEPS WARM_STEPS RESULT.json

Compiling is not timed, nor are the first steps; nothing is saved.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformer_jax.host import prepare_cpu


def main(config_file: str, steps: str, warm: str, result: str) -> None:
    prepare_cpu()
    import jax

    from transformer_jax.experiment import parse_config
    from transformer_jax.families.registry import find_family
    from transformer_jax.sharding import make_mesh, place_batch
    from transformer_jax.training.loop import check_rows, compile_shapes, enable_compilation_cache
    from transformer_jax.training.program import make_program
    from transformer_jax.training.step import batch_kind

    enable_compilation_cache()
    mapping: dict[str, Any] = json.loads(Path(config_file).read_text())
    total = int(steps)
    mapping["training"] |= {"total_steps": total, "ema_decay": 0.0}
    config = parse_config(mapping)
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    experiment = find_family(config.family).prepare(config, None)
    program = make_program(config, experiment.task, mesh)
    compiled = compile_shapes(program.step, program.shapes, mesh, experiment.batches.specs)
    state, iterator, counted = program.create(), experiment.batches.iterator(), experiment.batches.counted
    tokens, start = 0, time.monotonic()
    for number in range(total):
        if number == int(warm):
            jax.block_until_ready(state)
            tokens, start = 0, time.monotonic()
        batch = place_batch(mesh, next(iterator))
        state, _ = compiled[batch_kind(batch)](state, batch)
        tokens += batch[counted].size
    jax.block_until_ready(state)
    elapsed = time.monotonic() - start
    measured = dict(experiment.make_evaluator(mesh)(state.params))
    record = {
        "tokens_per_second": tokens / elapsed,
        "seconds": elapsed,
        "steps": total,
        "validation_loss": measured["loss"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "devices": jax.device_count(),
        "versions": {"jax": jax.__version__},
    }
    Path(result).write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
