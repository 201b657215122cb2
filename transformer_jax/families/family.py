"""What a family of models is to the rest: the sections of its config, and what it gives the training loop.

To add one: a subclass of `RunConfig` with its sections; a `Task` (how a batch becomes a loss); `Batches` (its data);
an evaluator; `prepare`, which puts them together; a line in registry.py; and in analysis/run.py the `Run` that
`load_run` opens. The loop, the step, checkpoints, sharding and metrics are the same for all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from transformer_jax.data.batches import Batches
from transformer_jax.experiment import RunConfig
from transformer_jax.run_directory import RunDirectory
from transformer_jax.training.tasks import Task

Evaluator = Callable[[Any], Iterator[tuple[str, float]]]
"""``evaluator(params)`` yields the names and values of what validation measures."""


@dataclass(frozen=True)
class Experiment:
    """What one run trains.

    Attributes:
      task: the model and its loss.
      batches: the training split.
      make_evaluator: the validation split's evaluator, for parameters that lie on a mesh.
    """

    task: Task
    batches: Batches
    make_evaluator: Callable[[Mesh], Evaluator]


@dataclass(frozen=True)
class Family:
    """One kind of system.

    Attributes:
      config: the class of its configs.
      prepare: ``prepare(config, run)`` reads the data and makes the `Experiment`. What a run must keep besides its
        config, such as a tokenizer, is read from its directory if it is there and else made and written; with run
        None nothing is written. Raises UserError for data that will not do.
      commands: what can be done with a finished run, to be shown when one is.
    """

    config: type[RunConfig]
    prepare: Callable[[Any, RunDirectory | None], Experiment]
    commands: tuple[str, ...]
