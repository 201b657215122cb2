"""Several processes as one program: how they find each other, and how they agree. With one, nothing here does anything.

Process 0 is the main one: it alone writes metrics, scores and the run directory.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer_jax.errors import RESUME, UserError

T = TypeVar("T")

HEARTBEAT_SECONDS = 40
"""A process that has not been heard of for so long is dead, and the others end within a minute of its death."""

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Set by hand or by a launcher: HOST:PORT of process 0, how many there are, which one this is."""

# What the transports say when the process at the other end is gone.
LOST = ("gloo", "nccl", "connection", "socket", "peer", "heartbeat", "unavailable", "deadline", "coordination")

HOW = (
    "start it with srun, mpirun or in an indexed Kubernetes job or on a TPU VM, or set "
    f"{', '.join(VARIABLES)}; see docs/clusters.md"
)


def found_in(environment: Mapping[str, str]) -> str | None:
    """What says that this process is one of several: "variables", "Slurm", "Open MPI", "Kubernetes", "TPU", or None.

    Raises: UserError when some of `VARIABLES` are set and others are not, or are no numbers.
    """
    given = [name for name in VARIABLES if environment.get(name)]
    if given and len(given) < len(VARIABLES):
        missing = ", ".join(name for name in VARIABLES if name not in given)
        raise UserError(f"{', '.join(given)} is set, but not {missing}; set all of them or none.")
    if given:
        count, index = (environment[name] for name in VARIABLES[1:])
        if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
            raise UserError(
                f"JAX_PROCESS_ID={index} and JAX_NUM_PROCESSES={count}: wanted are numbers, the first from 0 to one "
                "less than the second."
            )
        return "variables"
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        return "Slurm"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environment):
        return "Kubernetes"
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] == "tpu" and _has_tpu():
        return "TPU"
    return None


def _has_tpu() -> bool:
    chip = any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))
    return chip and importlib.util.find_spec("libtpu") is not None


def start(wanted: bool | None = None) -> None:
    """Makes this process one of the job it belongs to; before anything else asks jax for devices.

    Args: wanted: None joins a job if the environment shows one, True insists on it, False never joins one.
    Raises: UserError when one is wanted and not found, or cannot be joined.
    """
    kind = found_in(os.environ) if wanted is not False else None
    if kind is None:
        if wanted:
            raise UserError(f"--distributed: the environment shows no job of several processes; {HOW}.")
        return
    if kind == "Kubernetes" and importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "This is an indexed Kubernetes job, whose processes are found with the package kubernetes, which is not "
            f"installed: install jax[k8s], set {', '.join(VARIABLES)}, or say --nodistributed."
        )
    explicit: dict[str, Any] = {}
    if kind == "variables":
        address, count, index = (os.environ[name] for name in VARIABLES)
        explicit = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    # Its notice of SIGTERM would take the signal away from `training.signals`, which agrees on a step by itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"This process cannot join its job, found by {kind}: {error}. Check that all processes run, "
            "and that they reach the first one's host; --nodistributed runs this one alone."
        ) from error


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are other processes beside this one."""
    return jax.process_count() > 1


def together(work: Callable[[], T]) -> T:
    """Runs ``work``; when it fails with a UserError on any process, all fail with it, and none waits in vain."""
    if not several():
        return work()
    failure, result = "", None
    try:
        result = work()
    except UserError as error:
        failure = str(error)
    failures = _exchange(failure)
    for index, text in enumerate(failures):
        if text:
            raise UserError(text if index == 0 else f"process {index}: {text}")
    return result  # type: ignore[return-value]


def main_first(work: Callable[[], T], others: Callable[[], T] | None = None) -> T:
    """Runs ``work`` on the main process, and when it is done ``others`` (by default the same) on all others."""
    if not several():
        return work()
    nothing: Callable[[], Any] = lambda: None
    first = together(work if is_main() else nothing)
    second = together(nothing if is_main() else others or work)
    return first if is_main() else second


def from_main(work: Callable[[], T]) -> T:
    """What ``work`` gives on the main process, on all; data that JSON can hold. A UserError is everyone's too."""
    if not several():
        return work()
    answer = ""
    if is_main():
        try:
            answer = json.dumps({"result": work()})
        except UserError as error:
            answer = json.dumps({"error": str(error)})
    told = json.loads(_exchange(answer)[0])
    if "error" in told:
        raise UserError(told["error"])
    return told["result"]


@contextmanager
def peers() -> Iterator[None]:
    """Ends this process, with a message and the status that means "run me again", when a peer is found dead.

    A dead peer is noticed at the next exchange with it, or else by jax.distributed's heartbeat, which aborts.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = str(error)
        if jax.process_count() == 1 or not any(word in text.lower() for word in LOST):
            raise
        print(
            f"process {jax.process_index()}: another process of this run died or cannot be reached "
            f"({text.splitlines()[0][:200]}). Run the same command again in all processes: it continues from the "
            "last checkpoint.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(RESUME)  # an ordinary exit would wait for the dead one


def _exchange(text: str) -> list[str]:
    """The texts of all processes, in order."""
    data = text.encode()
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(int(lengths.max()) + 1, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]
