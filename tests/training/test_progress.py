"""Progress: a bar on a terminal, few plain lines elsewhere."""

import io

from transformer_jax.training.progress import Progress


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
    monkeypatch.setattr("transformer_jax.training.progress.time.monotonic", lambda: next(clock))
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
