"""Image classification with a Vision Transformer: config sections, the model for a dataset, and the evaluator."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
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
from transformer_jax.experiment import EvaluationConfig, RunConfig, parse_config
from transformer_jax.families.family import Experiment, Family
from transformer_jax.models.transformer import plain, unroll
from transformer_jax.models.vision import VisionTransformer, VisionTransformerConfig
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import map_rows
from transformer_jax.training.evaluators import split_sums
from transformer_jax.training.image_classification import ImageClassificationTask, ImageClassificationTaskConfig
from transformer_jax.training.initialization import read_parameters
from transformer_jax.training.step import make_evaluation_step


@dataclass(frozen=True)
class ImageClassificationEvaluationConfig(EvaluationConfig):
    """Of all images of the validation split."""

    metric: Literal["loss", "nll", "accuracy"]


@dataclass(frozen=True)
class ImageClassificationRunConfig(RunConfig):
    """``model`` holds VisionTransformerConfig without image_size, channels and num_classes, which the dataset gives."""

    dataset: ImageDatasetConfig
    batching: RowsConfig
    model: dict[str, Any]
    task: ImageClassificationTaskConfig
    evaluation: ImageClassificationEvaluationConfig

    @property
    def rows(self) -> tuple[str, int]:
        return "batching.rows", self.batching.rows

    def check(self) -> None:
        if not self.dataset.classes:
            raise UserError(f"dataset.name={self.dataset.name} has no classes; use mnist.")
        model_config(self)


def model_config(config: ImageClassificationRunConfig) -> VisionTransformerConfig:
    """The model's hyperparameters, complete. Raises: UserError for one that the dataset gives."""
    given = {"image_size": SIDE, "channels": config.dataset.channels, "num_classes": config.dataset.classes}
    for name in set(given) & set(config.model):
        raise UserError(f"model.{name} is set by the dataset; remove it.")
    return build(VisionTransformerConfig, {**config.model, **given}, "model")


def classify(model: VisionTransformer, params: Any, images: np.ndarray) -> np.ndarray:
    """Log-probabilities of the classes float32[n, num_classes] of images uint8[n, P, P, C]."""
    return map_rows(_log_probs(model), params, images)


@lru_cache(maxsize=8)
def _log_probs(model: VisionTransformer) -> Any:
    return jax.jit(lambda params, images: jax.nn.log_softmax(jnp.asarray(model.apply({"params": params}, images))))


def open_classifier(path: str) -> tuple[VisionTransformer, Any]:
    """The model and the best parameters of a run of this family. Raises: UserError when there is none at ``path``."""
    run = RunDirectory.open(path)
    config = parse_config(run.config)
    if not isinstance(config, ImageClassificationRunConfig):
        raise UserError(f"{path} is of the family {config.family}; give a run of image_classification.")
    return VisionTransformer(plain(model_config(config))), unroll(read_parameters(run, "best", "checkpoint"))


def example_arrays(split: ImageSplit) -> dict[str, np.ndarray]:
    """The arrays that batches are made of."""
    return {"images": split.images, "labels": split.labels}


def prepare(config: ImageClassificationRunConfig, run: RunDirectory | None) -> Experiment:
    """Reads the images."""
    dataset = load_images(config.dataset)
    if run is not None:
        run.pin("data", dataset.digest)
    task = ImageClassificationTask(VisionTransformer(model_config(config)), config.task)
    rows, arrays = config.batching.rows, example_arrays(dataset.splits["train"])

    def make_evaluator(mesh: Mesh) -> Any:
        evaluate = make_evaluation_step(task, mesh)
        held_out = array_batches(example_arrays(dataset.splits["validation"]), rows)

        def evaluator(params: Any) -> Iterator[tuple[str, float]]:
            begin = time.monotonic()
            yield from task.summarise(split_sums(evaluate, params, held_out, mesh)).items()
            yield "evaluation_seconds", time.monotonic() - begin

        return evaluator

    batches = ArrayBatches(arrays, rows, config.seed, "labels", describe_images(dataset))
    return Experiment(task, batches, make_evaluator)


IMAGE_CLASSIFICATION = Family(
    config=ImageClassificationRunConfig, prepare=prepare, commands=("experiments/evaluate.py",)
)
