"""Shares out a machine: each worker one GPU, or a number of CPU cores, by a lock for each."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.sweeping.locks import FileLock
from transformer_jax.errors import UserError
from transformer_jax.host import has_accelerator

HELD = "TRANSFORMER_JAX_DEVICES_OF_PROCESS"
"""Environment variable: the process that has taken its devices. prepare_cpu starts the same process anew."""


def take_devices(cores: int) -> str:
    """Takes a free GPU for this process, or on a machine without any that many cores; before jax is imported.

    They are free again when the process ends. A GPU is refused where none is free: two trainings do not fit on one.
    Cores are shared where none is free.

    Returns: what was taken, in words; empty if this process had it already.
    Raises: UserError when every GPU has a worker.
    """
    if os.environ.get(HELD) == str(os.getpid()):
        return ""
    os.environ[HELD] = str(os.getpid())
    gpus = _gpus() if has_accelerator() else []
    if gpus:
        taken = _take([f"gpu-{gpu}" for gpu in gpus], 1)
        if not taken:
            raise UserError(
                f"Each of the {len(gpus)} GPUs here ({', '.join(gpus)}) has a worker. Start as many workers as there "
                "are GPUs, or set JAX_PLATFORMS=cpu."
            )
        gpu = taken[0].removeprefix("gpu-")
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return f"GPU {gpu}"
    if has_accelerator() or sys.platform != "linux":
        return "all devices of this machine"
    own = sorted(os.sched_getaffinity(0))
    taken = _take([f"core-{core}" for core in own], cores)
    chosen = [int(name.removeprefix("core-")) for name in taken]
    shared = [core for core in own if core not in chosen][: max(0, cores - len(chosen))]
    os.sched_setaffinity(0, {*chosen, *shared})
    text = f"CPU cores {', '.join(map(str, sorted({*chosen, *shared})))}"
    return f"{text} (of which {len(shared)} shared with other workers: none is free)" if shared else text


def _take(names: list[str], count: int) -> list[str]:
    """Up to ``count`` of the named devices that nobody has; held until this process ends, also through exec."""
    folder = Path(tempfile.gettempdir()) / f"transformer_jax-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    taken: list[str] = []
    for name in names:
        if len(taken) < count and (lock := FileLock.take_if_free(folder / f"{name}.lock")):
            os.set_inheritable(lock.descriptor, True)
            taken.append(name)
    return taken


def _gpus() -> list[str]:
    """UUIDs of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES and the job's limits leave to this process.

    UUIDs, because schedulers number the GPUs of each job from 0.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    listing = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60).stdout
    rows = [line.split(", ") for line in listing.splitlines() if ", " in line]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [uuid for _, uuid in rows]
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return [uuid for name in names for index, uuid in rows if name == index or uuid.startswith(name)]
