"""An image classifier's run, opened for use: classes of images, and how many are right."""

from functools import cached_property
from typing import Any

import numpy as np

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.discrete_vae import cells, refuse
from transformer_jax.analysis.run import Run
from transformer_jax.analysis.scores import begin_record, finish_record, format_scores
from transformer_jax.data.images import array_batches, load_images
from transformer_jax.families.image_classification import (
    ImageClassificationRunConfig,
    classify,
    example_arrays,
    model_config,
)
from transformer_jax.models.transformer import plain
from transformer_jax.models.vision import VisionTransformer
from transformer_jax.training.evaluators import sums_on_all_devices
from transformer_jax.training.image_classification import ImageClassificationTask


class ImageClassificationRun(Run):
    """What `load_run` gives for the family "image_classification"."""

    config: ImageClassificationRunConfig

    @cached_property
    def model(self) -> VisionTransformer:
        """The unrolled model, whichever way it was trained; `params` fits it."""
        return VisionTransformer(plain(model_config(self.config)))

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Natural log-probabilities of the classes float32[n, num_classes] of images uint8[n, P, P, C]."""
        return classify(self.model, self.params, images)

    def inputs(self, *texts: Any) -> Inputs:
        """Images uint8[B, P, P, C], as they are."""
        (images,) = texts
        return (np.asarray(images),)

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        return [cells(self.model.config.image_size // self.model.config.patch_size)]

    def sides(self, name: str) -> tuple[None, None]:
        return None, None

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """As `Run.evaluate`: the loss and the accuracy. There are no files and settings."""
        refuse(self.config.family, files, settings)
        dataset = load_images(self.config.dataset)
        chosen = dataset.split(split)
        name, record = begin_record(self, {"split": split, "dataset": dataset.name, "sha256": dataset.digest}, {})
        task = ImageClassificationTask(self.model, self.config.task)
        batches = array_batches(example_arrays(chosen), self.config.batching.rows)
        scores = task.summarise(sums_on_all_devices(task, self.params, batches))
        record = finish_record(self, name, {**record, "scores": scores})
        return record, format_scores(record, f"{len(chosen.images):,} images")
