"""The losses of the models of images: what is weighted how, and what padding rows count for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.families.image_meshes import make_text_to_image, make_vae
from transformer_jax.models.layers import row_seeds
from transformer_jax.training.discrete_vae import annealed


def prepared(make):
    task, batch, _ = make()
    params = nn.unbox(jax.jit(task.init)(jax.random.key(0)))
    return task, batch, params, jax.jit(lambda batch, seeds: task.loss(params, batch, seeds)[1])


def test_annealing_is_half_a_cosine():
    found = [float(annealed(jnp.asarray(step), 2.0, 1.0, 10)) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(found, [2.0, 1.5, 1.0, 1.0], atol=1e-6)


def test_the_kl_term_has_the_weight_of_its_step():
    """Of 1 at first, 0.5 from step 4 on and in evaluation; per pixel value of seven images, the eighth is padding."""
    _, batch, _, sums = prepared(make_vae)
    seeds = row_seeds(0, 0, range(8))
    for step, weight in ((0, 1.0), (2, 0.75), (9, 0.5)):
        found = sums({**batch, "step": jnp.full(8, step)}, seeds)
        assert float(found["loss"] - found["nll"]) == pytest.approx(weight * float(found["kl"]), rel=1e-3)
    found = sums(batch, None)
    assert float(found["loss"] - found["nll"]) == pytest.approx(0.5 * float(found["kl"]), rel=1e-3)
    assert (float(found["images"]), float(found["tokens"])) == (7, 7 * 64)


def test_text_and_image_are_weighted_one_to_seven():
    task, batch, params, sums = prepared(make_text_to_image)
    means = task.summarise({name: float(value) for name, value in sums(batch, None).items()})
    assert means["loss"] == pytest.approx(means["text_nll"] / 8 + 7 / 8 * means["image_nll"], rel=0.2)
    rows = batch["tokens"][:7]
    log_probs = task.model.apply({"params": params}, rows, method="log_probs")
    assert means["image_nll"] == pytest.approx(-float(log_probs.mean()) / 9, rel=1e-5)


def test_rows_without_caption_teach_no_text():
    """Of a share of rows in training the model sees padding alone; the loss of their text does not count."""
    _, batch, _, sums = prepared(make_text_to_image)
    counts = [
        float(sums({**batch, "step": jnp.zeros(8)}, row_seeds(0, step, range(8)))["captioned"]) for step in range(20)
    ]
    assert 0.5 < np.mean(counts) / 7 < 0.9
    assert len(set(counts)) > 2
