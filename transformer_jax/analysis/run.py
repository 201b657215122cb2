"""A finished or running experiment, opened for use: its config, checkpoints, parameters, history.

What else can be done with a run depends on its family, and is in the subclass of `Run` that `load_run` gives.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from flax import traverse_util
from jax.sharding import Mesh

from transformer_jax.analysis.averaging import mean
from transformer_jax.errors import UserError
from transformer_jax.experiment import RunConfig, parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.models.transformer import Params, unroll
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import MeshConfig, make_mesh
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.loop import enable_compilation_cache
from transformer_jax.training.metric_writer import read_metrics

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """One run. Everything is read when it is first asked for; nothing in the directory is executed."""

    config: RunConfig

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
        """The checkpoints that `params` is made of."""
        return self._chosen[0]

    def load(self, checkpoint: str | int = "best", parts: Sequence[str] = ()) -> Params:
        """The parameters of another choice, written as for `load_run`, or only parts of them.

        Args:
          parts: paths in the parameter tree, such as ("shared_embedding", "encoder"), which is what
            ``run.model.apply({"params": …}, source, method="encode")`` needs; () is all. Of scanned layers,
            whole stacks only: "encoder/layers", as they are stored.
        Raises: UserError when there is no such checkpoint or part; names what there is.
        """
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
    from transformer_jax.analysis.classification import ClassificationRun
    from transformer_jax.analysis.language_model import LanguageModelRun
    from transformer_jax.analysis.masked_lm import MaskedRun
    from transformer_jax.analysis.translation import TranslationRun

    runs = {
        "translation": TranslationRun,
        "language_model": LanguageModelRun,
        "masked_lm": MaskedRun,
        "classification": ClassificationRun,
    }
    directory = RunDirectory.open(path)
    config = parse_config(directory.config)
    run = runs[config.family](directory, config, checkpoint)
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        enable_compilation_cache()
    return run
