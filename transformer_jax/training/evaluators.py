"""What is measured on a held-out split while a model trains. Evaluators give (name, value) pairs."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding

from transformer_jax.data.batches import EvaluationBatch
from transformer_jax.sharding import BATCH, fetch_each, place


def split_sums(evaluate: Any, params: Any, batches: Sequence[EvaluationBatch], mesh: Mesh) -> dict[str, float]:
    """What ``evaluate``, a task's evaluation step, sums up over a whole split."""
    total: dict[str, float] = {}
    rows = NamedSharding(mesh, BATCH)
    for sums in fetch_each(evaluate(params, place(batch.batch, rows)) for batch in batches):
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + float(value)
    return total
