"""Interpolation meets its ends, means are means, barriers are heights over the line, developments follow the steps."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.analysis.made_runs import translation_run
from transformer_jax.analysis.interpret.checkpoints import (
    Curve,
    averaging,
    compare_parameters,
    interpolation,
    over_checkpoints,
)
from transformer_jax.errors import UserError


@pytest.fixture(scope="module")
def run():
    """Parameters at steps 1, 2 and 4 are the first ones times the step."""
    run = translation_run()
    first = run.params
    vars(run)["checkpoints"] = SimpleNamespace(steps=lambda: [1, 2, 4])
    vars(run)["load"] = lambda step: jax.tree.map(lambda leaf: step * leaf, first)
    return run


def size(run):
    """A measure that is linear in the parameters, so that every mean and every line is known."""
    return float(np.sum([np.abs(leaf).sum() for leaf in jax.tree.leaves(run.params)]))


def test_interpolation_meets_its_ends(run):
    curve = interpolation(run, run.load(1), run.load(4), size, "size", points=4)
    np.testing.assert_allclose(curve.values, size(run) * np.asarray([1, 2, 3, 4]), rtol=1e-5)
    assert abs(curve.barrier) < 1e-3 * size(run)
    assert curve.plot().axes
    with pytest.raises(UserError, match="at least 2"):
        interpolation(run, run.params, run.params, size, "size", points=1)


def test_a_barrier_is_the_height_over_the_line():
    assert Curve(np.asarray([0, 0.5, 1]), np.asarray([1.0, 5.0, 3.0]), "x", "y").barrier == 3.0
    assert Curve(np.asarray([0, 0.5, 1]), np.asarray([1.0, 0.0, 3.0]), "x", "y").barrier == 0.0


def test_averages_are_of_the_newest(run):
    curve = averaging(run, size, "size")
    np.testing.assert_allclose(curve.values, size(run) * np.asarray([4, 3, 7 / 3]), rtol=1e-5)
    assert list(averaging(run, size, "size", most=2).x) == [1, 2]


def test_developments_follow_the_steps(run):
    development = over_checkpoints(run, lambda run: {"size": size(run), "pair": [size(run), 0.0]})
    assert development.steps == (1, 2, 4)
    np.testing.assert_allclose(development.array(lambda r: r["size"]), size(run) * np.asarray([1, 2, 4]), rtol=1e-5)
    assert development.array(lambda r: r["pair"]).shape == (3, 2)
    assert over_checkpoints(run, size, steps=[2]).steps == (2,)
    assert len(development.plot("size", lambda r: r["pair"], names=["a", "b"]).axes[0].lines) == 2


def test_comparison_of_parameters():
    one = {"a": {"kernel": np.asarray([[3.0, 0.0], [0.0, 4.0]])}, "b": np.asarray([1.0, 0.0])}
    other = {"a": {"kernel": np.asarray([[6.0, 0.0], [0.0, 8.0]])}, "b": np.asarray([0.0, 2.0])}
    table = compare_parameters(one, other)
    assert table.loc["a/kernel"].to_dict() == {"norm": 5.0, "distance": 5.0, "relative": 1.0, "cosine": 1.0}
    assert table.loc["b", "cosine"] == 0.0
    np.testing.assert_allclose(table.loc["all", "distance"], np.sqrt(25 + 5))
    with pytest.raises(UserError, match=r"differ in b: \(2,\) and absent"):
        compare_parameters(one, {"a": other["a"]})
