"""What recurrent networks are built from: a scan that forms the gradients of its weights all at once, and the LSTM.

Notation: B batch, T steps, Q queries a row (1 in training, beams in decoding), I inputs, H units.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.models.layers import Weights

Product = Callable[[str, str, Array], Array]
"""``product(name, equation, x)``: ``einsum(equation, x, weights[name])``, each name once a step."""
Step = Callable[[Product, Any, Any, Any], tuple[Any, Any]]
"""``step(product, constants, carry, x) -> (carry, y)``, pure."""


def direct(weights: dict[str, Array]) -> Product:
    """The products of a single step."""
    return lambda name, equation, x: jnp.einsum(equation, x, weights[name])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan(step: Step, weights: dict[str, Array], constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` of a step over xs, whose weights' gradients are one product each over all steps.

    Left to itself, differentiation adds a whole gradient matrix at every step on the way back, which at widths of 256
    and 512 is 7 and 15 % of a training step on a CPU. Here the way back forms the gradients of the products' results
    alone; those of ``weights`` follow from them and the products' inputs afterwards. Gradients of ``constants``,
    ``carry`` and ``xs`` are as always.
    """
    return jax.lax.scan(lambda carry, x: step(direct(weights), constants, carry, x), carry, xs)


def _forward(step: Step, weights: dict[str, Array], constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    equations: dict[str, str] = {}

    def watched(shifts: dict[str, Array] | None, constants: Any, carry: Any, x: Any) -> tuple[Any, Any]:
        """A step that also gives the products' inputs; their results are shifted, so that they can be derived by."""
        inputs: dict[str, Array] = {}
        results: dict[str, Array] = {}

        def product(name: str, equation: str, x: Array) -> Array:
            assert name not in inputs, name
            inputs[name], equations[name] = x, equation
            y = results[name] = jnp.einsum(equation, x, jax.lax.stop_gradient(weights[name]))
            return y if shifts is None else y + shifts[name]

        carry, y = step(product, constants, carry, x)
        return carry, (y, inputs, results)

    steps = jax.tree.leaves(xs)[0].shape[0]
    first = jax.tree.map(lambda x: x[0], xs)
    _, (_, _, shapes) = jax.eval_shape(partial(watched, None), constants, carry, first)
    shifts = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)

    def run(shifts: dict[str, Array], constants: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
        def body(carry: Any, given: Any) -> tuple[Any, Any]:
            carry, (y, inputs, _) = watched(given[0], constants, carry, given[1])
            return carry, (y, inputs)

        carry, (ys, inputs) = jax.lax.scan(body, carry, (shifts, xs))
        return (carry, ys), inputs

    out, back, inputs = jax.vjp(run, shifts, constants, carry, xs, has_aux=True)
    return out, (back, inputs, weights, _Static(equations))


def _backward(step: Step, residual: Any, cotangents: Any) -> tuple[Any, ...]:
    back, inputs, weights, equations = residual
    dresults, dconstants, dcarry, dxs = back(cotangents)
    dweights = {}
    for name, equation in equations.value.items():
        operands, result = equation.split("->")
        x, weight = operands.split(",")
        dweights[name] = jnp.einsum(f"z{x},z{result}->{weight}", inputs[name], dresults[name])
    zeros = {name: jnp.zeros_like(weight) for name, weight in weights.items() if name not in dweights}
    return {**zeros, **dweights}, dconstants, dcarry, dxs


scan.defvjp(_forward, _backward)


@jax.tree_util.register_static
class _Static:
    """A value that passes through jax untouched."""

    def __init__(self, value: Any) -> None:
        self.value = value


class LstmWeights(NamedTuple):
    """``input`` [I, 4, H], ``recurrent`` [H, 4, H], ``bias`` [4, H]; gates in the order input, forget, cell, output."""

    input: Array
    recurrent: Array
    bias: Array


class RecurrentKernel(nn.Module):
    """[H, 4, H], orthogonal for each gate (Saxe et al. 2014)."""

    features: int

    @nn.compact
    def __call__(self) -> Array:
        def init(key: Array, shape: tuple[int, ...]) -> Array:
            draw = nn.initializers.orthogonal()
            return jnp.stack([draw(k, (shape[0], shape[2])) for k in jax.random.split(key, 4)], axis=1)

        shape = (self.features, 4, self.features)
        kernel: Any = self.param("kernel", nn.with_logical_partitioning(init, ("embed", "gate", "units")), shape)
        return kernel


class Lstm(nn.Module):
    """The weights of one LSTM (Hochreiter and Schmidhuber 1997; Gers et al. 2000), its forget gates open at first.

    They lie over fsdp alone: over tensor, every step of the recurrence would have to wait for the other devices.
    """

    num_inputs: int
    features: int

    @nn.compact
    def __call__(self) -> LstmWeights:
        def open_forget_gate(key: Array, shape: tuple[int, ...]) -> Array:
            return jnp.zeros(shape).at[1].set(1.0)  # Jozefowicz et al. 2015, section 2.2

        kernel, _ = Weights((self.num_inputs, 4, self.features), ("embed", "gate", "units"), name="input")()
        recurrent = RecurrentKernel(self.features, name="recurrent")()
        bias: Any = self.param(
            "bias", nn.with_logical_partitioning(open_forget_gate, ("gate", "units")), (4, self.features)
        )
        return LstmWeights(kernel, recurrent, bias)


def lstm(gates: Array, cell: Array) -> tuple[Array, Array]:
    """One step: gates [..., 4, H] before their nonlinearities, cell [..., H] -> the output and the cell after it."""
    new = nn.sigmoid(gates[..., 1, :]) * cell + nn.sigmoid(gates[..., 0, :]) * jnp.tanh(gates[..., 2, :])
    return nn.sigmoid(gates[..., 3, :]) * jnp.tanh(new), new


class Run(NamedTuple):
    """What one LSTM is run over, from the first step to the last.

    ``gates`` [T, B, 4, H]: its inputs' part of the gates. ``recurrent`` [H, 4, H]. ``dropped`` [B, H]: a mask on the
    outputs that go from step to step, or None. ``state``: output and cell [B, H] before the first step. ``real``
    bool[T, B]: where not, the state stands still; None: everywhere.
    """

    gates: Array
    recurrent: Array
    dropped: Array | None
    state: tuple[Array, Array]
    real: Array | None


def run_side_by_side(runs: dict[str, Run]) -> dict[str, tuple[Array, tuple[Array, Array]]]:
    """Runs LSTMs that know nothing of each other, in one scan: for each its outputs [T, B, H] and its last state."""

    def step(product: Product, dropped: dict[str, Array | None], carry: Any, x: Any) -> tuple[Any, Any]:
        after = {}
        for name, (h, cell) in carry.items():
            gates, real = x[name]
            mask = dropped[name]
            fed = h if mask is None else h * jax.lax.stop_gradient(mask)
            new = lstm(gates + product(name, "bi,igh->bgh", fed), cell)
            if real is not None:
                new = jnp.where(real[:, None], new[0], h), jnp.where(real[:, None], new[1], cell)
            after[name] = new
        return after, {name: h for name, (h, _) in after.items()}

    weights = {name: run.recurrent for name, run in runs.items()}
    dropped = {name: run.dropped for name, run in runs.items()}
    first = {name: run.state for name, run in runs.items()}
    last, outputs = scan(step, weights, dropped, first, {name: (run.gates, run.real) for name, run in runs.items()})
    return {name: (outputs[name], last[name]) for name in runs}
