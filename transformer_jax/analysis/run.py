"""A finished or running experiment, opened for use: its model, parameters, tokenizers, history."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from transformer_jax.analysis.averaging import mean
from transformer_jax.data.tokenizers import TokenizerPair, load_tokenizers
from transformer_jax.decoding.scoring import Scorer
from transformer_jax.decoding.translator import Translator
from transformer_jax.errors import UserError
from transformer_jax.experiment import RunConfig, make_model, parse_config
from transformer_jax.models.transformer import EncoderDecoder, IncrementalDecoder, Params, unroll
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.metric_writer import read_metrics


class Run:
    """What `load_run` gives. Everything is read when it is first asked for; nothing in the directory is executed."""

    def __init__(self, path: str | Path, checkpoint: str = "best") -> None:
        self.directory = RunDirectory.open(path)
        self.config: RunConfig = parse_config(self.directory.config)
        self.checkpoints = Checkpoints(
            self.directory.checkpoints,
            best_metric=self.config.evaluation.metric,
            best_mode="min" if self.config.evaluation.metric == "loss" else "max",
        )
        self.checkpoint = checkpoint
        self._chosen = self._choose(checkpoint)

    @cached_property
    def tokenizers(self) -> TokenizerPair:
        return load_tokenizers(self.directory.tokenizer)

    @cached_property
    def model(self) -> EncoderDecoder:
        """The unrolled model, whichever way it was trained; `params` fits it."""
        model = make_model(self.config, self.tokenizers)
        return EncoderDecoder(dataclasses.replace(model.config, scan_layers=False, remat="none"))

    @cached_property
    def params(self) -> Params:
        """Parameters of the chosen checkpoint, average of checkpoints, or moving average."""
        return unroll(self._read(*self._chosen))

    @property
    def steps(self) -> list[int]:
        """The checkpoints that `params` is made of."""
        return self._chosen[0]

    def load(self, checkpoint: str) -> Params:
        """The parameters of another choice, written as for `load_run`."""
        return unroll(self._read(*self._choose(checkpoint)))

    def _choose(self, checkpoint: str) -> tuple[list[int], str]:
        """Steps to average and the tree to read, from "best", "latest", a step, "average:N" or "ema"."""
        steps = self.checkpoints.steps()
        if not steps:
            raise UserError(f"{self.directory.path} has no checkpoint yet; train it first.")
        name, _, count = checkpoint.partition(":")
        config = self.config
        if name == "best" and not count:
            best = self.checkpoints.best_step()
            return ([steps[-1]], "params") if best is None else ([best], config.evaluated_tree)
        if name == "latest" and not count:
            return steps[-1:], "params"
        if name == "ema" and not count:
            if not config.training.ema_decay:
                raise UserError(f"{self.directory.path} kept no moving average: its training.ema_decay is 0.")
            return steps[-1:], "ema_params"
        if name == "average" and count.isdecimal() and int(count):
            if int(count) > len(steps):
                raise UserError(f"checkpoint {checkpoint!r}: only {len(steps)} checkpoints are there: {steps}.")
            return steps[-int(count) :], "params"
        if checkpoint.isdecimal() and int(checkpoint) in steps:
            return [int(checkpoint)], "params"
        raise UserError(
            f"checkpoint {checkpoint!r} is not there; give best, latest, ema, average:N, or one of the steps {steps}."
        )

    def _read(self, steps: Sequence[int], tree: str) -> Params:
        return mean(self.checkpoints.restore_parameters(step, tree) for step in steps)

    def translator(self, **overrides: Any) -> Translator:
        """A translator with the run's decoding settings, changed by keyword: ``beam_size=1``, ``n_best=5`` …"""
        fields = {f.name for f in dataclasses.fields(self.config.decoding)}
        if unknown := sorted(set(overrides) - fields):
            raise UserError(f"decoding has no setting {unknown[0]!r}; known: {sorted(fields)}.")
        decoding = dataclasses.replace(self.config.decoding, **overrides)
        mesh = make_mesh(MeshConfig(-1, 1, 1)) if jax.device_count() > 1 else None
        return Translator(IncrementalDecoder(self.model), self.params, self.tokenizers, decoding, mesh)

    @cached_property
    def _translator(self) -> Translator:
        return self.translator()

    def translate(self, lines: Sequence[str]) -> list[str]:
        """The best translation of each line."""
        return self._translator.translate(list(lines))

    @cached_property
    def _scorer(self) -> Scorer:
        def logits(params: Params, source: Any, target: Any) -> Any:
            return self.model.apply({"params": params}, source, target)

        decoding = self.config.decoding
        return Scorer(logits, decoding.batch_size, decoding.max_source_length)

    def token_log_probs(self, sources: Sequence[list[int]], targets: Sequence[list[int]]) -> list[np.ndarray]:
        """Natural log-probabilities float32[len(target) + 1] of the tokens of each target, then of its end."""
        return self._scorer.score(self.params, sources, targets)

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        """Natural log-probability float32[n] of each target given its source, end of sentence included."""
        encoded = self.tokenizers.source.encode(list(sources)), self.tokenizers.target.encode(list(targets))
        return np.asarray([tokens.sum() for tokens in self.token_log_probs(*encoded)], np.float32)

    def history(self) -> list[dict[str, Any]]:
        """All metrics written so far: dicts of step, split, name, value."""
        return read_metrics(self.directory.metrics)


def load_run(path: str | Path, checkpoint: str = "best") -> Run:
    """Opens a run directory written on any machine and mesh.

    Args:
      checkpoint: "best" (as evaluated during training), "latest", a step, "average:N" (the mean of the newest N)
        or "ema".
    Raises: UserError when there is no run, or no such checkpoint.
    """
    return Run(path, checkpoint)
