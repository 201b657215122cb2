"""The task of a discrete VAE: the evidence lower bound of images, with tokens relaxed by Gumbel noise."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from transformer_jax.errors import UserError
from transformer_jax.models.discrete_vae import DiscreteVae, divergence, logit_laplace
from transformer_jax.models.layers import Seeds
from transformer_jax.training.losses import Sums
from transformer_jax.training.tasks import Batch


@dataclass(frozen=True)
class DiscreteVaeTaskConfig:
    """The relaxation and the weight of the KL term, annealed along half a cosine (Ramesh et al. 2021, section 2.1 and
    appendix A.2).

    Attributes:
      first_temperature, last_temperature, temperature_steps: of the relaxation: from the one to the other over so many
        steps.
      first_kl_weight, last_kl_weight, kl_steps: β, likewise. The paper's grows from 0 to 6.6. Where most of an
        image is one surface it is better small: large, it makes many codes stand for that surface.
    """

    first_temperature: float
    last_temperature: float
    temperature_steps: int
    first_kl_weight: float
    last_kl_weight: float
    kl_steps: int

    def __post_init__(self) -> None:
        if not 0 < self.last_temperature <= self.first_temperature:
            raise UserError(
                f"task.last_temperature is {self.last_temperature}; it must be above 0 and at most "
                f"task.first_temperature, {self.first_temperature}."
            )
        for name in ("first_kl_weight", "last_kl_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"task.{name} is {getattr(self, name)}; it must be at least 0.")
        for name in ("temperature_steps", "kl_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"task.{name} is {getattr(self, name)}; it must be at least 1.")


def annealed(step: Array, first: float, last: float, steps: int) -> Array:
    """From ``first`` at step 0 to ``last`` at ``steps`` and after, along half a cosine."""
    done = jnp.clip(step.astype(jnp.float32) / steps, 0.0, 1.0)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * done)) / 2


@dataclass(frozen=True)
class DiscreteVaeTask:
    """-log p(x|z) + β·KL(q(z|x) || uniform) of each image; the loss is counted per pixel value.

    Batches have "images" uint8[B, P, P, C] and "weights" float32[B]. Evaluation takes the likeliest tokens and the last
    β.
    """

    model: DiscreteVae
    config: DiscreteVaeTaskConfig

    def init(self, rng: Array) -> Any:
        c = self.model.config
        return self.model.init(rng, jnp.zeros((1, c.image_size, c.image_size, c.channels), jnp.uint8))["params"]

    def loss(self, params: Any, batch: Batch, seeds: Seeds) -> tuple[Array, Sums]:
        c, images, weights = self.config, batch["images"], batch["weights"]
        apply: Any = self.model.apply
        if seeds is None:
            relaxed, beta = apply({"params": params}, images), jnp.full(len(images), c.last_kl_weight)
        else:
            step = batch["step"]
            temperature = annealed(step, c.first_temperature, c.last_temperature, c.temperature_steps)
            relaxed = apply({"params": params}, images, seeds, temperature[:, None, None, None])
            beta = annealed(step, c.first_kl_weight, c.last_kl_weight, c.kl_steps)
        likelihood = logit_laplace(images, relaxed.location, relaxed.log_scale)
        nll = jnp.sum(weights * -jnp.sum(likelihood, axis=(1, 2, 3)))
        kl = jnp.sum(divergence(relaxed.logits), axis=(1, 2))
        loss = nll + jnp.sum(weights * beta * kl)
        sums = {"loss": loss, "nll": nll, "kl": jnp.sum(weights * kl), "images": jnp.sum(weights)}
        return loss, sums | {"tokens": jnp.sum(weights) * math.prod(images.shape[1:])}

    def summarise(self, sums: dict[str, float]) -> dict[str, float]:
        """Loss and nll in nats a pixel value; kl in nats an image token."""
        values, places = max(sums["tokens"], 1.0), max(sums["images"], 1.0) * self.model.config.grid**2
        return {"loss": sums["loss"] / values, "nll": sums["nll"] / values, "kl": sums["kl"] / places}
