"""SIGTERM and Ctrl-C: a run stops after the step it is in, all of its processes after the same one."""

import functools
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


class Terminated(KeyboardInterrupt):
    """SIGTERM came before there was anything to save."""


class StopRequests:
    """Whether this run has been asked to stop. A second Ctrl-C leaves at once.

        with StopRequests() as stop:
            ...                     # a signal here interrupts: KeyboardInterrupt, or Terminated
            stop.finish_steps()     # from here on it is remembered
            while not stop.agreed():
                ...

    Signals are read by a thread, so that one is answered even while a long computation holds the main thread.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._finish_steps = False
        self._previous: dict[int, Any] = {}
        self._pending: jax.Array | None = None

    def finish_steps(self) -> None:
        """From now on a signal lets the step in progress end."""
        self._finish_steps = True

    def agreed(self) -> bool:
        """Whether to stop now. To be called once a step, by every process: all get the same answer.

        With several processes it is that of a call before: each call starts an exchange and reads the one before
        it, so that no device waits for the hosts.
        """
        if jax.process_count() == 1:
            return self._asked.is_set()
        spread, any_of = self._exchange
        flags = np.full(jax.local_device_count(), self._asked.is_set(), np.int32)
        before, self._pending = self._pending, any_of(jax.make_array_from_process_local_data(spread, flags))
        return before is not None and bool(np.asarray(before.addressable_data(0)))

    @functools.cached_property
    def _exchange(self) -> tuple[NamedSharding, Any]:
        everywhere = Mesh(np.array(jax.devices()), ("devices",))
        return NamedSharding(everywhere, P("devices")), jax.jit(jnp.max, out_shardings=NamedSharding(everywhere, P()))

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python delivers signals to the main thread only
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._reader = threading.Thread(target=self._read, args=(self._pipe[0],), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._previous:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.write(self._pipe[1], b"\0")
        self._reader.join()
        for end in self._pipe:
            os.close(end)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked.set()  # in any case: what is raised below is lost where Python cannot raise, as in a destructor
        if not self._finish_steps:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _read(self, pipe: int) -> None:
        seen = False
        while number := os.read(pipe, 1)[0]:
            if number not in self._previous:
                continue
            if seen and number == signal.SIGINT:
                print("left at once: the last checkpoint stands", file=sys.stderr, flush=True)
                os._exit(130)
            if self._finish_steps:
                self._asked.set()
                told = "stopping: saves after this step or evaluation; Ctrl-C again leaves at once"
                print(told, file=sys.stderr, flush=True)
            seen = True
