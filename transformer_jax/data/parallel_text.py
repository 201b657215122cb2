"""The user's own parallel text: two line-aligned files or one tab-separated file a split, plain or gzip."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path

from transformer_jax.data.storage import Example, PairsBuilder
from transformer_jax.errors import UserError


class ParallelText(PairsBuilder):
    """TFDS builder of line-aligned files."""


def open_parallel_text(
    source_language: str, target_language: str, path: str, splits: Mapping[str, str]
) -> ParallelText:
    """The builder for the files named in `splits`, such as {"train": "a.en,a.de", "test": "t.tsv"}.

    Args:
      source_language, target_language: only name the prepared dataset.
      path: the folder that the file names start from; "" is the current one.
      splits: for each split "SOURCE,TARGET" or "PAIRS.tsv"; "" for none.

    Raises:
      UserError: no split is named, or a file is missing. Contents are checked when the dataset is prepared.
    """
    folder = Path(path).expanduser()
    if path and not folder.is_dir():
        raise UserError(f"dataset.path is {path!r}: there is no such folder")
    files = {split: split_files(folder, split, names) for split, names in splits.items() if names}
    if "train" not in files:
        raise UserError(
            "dataset.train is empty: name the training files, for example dataset.train=train.en,train.de "
            "or dataset.train=pairs.tsv"
        )
    variant = f"{source_language}-{target_language}-{content_hash(files)}"
    return ParallelText(variant=variant, splits={split: partial(read_pairs, f) for split, f in files.items()})


def split_files(folder: Path, split: str, names: str) -> list[Path]:
    """The one or two files of a split. Raises UserError if they are not one or two, or do not exist."""
    files = [folder / Path(name.strip()).expanduser() for name in names.split(",")]
    if len(files) > 2 or not all(name.strip() for name in names.split(",")):
        raise UserError(f"dataset.{split} is {names!r}: give two line-aligned files as SOURCE,TARGET or one TSV file")
    for file in files:
        if not file.is_file():
            raise UserError(f"dataset.{split} names {file}, which is not a file: check dataset.path and the name")
    return files


def content_hash(files: Mapping[str, list[Path]]) -> str:
    """A hash over all files' bytes and their roles, so that edited files are prepared anew."""
    digest = hashlib.sha256()
    for split, paths in sorted(files.items()):
        for path in paths:
            digest.update(f"{split} {len(paths)} {path.suffix == '.gz'} {file_hash(path)}\n".encode())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises UserError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read_pairs(files: list[Path]) -> Iterator[Example]:
    """The pairs of one split in file order: `files` are two line-aligned files or one TSV file.

    Raises:
      UserError: unequal line counts, a TSV line without exactly one tab, no lines, text that is not UTF-8.
    """
    number = 0
    for number, pair in enumerate(_aligned(*files) if len(files) == 2 else _tab_separated(files[0]), 1):  # noqa: B007
        yield {"source": pair[0], "target": pair[1]}
    if number == 0:
        raise UserError(f"{' and '.join(map(str, files))}: no lines, the dataset would be empty")


def _aligned(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    for number, (left, right) in enumerate(zip_longest(read_lines(source), read_lines(target))):
        if left is None or right is None:
            short, long = (source, target) if left is None else (target, source)
            total = number + sum(1 for _ in _raw_lines(long, skip=number))
            raise UserError(
                f"{source} and {target} are not aligned: {short.name} has {number} lines, {long.name} has "
                f"{total}. Line n of one must be the translation of line n of the other"
            )
        yield left, right


def _tab_separated(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_lines(file), 1):
        parts = line.split("\t")
        if len(parts) != 2:
            raise UserError(
                f"{file}, line {number}: {len(parts) - 1} tabs, where exactly one parts source from target"
                + (" (for two line-aligned files write SOURCE,TARGET)" if len(parts) == 1 else "")
            )
        yield parts[0], parts[1]


def read_lines(file: Path) -> Iterator[str]:
    r"""The lines of a UTF-8 file, plain or .gz, without their ends.

    Only "\n" and "\r\n" end a line. str.splitlines would also break at U+2028, U+0085 and others that stand
    inside sentences, and so shift one side against the other. A byte order mark at the start is dropped.

    Raises:
      UserError: the file is not UTF-8 (the line is named), is called .gz and is not gzip, or breaks off.
    """
    for number, raw in enumerate(_raw_lines(file), 1):
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield line.removeprefix(b"\xef\xbb\xbf").decode() if number == 1 else line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file}, line {number}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8. "
                "Convert the file, for example with iconv -f latin1 -t utf-8"
            ) from error


def _raw_lines(file: Path, skip: int = 0) -> Iterator[bytes]:
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream):
                if number >= skip:
                    yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is not a whole gzip file ({error}): fetch or compress it again") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
