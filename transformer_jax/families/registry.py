"""The families by their names in a config. Each is imported when it is asked for, and by nothing but this table."""

from typing import TYPE_CHECKING

from transformer_jax.config import suggest
from transformer_jax.errors import UserError

if TYPE_CHECKING:
    from transformer_jax.families.family import Family

FAMILIES = ("translation", "language_model", "masked_lm", "classification")


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
    raise UserError(f"family is {name!r}, which there is not. {suggest(str(name), FAMILIES)}")
