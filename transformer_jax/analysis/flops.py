"""How much arithmetic a program does, counted in the program as it is traced, loops included.

XLA's own count (``compiled.cost_analysis()``) is of what a backend made of the program: it has elementwise work in it,
may leave out what became a library's call, and takes a loop whose rounds it does not know for one round.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Floating-point operations of all matrix products in ``function(*arguments)``, over all devices.

    A product of [m, k] and [k, n] is 2·m·k·n. Arguments may be ShapeDtypeStructs. Of branches the dearest counts;
    a loop whose number of rounds is not known when it is traced counts once. Hand-written kernels are not looked into.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += 2.0 * depth * math.prod(equation.outvars[0].aval.shape)
            continue
        inner = [_count(each) for each in _inner_programs(parameters)]
        if name == "cond":
            total += max(inner, default=0.0)
        else:
            total += sum(inner) * _times(name, parameters)
    return total


def _times(name: str, parameters: dict[str, Any]) -> int:
    if name == "scan":
        return int(parameters["length"])
    if name == "shard_map":  # its program is one device's
        return math.prod(parameters["mesh"].shape[axis] for axis in parameters["manual_axes"])
    return 1


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
