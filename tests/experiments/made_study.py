"""Studies of the tiny experiment, with and without training."""

from pathlib import Path
from typing import Any

from experiments.command_line import load_config
from experiments.sweeping.settings import Settings, new_settings
from experiments.sweeping.study import Study
from tests.made_files import CONFIG, overrides

# One program, no translations: most of the time of a tiny trial is compiling.
QUICK: dict[str, Any] = {
    "batching__num_shapes": 1,
    "batching__max_length": 16,
    "evaluation__decode": "none",
    "evaluation__metric": "loss",
    "evaluation__weights": "latest",
}
OTHERS: dict[str, Any] = {
    "storage": "journal.log",
    "pruner": "none",
    "objectives": ("quality",),
    "seeds": 1,
    "cores": 1,
}


def made_settings(
    folder: Path,
    data: Path,
    grid: tuple[str, ...] = (),
    space: tuple[str, ...] = (),
    sampler: str | None = None,
    points: int | None = None,
    spec: str = str(CONFIG),
    changes: dict[str, Any] | None = None,
    **others: Any,
) -> Settings:
    """As the command line would make them; ``changes`` are of the config, with __ for dots."""
    config = load_config(spec, overrides(data, **QUICK, **(changes or {})))
    return new_settings(folder, spec, config, grid, space, sampler, points, **{**OTHERS, **others})


def made_study(folder: Path, data: Path = Path("/data"), **settings: Any) -> Study:
    return Study.create_or_join(folder, made_settings(folder, data, **settings))
