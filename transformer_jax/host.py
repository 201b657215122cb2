"""Settings of the host that must stand before jax is imported."""

import gc
import os
import resource
import sys
from pathlib import Path

MOST_CPU_DEVICES = 8
"""A power of two that divides the rows of every batch (batching.rows_multiple)."""
ELSEWHERE = "TRANSFORMER_JAX_COMPILES_ELSEWHERE"
"""The variable that is set where programs are compiled for another kind of device than runs here."""


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def peak_memory() -> int:
    """The most resident memory that this program has had, in bytes."""
    if sys.platform == "linux":
        # Rather than getrusage, which counts what the process was before it became this program. Not in every sandbox.
        lines = Path("/proc/self/status").read_text().splitlines()
        if found := [line.split()[1] for line in lines if line.startswith("VmHWM")]:
            return 1024 * int(found[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def prepare_cpu(cores: int | None = None) -> None:
    """On a machine without an accelerator, restarts this program once with the settings that make its CPU fast.

    One device a core, each with one thread, so that whole batches are shared instead of single products; and huge
    pages, without which training spends its time on page faults. Variables that are already set are kept. On any
    machine Python looks for cyclic garbage less often: tracing makes millions of objects that all stay in use.

    Args:
      cores: for how many; default all that this process may use. Bit for bit the same run needs the same number.
    """
    gc.set_threshold(100_000)
    if has_accelerator() or os.environ.get("TRANSFORMER_JAX_PREPARED"):
        return
    cores = cores or available_cores()
    devices = min(1 << (cores.bit_length() - 1), MOST_CPU_DEVICES)
    wanted = {
        "TRANSFORMER_JAX_PREPARED": "1",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    if cores < 2 * devices:
        wanted["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    os.environ.update({name: os.environ.get(name, value) for name, value in wanted.items()})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def prepare_target() -> None:
    """Before jax is imported: this program compiles for GPUs that are not here (`analysis.targets`), and runs nothing
    on them."""
    os.environ |= {"JAX_PLATFORMS": "cpu", ELSEWHERE: "1"}


def has_accelerator() -> bool:
    """Whether jax is to find a GPU or TPU, as far as can be told without importing it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] != "cpu"
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd"))
