"""What a config trains: its optimizer, the shapes of its state, how that is made, and the step."""

from collections.abc import Callable
from dataclasses import dataclass

import optax
from jax.sharding import Mesh

from transformer_jax.experiment import RunConfig
from transformer_jax.training.optimizers import learning_rate, make_optimizer
from transformer_jax.training.step import TrainState, TrainStep, abstract_state, make_train_step
from transformer_jax.training.tasks import Task


@dataclass(frozen=True)
class Program:
    """Attributes: ``shapes`` of the state with their shardings; ``create`` makes it on the mesh; ``step``, jitted."""

    optimizer: optax.GradientTransformationExtraArgs
    shapes: TrainState
    create: Callable[[], TrainState]
    step: TrainStep


def make_program(config: RunConfig, task: Task, mesh: Mesh) -> Program:
    """The training program of a config's task on a mesh; nothing is compiled yet."""
    training = config.training
    optimizer = make_optimizer(config.optimizer, training.total_steps)
    shapes, create = abstract_state(task, optimizer, mesh, config.seed, ema=training.ema_decay > 0)
    step = make_train_step(
        task,
        optimizer,
        learning_rate(config.optimizer, training.total_steps),
        mesh,
        shapes,
        seed=config.seed,
        accumulation=training.accumulation,
        ema_decay=training.ema_decay,
        guard=config.guard,
    )
    return Program(optimizer, shapes, create, step)
