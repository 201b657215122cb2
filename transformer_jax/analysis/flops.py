"""How much arithmetic a program does, counted in the program as it is traced, loops included.

XLA's own count (``compiled.cost_analysis()``) is of what a backend made of the program: it has elementwise work in it,
may leave out what became a library's call, and takes a loop whose rounds it does not know for one round.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax.experiment import RunConfig
from transformer_jax.training.program import make_program
from transformer_jax.training.tasks import Batch, Task


def model_flops(config: RunConfig, task: Task, mesh: Mesh, batch: Batch, share: float = 1.0) -> float:
    """Floating-point operations of the matrix products that a training step of a batch takes, over all devices.

    Forwards and backwards, padded positions included; what ``model.remat`` computes anew is not, as is usual for
    model-FLOPs utilisation (Chowdhery et al. 2022, Appendix B), and fused attention counts as it would without.

    Args:
      batch: abstract, or arrays.
      share: of the batch's positions, those that count in the loss: a chunked loss computes logits of them alone.
    """
    program = make_program(config, _written_out(task), mesh)
    return matmul_flops(program.step.gradients, program.shapes.params, batch, program.shapes.step, share=share)


def _written_out(task: Any) -> Any:
    """The same task without anything computed twice, in chunks not full, or in a kernel that cannot be looked into."""
    if hasattr(getattr(task, "config", None), "loss_chunk"):
        task = replace(task, config=replace(task.config, loss_chunk=1))
    known: Any = getattr(getattr(task, "model", None), "config", None)
    if not hasattr(known, "remat"):
        return task
    return replace(task, model=task.model.clone(config=replace(known, remat="none", attention_implementation="plain")))


def matmul_flops(function: Callable[..., Any], *arguments: Any, share: float = 1.0) -> float:
    """Floating-point operations of all matrix products and convolutions in ``function(*arguments)``, over all devices.

    A product of [m, k] and [k, n] is 2·m·k·n. Arguments may be ShapeDtypeStructs. Of branches the dearest counts. A
    loop whose number of rounds is not known when it is traced counts as often as it must slice to go through
    ``share`` of an array, or else once. Hand-written kernels are not looked into.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr, share)


def _count(jaxpr: Any, share: float) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        if name == "conv_general_dilated":
            kernel, outputs = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec[0]
            depth = math.prod(kernel) / kernel[outputs] / math.prod(parameters["lhs_dilation"])
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [_count(each, share) for each in _inner_programs(parameters)]
        if name == "cond":
            total += max(inner, default=0.0)
        else:
            total += sum(inner) * _times(name, parameters, share)
    return total


def _times(name: str, parameters: dict[str, Any], share: float) -> float:
    if name == "scan":
        return int(parameters["length"])
    if name == "shard_map":  # its program is one device's
        name = "newly_manual_axes" if "newly_manual_axes" in parameters else "manual_axes"  # by jax's version
        return math.prod(parameters["mesh"].shape[axis] for axis in parameters[name])
    if name == "while":
        return max(1.0, share * _slices(parameters["body_jaxpr"].jaxpr))
    return 1


def _slices(body: Any) -> int:
    """The most slices of one size that any array has which the body takes slices of."""
    counts = [1]
    for equation in body.eqns:
        if equation.primitive.name == "dynamic_slice":
            whole, part = equation.invars[0].aval.shape, equation.params["slice_sizes"]
            counts.append(math.prod(whole) // max(math.prod(part), 1))
    return max(counts)


def _inner_programs(parameters: dict[str, Any]) -> list[Any]:
    """The programs within an equation. Derivative rules that are kept beside a program do not run."""
    found = []
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "jaxpr"):
                found.append(item.jaxpr)
            elif hasattr(item, "eqns"):
                found.append(item)
    return found
