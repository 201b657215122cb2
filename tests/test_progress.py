"""Progress: a bar on a terminal, few plain lines elsewhere."""

import io
import itertools
import sys

from transformer_jax.progress import Progress, counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_output_is_a_few_plain_lines():
    stream = io.StringIO()
    with Progress(100, 40, stream, seconds=1000) as progress:
        for step in range(41, 101):
            progress.update(step, {"loss": 2.34567, "tokens/s": 21234.5})
        progress.message("done")
    first, last, message = stream.getvalue().splitlines()
    assert first.startswith("step 41/100  loss 2.346  tokens/s 21,23")
    assert "left" not in first
    assert last.startswith("step 100/100  ")
    assert message == "done"
    assert "\r" not in stream.getvalue()


def test_time_left_counts_from_the_first_step_not_from_compiling(monkeypatch):
    clock = iter([500.0, 525.0])
    monkeypatch.setattr("transformer_jax.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Progress(1000, 900, stream) as progress:
        progress.update(901, {})
        progress.update(911, {})
    assert stream.getvalue().splitlines()[-1] == "step 911/1000    03:42 left"


def test_a_terminal_gets_a_bar_and_messages_above_it():
    stream = Terminal()
    with Progress(10, 0, stream) as progress:
        progress.update(5, {"loss": float("nan")})
        progress.message("hello")
        progress.update(10, {"loss": 1})
    assert "10/10" in stream.getvalue()
    assert "loss 1" in stream.getvalue()
    assert "hello\n" in stream.getvalue()
    assert "\r" in stream.getvalue()


def test_what_is_counted_comes_as_it_is_and_is_told_every_twenty_seconds(monkeypatch, capsys):
    clock = itertools.count(500.0, 15.0)
    monkeypatch.setattr("transformer_jax.progress.time.monotonic", lambda: next(clock))
    assert list(counted(iter("abcde"), "translating", 5)) == list("abcde")
    assert capsys.readouterr().err.splitlines() == [
        "translating: 3/5 lines  00:30 left",
        "translating: 5/5 lines  00:00 left",
    ]
    assert list(counted("abc", "reading", unit="pages")) == list("abc")
    assert capsys.readouterr().err == "reading: 3 pages\n"
    monkeypatch.undo()
    assert list(counted("abc", "quick", 3)) == list("abc")
    assert capsys.readouterr().err == ""


def test_what_is_counted_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    assert list(counted("abc", "translating", 3)) == list("abc")
    assert "translating: " in stream.getvalue()
    assert "0/3" in stream.getvalue()
    assert "\r" in stream.getvalue()
