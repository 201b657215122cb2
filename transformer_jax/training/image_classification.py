"""The task of an image classifier: the class of an image, which is turned, scaled and moved a little in training."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates

from transformer_jax.errors import UserError
from transformer_jax.models.layers import Seeds, uniform
from transformer_jax.models.vision import VisionTransformer
from transformer_jax.training.losses import Sums, cross_entropy
from transformer_jax.training.tasks import Batch


@dataclass(frozen=True)
class ImageClassificationTaskConfig:
    """The loss of a classifier, and how far its training images are changed at random; zeros leave them as they are.

    Attributes:
      rotation: at most so many degrees.
      scaling: by at most this share larger or smaller.
      shear: at most so many pixels sideways for each pixel up.
      shift: at most so many pixels along each axis.
    """

    label_smoothing: float
    rotation: float
    scaling: float
    shear: float
    shift: float

    def __post_init__(self) -> None:
        for name, most in (("label_smoothing", 1), ("rotation", 180), ("scaling", 1), ("shear", 1), ("shift", 64)):
            if not 0 <= getattr(self, name) < most:
                raise UserError(f"task.{name} is {getattr(self, name)}; it must be at least 0 and below {most}.")


def augmented(images: Array, seeds: Array, config: ImageClassificationTaskConfig) -> Array:
    """uint8[B, P, P, C] -> float32[B, P, P, C], each image under a random affine map of its own; outside is 0."""
    P = images.shape[1]
    draws = 2 * uniform(seeds, "augmentation", (6,)) - 1
    angle = jnp.deg2rad(config.rotation) * draws[:, 0]
    scale = 1 / (1 + config.scaling * draws[:, 1:3])
    shear, shift = config.shear * draws[:, 3], config.shift * draws[:, 4:]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    middle = (P - 1) / 2
    y, x = jnp.mgrid[:P, :P] - middle

    def one(image: Array, sine: Array, cosine: Array, scale: Array, shear: Array, shift: Array) -> Array:
        rows = scale[0] * (cosine * y + sine * x) + middle + shift[0]
        columns = scale[1] * (cosine * x - sine * y + shear * y) + middle + shift[1]
        channel = lambda plane: map_coordinates(plane, [rows, columns], order=1)
        return jax.vmap(channel, in_axes=-1, out_axes=-1)(image.astype(jnp.float32))

    return jax.vmap(one)(images, sine, cosine, scale, shear, shift)


@dataclass(frozen=True)
class ImageClassificationTask:
    """Cross entropy of the class. Batches have "images" uint8[B, P, P, C], "labels" int32[B], "weights" float32[B]."""

    model: VisionTransformer
    config: ImageClassificationTaskConfig

    def init(self, rng: Array) -> Any:
        c = self.model.config
        return self.model.init(rng, jnp.zeros((1, c.image_size, c.image_size, c.channels), jnp.uint8))["params"]

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        images, labels, weights = batch["images"], batch["labels"], batch["weights"]
        if seeds is not None:
            images = augmented(images, seeds, self.config)
        logits: Any = self.model.apply({"params": params}, images, seeds)
        smoothed, nll = cross_entropy(logits, labels, self.config.label_smoothing if seeds is not None else 0.0)
        right = jnp.sum(weights * (jnp.argmax(logits, axis=-1) == labels))
        loss = jnp.sum(weights * smoothed)
        return loss, {"loss": loss, "nll": jnp.sum(weights * nll), "right": right, "tokens": jnp.sum(weights)}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Loss and nll in nats an image, and the share of images whose class is right."""
        images = max(sums["tokens"], 1.0)
        return {name: sums[part] / images for name, part in (("loss", "loss"), ("nll", "nll"), ("accuracy", "right"))}
