"""Several processes that train one model decide as one: what the first one finds, and that none has failed.

With one process all of this is a plain call. Every process must make these calls, in the same order.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer_jax.errors import RESUME, UserError

T = TypeVar("T")
# What the transports say when the process at the other end is gone.
LOST = ("gloo", "nccl", "connection", "socket", "peer", "heartbeat", "unavailable", "deadline", "coordination")


def first_decides(action: Callable[[], T]) -> T:
    """Runs action on the first process alone; all of them return its result, which must be JSON.

    Raises: UserError in every process, when action raises one.
    """
    if jax.process_count() == 1:
        return action()
    answer: dict[str, Any] = {}
    own: UserError | None = None
    if jax.process_index() == 0:
        try:
            answer = {"value": action()}
        except UserError as error:
            own, answer = error, {"error": str(error)}
    answer = _broadcast(answer)
    if own is not None:
        raise own
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def fail_together(failure: UserError | None) -> None:
    """Raises in every process when one of them has a failure: its own, or that of another named by its number."""
    if jax.process_count() == 1:
        if failure is not None:
            raise failure
        return
    failed = np.ravel(multihost_utils.process_allgather(np.array(failure is not None)))
    if failure is not None:
        raise failure
    if failed.any():
        raise UserError(f"Process {int(failed.argmax())} of this run failed; its own message says how.")


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


def _broadcast(value: Any) -> Any:
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(data))))
    buffer = np.zeros(size, np.uint8)
    buffer[: len(data)] = data[:size]
    return json.loads(multihost_utils.broadcast_one_to_all(buffer).tobytes())
