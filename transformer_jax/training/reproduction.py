"""Makes a kept step again, twice, and finds out which arrays are not finite and whether it comes out the same."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from transformer_jax.experiment import parse_config
from transformer_jax.families.registry import find_family
from transformer_jax.run_directory import RunDirectory
from transformer_jax.sharding import BATCH, make_mesh
from transformer_jax.training.program import make_program
from transformer_jax.training.replay import load_bundle, twice

SHOWN = 10


@dataclass(frozen=True)
class Reproduction:
    """What a step gave when it was made again.

    Attributes:
      step: its number.
      recorded, measured: its metrics then and now.
      bad: by the path of each parameter, or gradient, with any: the number of elements that are not finite.
      largest: the gradients with the largest norms, by path.
      different: arrays that differed between two runs of the step, and in how many elements.
    """

    step: int
    recorded: dict[str, float]
    measured: dict[str, float]
    bad: dict[str, int]
    largest: dict[str, float]
    different: dict[str, int]

    @property
    def same(self) -> bool:
        """Whether every metric is what was recorded, to the bit."""
        return all(np.array_equal(self.recorded[name], self.measured[name], equal_nan=True) for name in self.measured)


def reproduce(run: RunDirectory, number: int) -> Reproduction:
    """Makes step ``number`` again from its bundle. Raises: UserError when it is not there or damaged."""
    config = parse_config(run.config)
    mesh = make_mesh(config.mesh)
    program = make_program(config, find_family(config.family).prepare(config, run).task, mesh)
    step = program.step
    state, rows, recorded = load_bundle(run, number, program.shapes)
    place = NamedSharding(mesh, BATCH)
    batch = {k: jax.make_array_from_callback(v.shape, place, v.__getitem__) for k, v in rows.items()}
    _, gradients = step.gradients(state.params, batch, state.step)
    trees = {"params": state.params, "gradients": gradients}
    bad = _by_path(jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), tree))(trees))
    norms = _by_path(jax.jit(lambda tree: jax.tree.map(lambda x: jnp.linalg.norm(x.ravel()), tree))(gradients))
    _, measured, different = twice(step, state, batch)
    ranked = sorted(norms, key=lambda path: -np.nan_to_num(norms[path], nan=np.inf))
    return Reproduction(
        number,
        recorded,
        {name: float(value) for name, value in jax.device_get(measured).items()},
        {path: int(count) for path, count in bad.items() if count},
        {path: float(norms[path]) for path in ranked[:SHOWN]},
        different,
    )


def format_reproduction(made: Reproduction) -> str:
    """A page for a terminal."""
    lines = [f"step {made.step}, made again on {jax.device_count()} {jax.devices()[0].device_kind} device(s)"]
    lines += [
        f"  {name:<20} {value:.9g} (recorded: {made.recorded[name]:.9g})" for name, value in made.measured.items()
    ]
    lines.append(f"  {'the same as recorded' if made.same else 'NOT the same as recorded'}")
    lines.append(f"  twice in a row: {'the same' if not made.different else f'DIFFERENT in {made.different}'}")
    lines.append(f"not finite: {'nothing' if not made.bad else ''}")
    lines += [f"  {path}: {count} elements" for path, count in list(made.bad.items())[:SHOWN]]
    if len(made.bad) > SHOWN:
        lines.append(f"  and {len(made.bad) - SHOWN} more arrays")
    lines.append("largest gradients:")
    lines += [f"  {path}: norm {norm:.4g}" for path, norm in made.largest.items()]
    return "\n".join(lines)


def _by_path(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }
