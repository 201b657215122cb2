"""The decoding settings as flags, for every command that translates."""

import dataclasses
from typing import Any

from absl import flags

from transformer_jax.errors import UserError

NAMES = (
    "method",
    "beam_size",
    "n_best",
    "length_penalty",
    "coverage_penalty",
    "patience",
    "min_length",
    "max_length_factor",
    "max_length_offset",
    "long_lines",
    "batch_size",
    "seed",
)
RERANKED = ("candidates", "rerank")  # of translations and of images
SAMPLING = ("temperature", "top_k", "top_p", "min_p")


def define_decoding_flags() -> None:
    """Declares one flag a setting; one that is not given leaves the run's own."""
    flags.DEFINE_enum("method", None, ["beam", "greedy", "sample"], "how to decode")
    flags.DEFINE_integer("beam_size", None, "hypotheses kept at each step", lower_bound=1)
    flags.DEFINE_integer("n_best", None, "translations given for each line", lower_bound=1)
    flags.DEFINE_float("length_penalty", None, "alpha of GNMT's length normalisation", lower_bound=0.0)
    flags.DEFINE_float("coverage_penalty", None, "beta of GNMT's coverage penalty", lower_bound=0.0)
    flags.DEFINE_float(
        "patience", None, "finished hypotheses per beam after which a search ends; 0: exact", lower_bound=0.0
    )
    flags.DEFINE_integer("min_length", None, "fewest tokens of an output", lower_bound=1)
    flags.DEFINE_float("max_length_factor", None, "output tokens allowed for each source token", lower_bound=0.0)
    flags.DEFINE_integer("max_length_offset", None, "output tokens allowed beyond that")
    flags.DEFINE_enum("long_lines", None, ["split", "refuse"], "what to do with a line over the model's length")
    flags.DEFINE_integer("batch_size", None, "sentences decoded at a time", lower_bound=1)
    flags.DEFINE_integer("seed", None, "of samples")
    flags.DEFINE_float("guidance", None, "text to image: scale of classifier-free guidance; 1: none")
    flags.DEFINE_integer("candidates", None, "translation and text to image: found for each line, n_best are kept")
    flags.DEFINE_enum(
        "rerank",
        None,
        ["none", "chrf", "bleu", "likelihood", "caption"],
        "which of them are kept: translations by expected chrf or bleu (minimum Bayes risk), images by the others",
    )
    flags.DEFINE_float("temperature", None, "sampling: divides the logits")
    flags.DEFINE_integer("top_k", None, "sampling: among the likeliest k tokens; 0: all", lower_bound=0)
    flags.DEFINE_float("top_p", None, "sampling: among the likeliest tokens that make up this probability")
    flags.DEFINE_float("min_p", None, "sampling: among tokens at least this likely, relative to the likeliest")


def define_ensemble() -> tuple[flags.FlagHolder[list[str]], flags.FlagHolder[bool]]:
    """Declares --ensemble and --pool, for `transformer_jax.analysis.ensemble.open_ensemble`."""
    return flags.DEFINE_list(
        "ensemble", [], "translation: other runs whose probabilities are averaged with RUN's; RUN or RUN@CHECKPOINT"
    ), flags.DEFINE_bool(
        "pool", False, "with --ensemble: put the runs' candidates together for --rerank instead of averaging"
    )


def given_settings() -> dict[str, Any]:
    """Every decoding flag that was given, by name."""
    values = flags.FLAGS.flag_values_dict()
    return {name: values[name] for name in (*NAMES, "guidance", *RERANKED, *SAMPLING) if values[name] is not None}


def decoding_overrides(config: Any) -> dict[str, Any]:
    """The settings that were given, as `Run.evaluate` and `TranslationRun.translator` take them.

    Args: config: the run's config, whose own sampling settings the sampling flags change.
    Raises: UserError for a setting when the run's family decodes nothing.
    """
    given = given_settings()
    changed = {name: given.pop(name) for name in SAMPLING if name in given}
    if not given and not changed:
        return {}
    if not hasattr(config, "decoding"):
        raise UserError(
            f"--{next(iter(given | changed))} is about decoding, but a {config.family} run decodes nothing."
        )
    for names, families in ((("guidance",), ("text_to_image",)), (RERANKED, ("translation", "text_to_image"))):
        for name in names:
            if name in given and config.family not in families:
                wanted = " and ".join(families)
                raise UserError(f"--{name} is for {wanted}, but this run is of the family {config.family}.")
    return given | ({"sampling": dataclasses.replace(config.decoding.sampling, **changed)} if changed else {})
