"""The Vision Transformer: patches are what they are, and where they are is known by positions alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from transformer_jax.errors import UserError
from transformer_jax.models.vision import VisionTransformer, VisionTransformerConfig

SIZES = dict(image_size=8, channels=1, num_classes=4, patch_size=4, num_layers=1, d_model=8, d_ff=16, num_heads=2)


def logits(images, **changes):
    model = VisionTransformer(VisionTransformerConfig(**{**SIZES, "norm_placement": "pre", **changes}))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), images)["params"])
    return np.asarray(jax.jit(model.apply)({"params": params}, images))


def test_only_positions_tell_where_a_patch_is():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    swapped = np.concatenate([images[:, 4:], images[:, :4]], axis=1)  # whole patches change places
    torn = np.roll(images, 1, axis=1)  # and here their pixels
    for positions in ("learned", "none"):
        found, other = logits(images, positions=positions), logits(swapped, positions=positions)
        assert found.shape == (3, 4)
        assert np.allclose(found, other, atol=1e-5) == (positions == "none")
        assert not np.allclose(found, logits(torn, positions=positions), atol=1e-5)


def test_a_patch_must_fit():
    with pytest.raises(UserError, match=r"patch_size is 3.*\[1, 2, 4, 8\]"):
        VisionTransformerConfig(**{**SIZES, "patch_size": 3})
    with pytest.raises(UserError, match="4 patches, max_length is 2"):
        VisionTransformerConfig(**{**SIZES, "max_length": 2})
    assert jnp.isfinite(logits(np.zeros((1, 8, 8, 1), np.uint8))).all()
