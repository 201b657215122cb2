"""The families by their names in a config. Each is imported when it is asked for, and by nothing but this table."""

from typing import TYPE_CHECKING

from transformer_jax.config import suggest
from transformer_jax.errors import UserError

if TYPE_CHECKING:
    from transformer_jax.families.family import Family

FAMILIES = (
    "translation",
    "language_model",
    "masked_lm",
    "classification",
    "discrete_vae",
    "text_to_image",
    "image_classification",
)


def find_family(name: str) -> "Family":
    """The family called ``name``. Raises: UserError, with the nearest name, when there is none."""
    match name:
        case "translation":
            from transformer_jax.families.translation import TRANSLATION

            return TRANSLATION
        case "language_model":
            from transformer_jax.families.language_model import LANGUAGE_MODEL

            return LANGUAGE_MODEL
        case "masked_lm":
            from transformer_jax.families.masked_lm import MASKED_LM

            return MASKED_LM
        case "classification":
            from transformer_jax.families.classification import CLASSIFICATION

            return CLASSIFICATION
        case "discrete_vae":
            from transformer_jax.families.discrete_vae import DISCRETE_VAE

            return DISCRETE_VAE
        case "text_to_image":
            from transformer_jax.families.text_to_image import TEXT_TO_IMAGE

            return TEXT_TO_IMAGE
        case "image_classification":
            from transformer_jax.families.image_classification import IMAGE_CLASSIFICATION

            return IMAGE_CLASSIFICATION
    raise UserError(f"family is {name!r}, which there is not. {suggest(str(name), FAMILIES)}")
