"""What a study is: written once into its study.json, which every worker reads."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from experiments.sweeping.space import (
    SearchSpace,
    dimensions_to_json,
    every_point,
    first_point,
    override,
    parse_dimensions,
    read_search_space,
    space_of_dimensions,
)
from transformer_jax.config import build, differences
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain
from transformer_jax.run_directory import write_json

Direction = Literal["minimize", "maximize"]
FILE = "study.json"
SAMPLED_POINTS = 20
JOURNAL = "journal.log"
RAISED = ("points", "seeds")
"""Settings that a study may be joined with larger ones of."""


@dataclass(frozen=True)
class Settings:
    """A study's settings.

    A point is one choice of everything that varies; each is trained with every seed, and each of these is a trial.
    """

    name: str  # in Optuna's storage, where several studies may be
    storage: str  # JOURNAL, in the study's folder; a database URL; or grpc://HOST:PORT
    config: dict[str, Any]  # what the trials' configs are changed from
    config_file: str  # whose search_space(trial) says what varies; empty: `dimensions` do
    dimensions: dict[str, Any]  # distributions by key, as Optuna writes them
    sampler: Literal["grid", "random", "tpe", "quasi_random"]
    pruner: Literal["none", "median", "hyperband"]
    objectives: tuple[Literal["quality", "time", "parameters"], ...]
    points: int  # that are tried; with the sampler grid: all there are
    seeds: int  # of each point: config.seed, config.seed + 1, …
    cores: int  # of a worker without accelerator

    def __post_init__(self) -> None:
        for name in ("points", "seeds", "cores"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise UserError(f"objectives are {', '.join(self.objectives) or 'none'}; name one or more, each once.")
        if self.pruner != "none" and self.objectives != ("quality",):
            raise UserError(
                f"--pruner={self.pruner} compares trials while they train, by their quality alone, and the objectives "
                f"are {', '.join(self.objectives)}; set --pruner=none or --objectives=quality."
            )

    @property
    def search_space(self) -> SearchSpace:
        if self.config_file:
            space = read_search_space(self.config_file)
            if space is None:
                raise UserError(f"{self.config_file} no longer defines search_space(trial), which this study asks.")
            return space
        return space_of_dimensions(self.dimensions)

    @property
    def directions(self) -> list[Direction]:
        mode = parse_config(self.config).evaluation.best_mode
        return ["maximize" if name == "quality" and mode == "max" else "minimize" for name in self.objectives]

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Settings":
        """Raises: UserError if there is no study in the folder."""
        file = folder / FILE
        if not file.is_file():
            raise UserError(
                f"{folder} is no study: it has no {FILE}. experiments/sweep.py --config=… starts one; a folder of "
                "another machine must be seen by this one too."
            )
        return build(cls, json.loads(file.read_text(encoding="utf-8")))


def new_settings(
    folder: str | Path,
    spec: str,
    config: ConfigDict,
    grid: Sequence[str],
    space: Sequence[str],
    sampler: str | None,
    points: int | None,
    **others: Any,
) -> Settings:
    """The settings that a command line asks for, checked down to the config of each point of a grid.

    Args:
      spec: the config's FILE.py or FILE.py:ARGUMENT; ``config`` is what it gives, with overrides applied.
      grid, space: the command line's dimensions; of neither: the config file's search_space, or seeds alone.
      others: storage, pruner, objectives, seeds, cores.
    Raises: UserError for anything that cannot be.
    """
    if grid and space:
        raise UserError("--grid and --space exclude each other: give lists and ranges as --space, and a --sampler.")
    dimensions = parse_dimensions([*grid, *space], spec)
    own = None if dimensions else read_search_space(spec)
    file = str(Path(spec.partition(":")[0]).absolute()) if own else ""
    if grid and sampler not in (None, "grid"):
        raise UserError(f"--grid tries every combination; with --sampler={sampler} give the same words as --space.")
    chosen = sampler or ("tpe" if space or own else "grid")
    stored = dimensions_to_json(dimensions)
    if chosen == "grid":
        if points is not None:
            raise UserError(f"--points={points}: a grid has as many points as it has; leave --points away.")
        points = len(every_point(own or space_of_dimensions(stored)))
    name = re.sub(r"[^\w.-]", "_", f"{Path(folder).absolute().name}-{uuid.uuid4().hex[:8]}")
    fields = {
        "name": name,
        "config": plain(config),
        "config_file": file,
        "dimensions": stored,
        "sampler": chosen,
        "points": SAMPLED_POINTS if points is None else points,
    }
    settings = build(Settings, {**fields, **others})
    check_points(settings)
    return settings


def check_points(settings: Settings) -> None:
    """Tries the configs of the study before any work: all of a grid, one of another space."""
    space = settings.search_space
    if settings.sampler == "grid":
        from optuna.trial import FixedTrial

        tried: list[Mapping[str, Any]] = [space(FixedTrial(params)) for params in every_point(space)]
    else:
        tried = [first_point(space)]
    for overrides in tried:
        if not isinstance(overrides, Mapping):
            raise UserError(f"search_space(trial) returns {overrides!r}; wanted: a dict of config keys and values.")
        if "seed" in overrides and settings.seeds > 1:
            raise UserError("The search space sets the seed itself; leave --seeds away, or the seed.")
        try:
            parse_config(override(settings.config, overrides))
        except UserError as error:
            point = ", ".join(f"{key}={value}" for key, value in overrides.items())
            raise UserError(f"The point {point or 'of the config itself'} cannot be: {error}") from error


def joined(there: Settings, wanted: Settings) -> Settings:
    """The settings of a study that is joined with a command line that says all of it anew.

    More points or seeds than there were are added. Raises: UserError if it is another study.
    """
    old, new = asdict(there), asdict(wanted)
    changes = [
        line
        for line in differences({**old, "name": "", "cores": 0}, {**new, "name": "", "cores": 0})
        if line.split(":")[0] not in RAISED
    ]
    if changes:
        raise UserError(
            "This folder holds another study. Choose another --study, or give that one's settings. "
            "Different (there -> here):\n  " + "\n  ".join(changes[:10])
        )
    largest = {name: max(old[name], new[name]) for name in RAISED}
    return build(Settings, {**old, **largest})
