"""The formats by name, and which one a run or a folder is for."""

from collections.abc import Mapping
from typing import Any

from transformer_jax.config import suggest
from transformer_jax.conversion.bert import BERT, BERT_CLASSIFIER
from transformer_jax.conversion.ctranslate2 import CTRANSLATE2, CTRANSLATE2_TEXT
from transformer_jax.conversion.format import Format
from transformer_jax.conversion.gpt2 import GPT2
from transformer_jax.conversion.lstm import LSTM
from transformer_jax.conversion.marian import MARIAN, PEGASUS
from transformer_jax.errors import UserError

FORMATS: tuple[Format, ...] = (MARIAN, PEGASUS, GPT2, LSTM, BERT, BERT_CLASSIFIER, CTRANSLATE2, CTRANSLATE2_TEXT)


def format_for_run(name: str | None, family: str, model: Any) -> Format:
    """The format called ``name``; None: the one that suits the hyperparameters.

    Raises: UserError when there is none for the family.
    """
    kind = family, getattr(model, "architecture", "transformer")
    own = {found.name: found for found in FORMATS if (found.family, found.architecture) == kind}
    if name is None:
        for found in own.values():
            if found.suits(model):
                return found
        raise UserError(f"The family {family} has no format to export to.")
    if name not in own:
        raise UserError(f"--format={name}: the family {family} has no such format. {suggest(name, own)}")
    return own[name]


def format_of_folder(there: Mapping[str, Any], folder: Any) -> Format:
    """The format that a folder's ``config.json`` names. Raises: UserError when it is none that is read."""
    readable = [found for found in FORMATS if found.describe is not None]
    kind, classes = there.get("model_type"), there.get("architectures") or ()
    own = [found for found in readable if found.model_type == kind]
    if not own:
        known = sorted({found.model_type for found in readable})
        raise UserError(f"{folder}/config.json has model_type {kind!r}; what can be imported is {', '.join(known)}.")
    return next((found for found in own if set(found.classes) & set(classes)), own[0])
