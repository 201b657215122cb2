"""A finished or running experiment, opened for use: its config, checkpoints, parameters, history.

What else can be done with a run depends on its family, and is in the subclass of `Run` that `load_run` gives.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from transformer_jax.analysis.averaging import mean
from transformer_jax.analysis.capture import CapturedHypothesis, Inputs, alone, capture, matching, points
from transformer_jax.decoding.batching import Hypothesis
from transformer_jax.decoding.tracing import Trace
from transformer_jax.errors import UserError
from transformer_jax.experiment import RunConfig, parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.models.taps import Edit, Interventions, Network
from transformer_jax.models.transformer import Params, unroll
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.training.checkpoints import EVALUATED, Checkpoints
from transformer_jax.training.loop import enable_compilation_cache
from transformer_jax.training.metric_writer import read_metrics

if TYPE_CHECKING:
    import pandas as pd

RUNS = {
    "translation": "TranslationRun",
    "language_model": "LanguageModelRun",
    "masked_lm": "MaskedRun",
    "classification": "ClassificationRun",
    "discrete_vae": "DiscreteVaeRun",
    "text_to_image": "TextToImageRun",
    "image_classification": "ImageClassificationRun",
}
"""The class of a family's runs, in the module here that is called like the family."""


class Run:
    """One run. Everything is read when it is first asked for; nothing in the directory is executed.

    Of a subclass, cached properties whose names begin with an underscore are what is made of ``model`` and ``params``.
    """

    config: RunConfig
    model: Any
    """The unrolled network, whichever way it was trained; `params` fits it."""

    def __init__(self, directory: RunDirectory, config: RunConfig, checkpoint: str) -> None:
        self.directory, self.config = directory, config
        self.checkpoints = Checkpoints(
            self.directory.checkpoints,
            best_metric=self.config.evaluation.metric,
            best_mode=self.config.evaluation.best_mode,
        )
        self.checkpoint = checkpoint
        self._chosen = self._choose(checkpoint)

    @cached_property
    def params(self) -> Params:
        """Parameters of the chosen checkpoint, average of checkpoints, or moving average."""
        return unroll(self._read(*self._chosen))

    @property
    def steps(self) -> list[int]:
        """The checkpoints that `params` is read from; more than one: it is their mean."""
        return self._chosen[0]

    @property
    def weights(self) -> dict[str, Any]:
        """What of these checkpoints `params` is: their own parameters ("latest"), the moving average ("ema"), or the
        mean of earlier ones that was evaluated ("average"), with its steps."""
        steps, tree = self._chosen
        if tree != EVALUATED:
            return {"kind": {"params": "latest", "ema_params": "ema"}[tree]}
        averaged = self.checkpoints.averaged(steps[0])
        return {"kind": self.config.evaluation.weights, **({"steps": averaged} if averaged else {})}

    def load(self, checkpoint: str | int = "best", parts: Sequence[str] = ()) -> Params:
        """The parameters of another choice, written as for `load_run`, or only parts of them.

        Args:
          parts: paths in the parameter tree, such as ("shared_embedding", "encoder"), which is what
            ``run.model.apply({"params": …}, source, method="encode")`` needs; () is all. Of scanned layers,
            whole stacks only: "encoder/layers", as they are stored.
        Raises: UserError when there is no such checkpoint or part; names what there is.
        """
        parts = listed(parts)
        steps, tree = self._choose(str(checkpoint))
        if not parts:
            return unroll(self._read(steps, tree))
        chosen: dict[tuple[str, ...], Any] = {}
        for part in parts:
            chosen[tuple(part.split("/"))] = self._read(steps, f"{tree}/{part}")
        return unroll(traverse_util.unflatten_dict(chosen))

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

    def with_params(self, params: Params) -> Self:
        """The same run with other parameters of the same shapes, such as what `load` gives."""
        return self._changed(params=params)

    def intervene(self, edits: Mapping[str, Edit]) -> Self:
        """The same run with activations replaced, in whatever is done with it: scores, captures, outputs of searches.

        Edits come on top of those that the run has. While decoding, one position is computed at a time and the axis
        of positions holds beams instead; ``weights`` are then over the slots of a cache, in no order. An edit that
        treats positions alike does the same there as in teacher forcing.

        Args:
          edits: ``edit(value, name)`` by patterns of names: see `points`, and `analysis.interventions` for ready ones.
        Raises: UserError for a pattern that matches no name.
        """
        matching(self.points, edits)
        model: Network = self.model
        return self._changed(model=model.clone(interventions=Interventions(edits, model.interventions)))

    def _changed(self, **values: Any) -> Self:
        other = copy.copy(self)
        for cls in type(self).__mro__:
            for name, value in vars(cls).items():
                if name.startswith("_") and isinstance(value, cached_property):
                    vars(other).pop(name, None)
        vars(other).update(values)
        return other

    @property
    def points(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The names of all activations, with the shape and type each has for two positions of one sentence, or one
        image."""
        return dict(points(self.model))

    def capture(self, *texts: Sequence[str], names: Sequence[str] = ("*",)) -> dict[str, np.ndarray]:
        """Activations in teacher forcing, by name.

        Args:
          texts: what `inputs` takes: sources and targets for translation, texts for a language model, images for an
            image classifier.
          names: patterns of names, as `fnmatch` has them: see `points`.
        Returns: arrays in the network's layout, the batch's axis first. Shorter rows are padded at the end to the
          longest; what stands at padding means nothing.
        Raises: UserError for a pattern that matches no name, and for texts that the model cannot take.
        """
        return self.capture_inputs(self.inputs(*texts), names)

    def capture_inputs(self, inputs: Inputs, names: Sequence[str] = ("*",)) -> dict[str, np.ndarray]:
        """As `capture`, of tokens as the model is called with them."""
        return capture(self.model, self.params, inputs, names, self.sides)

    def capture_search(
        self, lines: Sequence[str], names: Sequence[str] = ("*",), **overrides: Any
    ) -> list[list[CapturedHypothesis]]:
        """Activations of each of the n best outputs for each line, best first; settings as for searching.

        They are what the search itself computed, up to rounding: each output is read back in teacher forcing.
        """
        matching(self.points, names)
        found = []
        for line, hypotheses in zip(lines, self.search(lines, **overrides), strict=True):
            inputs = self.hypothesis_inputs(line, [hypothesis.tokens for hypothesis in hypotheses])
            activations = self.capture_inputs(inputs, names)
            texts = self.decode([hypothesis.tokens for hypothesis in hypotheses])
            found.append(
                [
                    CapturedHypothesis(text, h.tokens, h.score, h.log_prob, alone(activations, inputs, i, self.sides))
                    for i, (text, h) in enumerate(zip(texts, hypotheses, strict=True))
                ]
            )
        return found

    def inputs(self, *texts: Sequence[str]) -> Inputs:
        """The tokens int32[B, positions] that the model is called with for lists of texts, zeros after their ends."""
        raise NotImplementedError

    def predicted(self, inputs: Inputs) -> np.ndarray:
        """The token int32[B, T] that each position's logits are to give, 0 where there is none."""
        raise NotImplementedError

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        """Readable names of the tokens of one row, for each of the `inputs`, without padding."""
        raise NotImplementedError

    def read_pieces(self, name: str, inputs: Inputs) -> list[str]:
        """Readable names of the tokens that embeddings of that name stand for, of the first row of `inputs`."""
        side, _ = self.sides(name)
        return self.pieces(inputs)[side or 0]

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        """Readable names of tokens that the model predicts."""
        raise NotImplementedError

    def sides(self, name: str) -> tuple[int | None, int | None]:
        """Along which of the `inputs` the last axis but one of an activation runs, and along which the last; None
        where it runs along none."""
        raise NotImplementedError

    def search(self, lines: Sequence[str], **overrides: Any) -> list[list[Hypothesis]]:
        """The n best outputs for each line, as tokens; the run's decoding settings, changed by keyword."""
        raise NotImplementedError

    def trace(self, line: str, **overrides: Any) -> Trace:
        """A beam search for one line, watched; settings as for `search`."""
        raise NotImplementedError

    def hypothesis_inputs(self, line: str, outputs: Sequence[list[int]]) -> Inputs:
        """The `inputs` with which the model reads back what it wrote for a line."""
        raise NotImplementedError

    def decode(self, outputs: Sequence[list[int]]) -> list[str]:
        """The texts of outputs."""
        raise NotImplementedError

    def history(self) -> "pd.DataFrame":
        """All metrics written so far, float64: a row for each step, a column "SPLIT/NAME" for each metric.

        NaN where a step has no such metric: ``run.history()["validation/bleu"].dropna()``.
        """
        import pandas as pd  # half a second, which who only translates need not wait for

        rows = pd.DataFrame(read_metrics(self.directory.metrics), columns=["step", "split", "name", "value"])
        columns = (rows["split"] + "/" + rows["name"]).rename(None)
        return rows.pivot_table(index="step", columns=columns, values="value", aggfunc="last", sort=True, dropna=False)

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """Measures the run on a split of its dataset, or on files, and writes a record into its directory.

        Args:
          files: names of files as the family takes them, instead of a split.
          settings: what is changed of the run's own settings.
        Returns: the record, and the same for a terminal.
        Raises: UserError for a split, file or setting that there is not.
        """
        raise NotImplementedError


def listed(given: Sequence[Any]) -> list[Any]:
    """What is given, as a list. Raises: UserError for a lone string, each character of which would count as one."""
    if isinstance(given, str):
        raise UserError(f"{given[:60]!r} is a string; give a list of them, even of one.")
    return list(given)


def require_family(name: str, config: RunConfig) -> None:
    """Raises: UserError unless the config is of that family; says what its own family's commands are."""
    if config.family != name:
        commands = " or ".join(find_family(config.family).commands)
        raise UserError(f"{config.name} is of the family {config.family}, this is for {name}; use {commands}.")


def decoding_mesh() -> Mesh | None:
    """All devices, of all processes, side by side; None where there is but one."""
    return make_mesh(MeshConfig(-1, 1, 1)) if jax.device_count() > 1 else None


def load_run(path: str | Path, checkpoint: str = "best") -> Any:
    """Opens a run directory written on any machine and mesh.

    Programs that are compiled from now on are kept for the next process, unless jax was given a folder for them.

    Args:
      checkpoint: "best" (as evaluated during training), "latest", a step, "average:N" (the mean of the newest N)
        or "ema".
    Returns: the `Run` of the family that its config names: `TranslationRun` …
    Raises: UserError when there is no run, or no such checkpoint.
    """
    directory = RunDirectory.open(path)
    config = parse_config(directory.config)
    # What one family needs is imported, no more: who translates need not wait for what reads images.
    kind = getattr(import_module(f"transformer_jax.analysis.{config.family}"), RUNS[config.family])
    run = kind(directory, config, checkpoint)
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        enable_compilation_cache()
    return run
