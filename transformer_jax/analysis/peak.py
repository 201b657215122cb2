"""The most matrix products a second that all devices of this process reach together: what utilisation is a share of."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from transformer_jax.models.layers import operands

DTYPES = ("float32", "bfloat16")
CPU_SIZES = (512, 1024, 2048)
SIZES = (4096, 8192, 16384)
ROUNDS = 3


def matmul_peaks(sizes: tuple[int, ...] | None = None, seconds: float = 0.5) -> dict[str, dict[str, float]]:
    """Measures square products by operand dtype, sums in float32, on every device at once; the best of several sizes.

    Args:
      sizes: of the matrices; by default what suits the kind of device.
      seconds: about how long each size and dtype is measured.
    Returns: for each of DTYPES "flops" a second over all devices, and the "size" that reached them. float32 is at
      jax's default precision, which on some accelerators rounds operands.
    """
    if sizes is None:
        sizes = CPU_SIZES if jax.devices()[0].platform == "cpu" else SIZES
    found = {}
    for dtype in DTYPES:
        rates = {size: _rate(size, dtype, seconds) for size in sizes}
        best = max(rates, key=lambda size: rates[size])
        found[dtype] = {"flops": rates[best], "size": float(best)}
    return found


def _rate(size: int, dtype: str, seconds: float) -> float:
    mesh = Mesh(np.array(jax.devices()), ("devices",))

    square = lambda a: jnp.dot(*operands(a, a), preferred_element_type=jnp.float32)
    rows = NamedSharding(mesh, P("devices"))
    # Not of ones: chips that run hot are faster at numbers with few bits set.
    draw = lambda: jax.random.normal(jax.random.key(0), (mesh.size * size, size), dtype)
    matrices = jax.jit(draw, out_shardings=rows)()
    run = jax.jit(jax.shard_map(square, mesh=mesh, in_specs=P("devices"), out_specs=P("devices")))

    def timed(calls: int) -> float:
        begin = time.monotonic()
        for _ in range(calls):
            out = run(matrices)
        jax.block_until_ready(out)
        return time.monotonic() - begin

    timed(1)
    calls = max(1, int(seconds / ROUNDS / max(timed(1), 1e-9)))
    best = min(timed(calls) for _ in range(ROUNDS))
    return 2.0 * size**3 * calls * mesh.size / best
