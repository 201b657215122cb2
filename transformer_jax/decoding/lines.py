"""Lines of files and terminals to translations and back: what the translate command does, without its
flags.
"""

import gzip
import os
import signal
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from transformer_jax.decoding.translator import Translation, Translator
from transformer_jax.errors import UserError
from transformer_jax.progress import counted


def read_lines(names: Sequence[str], stdin: IO[bytes]) -> Iterator[str]:
    """Lines of the files in order, or of stdin when there is none; split at newlines only, as `wc -l` counts
    them. A byte order mark at the start is dropped, as in training.

    Raises: UserError for a file that cannot be read, and for a line that is not UTF-8, by number.
    """
    for path in map(Path, names):
        if not path.is_file():
            raise UserError(f"{path}: there is no such file. Give a text file, or none to read from the pipe.")
    return _read(names, stdin)


def _read(names: Sequence[str], stdin: IO[bytes]) -> Iterator[str]:
    for name in names or ["standard input"]:
        open_file = gzip.open if name.endswith(".gz") else open
        try:
            with open_file(name, "rb") if names else stdin as file:
                for number, line in enumerate(file, 1):
                    line = line.removeprefix(BOM_UTF8) if number == 1 else line
                    try:
                        yield line.decode("utf-8").removesuffix("\n")
                    except UnicodeDecodeError as error:
                        raise UserError(
                            f"{name}: line {number} is not UTF-8 ({error.reason} at byte {error.start}); "
                            f"convert the text first, for example with: iconv -f LATIN1 -t UTF-8"
                        ) from None
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror or error}.") from None


@contextmanager
def open_output(name: str | None) -> Iterator[IO[str]]:
    """Standard output, or a file that gets its name only when it is complete.

    Raises: UserError when it cannot be written; SystemExit when who read standard output has gone, as ``head`` does.
    """
    try:
        if name is None:
            sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
            yield sys.stdout
            sys.stdout.flush()
        else:
            partial = Path(f"{name}.partial")
            with partial.open("w", encoding="utf-8", newline="\n") as file:
                yield file
            partial.replace(name)
    except OSError as error:
        if name is None:  # or Python fails once more when it ends and writes what is left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(128 + signal.SIGPIPE)
        place = f"--output={name}" if name else "standard output"
        raise UserError(f"{place}: cannot be written: {error.strerror}; make room or choose another place.") from None


def format_best(translations: Sequence[Translation], number: int, scores: bool) -> str:
    """The text alone; or with ``scores`` a row for each: line number, score, log-probability, text; tabs
    between.
    """
    if not scores:
        return translations[0].text
    return "\n".join(f"{number}\t{t.score:.4f}\t{t.log_prob:.4f}\t{t.text}" for t in translations)


def translate_lines(
    translator: Translator, lines: Iterable[str], output: IO[str], scores: bool, total: int | None = None
) -> None:
    """Writes translations as they come, in order, with progress on stderr, and then a summary."""
    begin = time.monotonic()
    for number, best in enumerate(counted(translator.stream(lines), "translating", total), 1):
        output.write(format_best(best, number, scores) + "\n")
    seconds = time.monotonic() - begin
    report = translator.report
    print(f"{report}; {seconds:.1f} s, {report.lines / seconds:.1f} lines/s", file=sys.stderr)


def interact(translator: Translator, scores: bool, prompt: str = "> ") -> None:
    """Translates what is typed, line by line, until the end of input (Ctrl-D)."""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            print()
            return
        try:
            (best,) = translator.stream([line])
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        print(format_best(best, translator.report.lines, scores), flush=True)
