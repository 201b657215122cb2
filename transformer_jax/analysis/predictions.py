"""Lines of text to lines of what an encoder says of them: what the predict command does, without its flags."""

from collections.abc import Iterable
from itertools import islice
from typing import IO, Any

from transformer_jax.analysis.classification import ClassificationRun
from transformer_jax.analysis.masked_lm import MaskedRun
from transformer_jax.errors import UserError
from transformer_jax.families.registry import find_family

CHUNK = 1024  # lines at a time


def write_predictions(run: Any, lines: Iterable[str], output: IO[str], top: int = 5) -> None:
    """One line for each text with its label, its probability and the text; or one for each word, and an empty line
    after each text; or one for each [MASK]: line, probability and token, best first.

    Raises: UserError for a run that is neither a classifier nor a masked language model.
    """
    if not isinstance(run, (ClassificationRun, MaskedRun)):
        commands = " or ".join(find_family(run.config.family).commands)
        raise UserError(f"{run.config.name} is of the family {run.config.family}; use {commands}.")
    source, first = iter(lines), 1
    while chunk := list(islice(source, CHUNK)):
        if isinstance(run, MaskedRun):
            for number, line in enumerate(chunk, first):
                for fillings in run.fill_mask(line, top):
                    shown = "\t".join(f"{filling.token!r} {filling.probability:.4f}" for filling in fillings)
                    output.write(f"{number}\t{shown}\n")
        elif run.model.config.level == "token":
            for line, labels in zip(chunk, run.predict(chunk), strict=True):
                words = line.split()
                labels = [*labels, *["(cut off)"] * (len(words) - len(labels))]
                output.write("".join(f"{word}\t{label}\n" for word, label in zip(words, labels, strict=True)) + "\n")
        else:
            for line, found in zip(chunk, run.classify([line.split("\t") for line in chunk]), strict=True):
                label, probability = next(iter(found.items()))
                output.write(f"{label}\t{probability:.4f}\t{line}\n")
        first += len(chunk)
