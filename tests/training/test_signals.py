"""Signals: the first one is remembered, or interrupts what saves nothing; a second Ctrl-C leaves at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.experiments.commands import environment
from transformer_jax.training.signals import StopRequests, Terminated


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_remembered_once_there_are_steps(number):
    before = signal.getsignal(number)
    with StopRequests() as stop:
        stop.finish_steps()
        assert not stop.agreed()
        signal.raise_signal(number)
        assert stop.agreed()
        signal.raise_signal(signal.SIGTERM)  # a scheduler may send it again and again
        assert stop.agreed()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_before_there_are_steps_a_signal_interrupts(number, raised):
    with pytest.raises(raised), StopRequests():
        signal.raise_signal(number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_is_remembered():
    class Signals:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with StopRequests() as stop:
        Signals()
        stop.finish_steps()
        assert stop.agreed()


def test_in_another_thread_signals_are_left_alone():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with StopRequests() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.agreed()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, False)]


BUSY = """
import sys, time
import numpy as np
from transformer_jax.training.signals import StopRequests
with StopRequests() as stop:
    stop.finish_steps()
    print("ready", flush=True)
    a = np.ones((9000, 9000))
    while True:
        a = a @ a  # seconds without a bytecode
"""


def test_a_second_interrupt_leaves_at_once_even_in_a_long_computation():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    begin = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert time.monotonic() - begin < 15
    assert "Ctrl-C again leaves at once" in errors
    assert "the last checkpoint stands" in errors
