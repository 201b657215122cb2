"""Lines in, lines out: files, pipes, terminals."""

import gzip
import io
import signal
import subprocess
import sys

import pytest

from tests.decoding.test_translator import translator
from transformer_jax.decoding.lines import format_best, interact, open_output, read_lines, translate_lines
from transformer_jax.decoding.translator import Translation
from transformer_jax.errors import UserError


def test_lines_are_those_that_wc_counts(tmp_path):
    """Only a newline ends a line; the last one may lack it; several files follow each other."""
    text = "a\u2028b\x0cc\n\nd\r\nlast"
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a byte order mark, as Windows writes it
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("ä\n".encode()))
    expected = ["a\u2028b\x0cc", "", "d\r", "last"]
    names = [str(tmp_path / name) for name in ("a.txt", "b.txt.gz")]
    assert list(read_lines(names, io.BytesIO())) == [*expected, "ä"]
    assert list(read_lines([], io.BytesIO(text.encode()))) == expected


def test_unreadable_input_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_lines([str(tmp_path / "missing")], io.BytesIO())
    (tmp_path / "latin").write_bytes("gut\nschön\n".encode("latin-1"))
    with pytest.raises(UserError, match="latin: line 2 is not UTF-8"):
        list(read_lines([str(tmp_path / "latin")], io.BytesIO()))
    with pytest.raises(UserError, match="standard input: line 1"):
        list(read_lines([], io.BytesIO(b"\xff\n")))
    (tmp_path / "not.gz").write_bytes(b"plain")
    with pytest.raises(UserError, match=r"not.gz: cannot be read"):
        list(read_lines([str(tmp_path / "not.gz")], io.BytesIO()))


def test_output_is_aligned_and_counted(capsys):
    lines = ["a b", "", "c d e"] * 5
    output = io.StringIO()
    translate_lines(translator(batch_size=2), iter(lines), output, scores=False)
    assert output.getvalue() == "".join(f"{text}\n" for text in translator(batch_size=2).translate(lines))
    assert "15 lines, 5 of them empty" in capsys.readouterr().err


def test_scores_are_rows():
    best = [Translation("x y", -1.0, -2.5), Translation("z", -2.0, -3.0)]
    assert format_best(best, 7, scores=True) == "7\t-1.0000\t-2.5000\tx y\n7\t-2.0000\t-3.0000\tz"
    assert format_best(best, 1, scores=False) == "x y"


def test_a_file_has_its_name_only_when_complete(tmp_path):
    name = tmp_path / "out"

    def interrupted():
        with open_output(str(name)) as file:
            file.write("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert not name.exists()
    with open_output(str(name)) as file:
        file.write("whole\n")
    assert name.read_text() == "whole\n"
    with pytest.raises(UserError, match="cannot be written"), open_output(str(tmp_path / "no" / "out")):
        pass


WRITES = """
import sys
from transformer_jax.decoding.lines import open_output
from transformer_jax.errors import UserError
try:
    with open_output(sys.argv[1] if len(sys.argv) > 1 else None) as file:
        for _ in range(100_000):
            file.write("a line\\n")
except UserError as error:
    sys.exit(f"error: {error}")
"""


def written(*words, stdout):
    return subprocess.Popen([sys.executable, "-c", WRITES, *words], stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_output_that_cannot_be_written_is_told_in_one_line():
    """A full disk, and a reader that has gone: nothing more is said, neither then nor when Python ends."""
    with open("/dev/full", "w") as full, written(stdout=full) as process:
        _, errors = process.communicate(timeout=600)
    assert errors == (
        "error: standard output: cannot be written: No space left on device; make room or choose another place.\n"
    )
    assert process.returncode == 1
    with written(stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_conversation(monkeypatch, capsys):
    """A line that is refused does not end it; the end of input does."""
    typed = iter(["a b", " ".join("abcdefghijkl"), "c"])

    def next_line(prompt):
        for line in typed:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", next_line)
    model = translator(long_lines="refuse")
    interact(model, scores=False)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [*translator().translate(["a b", "c"]), ""]
    assert "13 tokens" in captured.err
