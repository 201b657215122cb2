"""A discrete VAE's run, opened for use: images to tokens and back, and what is lost on the way."""

from functools import cached_property
from typing import Any

import numpy as np

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.run import Run
from transformer_jax.analysis.scores import begin_record, finish_record, format_scores
from transformer_jax.data.images import array_batches, load_images
from transformer_jax.errors import UserError
from transformer_jax.families.discrete_vae import DiscreteVaeRunConfig, model_config, reconstruction_scores
from transformer_jax.families.image_tokenizer import ImageTokenizer, decode_images, encode_images
from transformer_jax.models.discrete_vae import DiscreteVae
from transformer_jax.training.discrete_vae import DiscreteVaeTask
from transformer_jax.training.evaluators import sums_on_all_devices


class DiscreteVaeRun(Run):
    """What `load_run` gives for the family "discrete_vae"."""

    config: DiscreteVaeRunConfig

    @cached_property
    def model(self) -> DiscreteVae:
        return DiscreteVae(model_config(self.config))

    @cached_property
    def image_tokenizer(self) -> ImageTokenizer:
        """The chosen checkpoint as text-to-image runs keep it."""
        return ImageTokenizer(self.model.config, self.params)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """Images uint8[n, P, P, C] to tokens int32[n, G²] in raster order."""
        return encode_images(self.model, self.params, images)

    def decode_images(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens int32[n, G²] to images uint8[n, P, P, C]."""
        return decode_images(self.model, self.params, tokens)

    def inputs(self, *texts: Any) -> Inputs:
        """Images uint8[B, P, P, C], as they are."""
        (images,) = texts
        return (np.asarray(images),)

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        return [cells(self.model.config.grid)]

    def sides(self, name: str) -> tuple[None, None]:
        return None, None

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """As `Run.evaluate`: the loss, and how well images survive being tokens. There are no files and settings."""
        refuse(self.config.family, files, settings)
        dataset = load_images(self.config.dataset)
        chosen = dataset.split(split)
        name, record = begin_record(self, {"split": split, "dataset": dataset.name, "sha256": dataset.digest}, {})
        task = DiscreteVaeTask(self.model, self.config.task)
        batches = array_batches({"images": chosen.images}, self.config.batching.rows)
        scores = task.summarise(sums_on_all_devices(task, self.params, batches))
        scores |= reconstruction_scores(self.model, self.params, chosen, dataset.name == "captioned_shapes")
        record = finish_record(self, name, {**record, "scores": scores})
        return record, format_scores(record, f"{len(chosen.images):,} images")


def cells(side: int) -> list[str]:
    """Names of the parts of an image that is cut into side² of them, in raster order."""
    return [f"row {i} column {j}" for i in range(1, side + 1) for j in range(1, side + 1)]


def refuse(family: str, files: str | None, settings: dict[str, Any]) -> None:
    """Raises: UserError for files or settings, of which the evaluation of this family takes none."""
    if files is not None or settings:
        given = "files" if files is not None else next(iter(settings))
        raise UserError(f"--{given} does not concern the evaluation of a {family} run; --split and --checkpoint do.")
