"""What is measured on a held-out split while a model trains. Evaluators give (name, value) pairs."""

from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.data.batches import EvaluationBatch
from transformer_jax.sharding import BATCH, MeshConfig, fetch_each, make_mesh, place
from transformer_jax.training.step import make_evaluation_step
from transformer_jax.training.tasks import Task


def split_sums(evaluate: Any, params: Any, batches: Sequence[EvaluationBatch], mesh: Mesh) -> dict[str, float]:
    """What ``evaluate``, a task's evaluation step, sums up over a whole split."""
    total: dict[str, float] = {}
    rows = NamedSharding(mesh, BATCH)
    for sums in fetch_each(evaluate(params, place(batch.batch, rows)) for batch in batches):
        for name, value in sums.items():
            total[name] = total.get(name, 0.0) + float(value)
    return total


def sums_on_all_devices(task: Task, params: Any, batches: Sequence[EvaluationBatch]) -> dict[str, float]:
    """As `split_sums`, with whole parameters from anywhere and the rows over all devices."""
    mesh = make_mesh(MeshConfig(-1, 1, 1))
    return split_sums(make_evaluation_step(task, mesh), place(params, NamedSharding(mesh, P())), batches, mesh)
