"""Discrete VAEs: config sections, the model for a dataset's images, and the evaluator."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax.config import build
from transformer_jax.data.captioned_shapes import SIDE
from transformer_jax.data.images import (
    ArrayBatches,
    ImageDatasetConfig,
    ImageSplit,
    RowsConfig,
    array_batches,
    describe_images,
    load_images,
)
from transformer_jax.errors import UserError
from transformer_jax.evaluation.shape_reader import shape_scores
from transformer_jax.experiment import EvaluationConfig, RunConfig
from transformer_jax.families.family import Experiment, Family
from transformer_jax.models.discrete_vae import DiscreteVae, DiscreteVaeConfig
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import map_rows
from transformer_jax.training.discrete_vae import DiscreteVaeTask, DiscreteVaeTaskConfig
from transformer_jax.training.evaluators import split_sums
from transformer_jax.training.step import make_evaluation_step


@dataclass(frozen=True)
class DiscreteVaeEvaluationConfig(EvaluationConfig):
    """Of all images of the validation split."""

    metric: Literal["loss", "nll", "error", "attributes"]


@dataclass(frozen=True)
class DiscreteVaeRunConfig(RunConfig):
    """``model`` holds DiscreteVaeConfig without image_size and channels, which the dataset gives."""

    dataset: ImageDatasetConfig
    batching: RowsConfig
    model: dict[str, Any]
    task: DiscreteVaeTaskConfig
    evaluation: DiscreteVaeEvaluationConfig

    @property
    def rows(self) -> tuple[str, int]:
        return "batching.rows", self.batching.rows

    def check(self) -> None:
        model_config(self)
        if self.evaluation.metric == "attributes" and self.dataset.name != "captioned_shapes":
            raise UserError("evaluation.metric='attributes' is read from captioned_shapes; use 'loss' or 'error'.")


def model_config(config: DiscreteVaeRunConfig) -> DiscreteVaeConfig:
    """The model's hyperparameters, complete. Raises: UserError for one that the dataset gives."""
    given = {"image_size": SIDE, "channels": config.dataset.channels}
    for name in set(given) & set(config.model):
        raise UserError(f"model.{name} is set by the dataset; remove it.")
    return build(DiscreteVaeConfig, {**config.model, **given}, "model")


def reconstruction_scores(model: DiscreteVae, params: Any, split: ImageSplit, shapes: bool) -> dict[str, float]:
    """How much of images is left after they have been tokens.

    Returns: "error", the mean absolute difference of a pixel value, of 255; "codes_used" and "code_perplexity", of the
      distribution of all tokens; and of shapes what `shape_scores` gives.
    """
    encode, decode = (
        jax.jit(partial(model.apply, method=method)) for method in (DiscreteVae.encode, DiscreteVae.decode)
    )
    tokens = map_rows(encode, {"params": params}, split.images)
    images = map_rows(decode, {"params": params}, tokens)
    counts = np.bincount(tokens.ravel(), minlength=model.config.vocab_size)
    shares = counts[counts > 0] / counts.sum()
    return {
        "error": float(np.abs(images.astype(np.int32) - split.images).mean()),
        "codes_used": float(len(shares)),
        "code_perplexity": float(np.exp(-np.sum(shares * np.log(shares)))),
        **(shape_scores(images, split.captions) if shapes else {}),
    }


def prepare(config: DiscreteVaeRunConfig, run: RunDirectory | None) -> Experiment:
    """Reads the images."""
    dataset = load_images(config.dataset)
    if run is not None:
        run.pin("data", dataset.digest)
    task = DiscreteVaeTask(DiscreteVae(model_config(config)), config.task)
    rows, shapes = config.batching.rows, config.dataset.name == "captioned_shapes"
    report = describe_images(dataset)
    batches = ArrayBatches({"images": dataset.splits["train"].images}, rows, config.seed, "images", report)

    def make_evaluator(mesh: Mesh) -> Any:
        split, evaluate = dataset.splits["validation"], make_evaluation_step(task, mesh)
        held_out = array_batches({"images": split.images}, rows)

        def evaluator(params: Any) -> Iterator[tuple[str, float]]:
            begin = time.monotonic()
            yield from task.summarise(split_sums(evaluate, params, held_out, mesh)).items()
            yield from reconstruction_scores(task.model, params, split, shapes).items()
            yield "evaluation_seconds", time.monotonic() - begin

        return evaluator

    return Experiment(task, batches, make_evaluator)


DISCRETE_VAE = Family(config=DiscreteVaeRunConfig, prepare=prepare, commands=("experiments/evaluate.py",))
