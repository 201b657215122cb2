"""Several translation runs opened as one, which translates and scores with the mean of their probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jax import Array

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.run import load_run, require_family
from transformer_jax.analysis.translation import TranslationRun
from transformer_jax.decoding.ensemble import EnsembleDecoder, mean_log_probs
from transformer_jax.decoding.minimum_risk import Pool
from transformer_jax.errors import UserError
from transformer_jax.models.seq2seq import Seq2Seq


@dataclass(frozen=True)
class EnsembleModel:
    """What translating and scoring ask of a `Seq2Seq`, for several of them; parameters are a tuple, one for each."""

    models: tuple[Seq2Seq, ...]
    pool: bool

    def apply(self, variables: Mapping[str, Any], source: Array, target: Array) -> Array:
        """log of the mean probability, float32[B, T, V]: logits as those of one model."""
        parts = zip(self.models, variables["params"], strict=True)
        return mean_log_probs([model.apply({"params": own}, source, target) for model, own in parts])

    def incremental(self) -> EnsembleDecoder | Pool:
        models = tuple(model.incremental() for model in self.models)
        return Pool(models) if self.pool else EnsembleDecoder(models)


class EnsembleRun(TranslationRun):
    """Runs of any architectures or sizes, or checkpoints of one, as a run that translates, scores and is evaluated.

    The first one's settings decode, and its directory keeps the records, which name all.

    Args:
      pool: each finds candidates of its own, which decoding.rerank chooses from, instead of a search with averaged
        probabilities.
    Raises: UserError when there are not at least two, when their languages or vocabularies differ, or when one's model
      is too short for the settings.
    """

    def __init__(self, members: Sequence[TranslationRun], pool: bool = False) -> None:
        self.pool = pool
        if len(members) < 2:
            raise UserError(f"An ensemble has at least two members; {len(members)} given.")
        first, *others = self.members = tuple(members)
        for other in others:
            pair, of_first = (
                (run.config.dataset.source_language, run.config.dataset.target_language) for run in (other, first)
            )
            if pair != of_first:
                raise UserError(
                    f"{other.directory.path} translates {'-'.join(pair)}, {first.directory.path} "
                    f"{'-'.join(of_first)}; an ensemble has one direction."
                )
            if other.tokenizers.digest != first.tokenizers.digest:
                raise UserError(
                    f"{other.directory.path} and {first.directory.path} have different vocabularies; an ensemble needs "
                    "one: train both on the same data with the same config.tokenizer."
                )
            decoding, limit = first.config.decoding, other.model.config.max_length
            if limit < max(decoding.max_source_length, decoding.max_target_length):
                raise UserError(
                    f"{other.directory.path} has model.max_length={limit}, but {first.directory.path} decodes up to "
                    f"{decoding.max_source_length} source, {decoding.max_target_length} target tokens; name it first."
                )
        super().__init__(first.directory, first.config, first.checkpoint)

    @cached_property
    def model(self) -> Any:
        """An `EnsembleModel`."""
        return EnsembleModel(tuple(run.model for run in self.members), self.pool)

    @cached_property
    def params(self) -> tuple[Any, ...]:
        """The members' parameters, in their order."""
        return tuple(run.params for run in self.members)

    @property
    def points(self) -> dict[str, Any]:
        raise UserError("An ensemble has no activations of its own; capture and intervene in its members.")

    def capture_inputs(self, inputs: Inputs, names: Sequence[str] = ("*",)) -> dict[str, Any]:
        return self.points


def open_ensemble(path: str | Path, checkpoint: str, others: Sequence[str], pool: bool = False) -> Any:
    """A run and others as one; the run alone, of whatever family, when there are no others.

    Args:
      others: RUN, with the same choice of checkpoint, or RUN@CHECKPOINT.
      pool: as for `EnsembleRun`.
    Raises: UserError as `load_run` and `EnsembleRun`.
    """
    run = load_run(path, checkpoint)
    if pool and not others:
        raise UserError("--pool puts the candidates of several runs together; name the others with --ensemble.")
    if not others:
        return run
    members = [run]
    for other in others:
        folder, at, choice = other.rpartition("@")
        members.append(load_run(folder, choice) if at else load_run(other, checkpoint))
    for member in members:
        require_family("translation", member.config)
    return EnsembleRun(members, pool)
