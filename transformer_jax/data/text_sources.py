"""Where text without translations comes from: the Python installation, Shakespeare, the user's files, TFDS.

Each becomes a TFDS builder of examples {"text"}, one a file or record, stored as ArrayRecord.
"""

import difflib
import gzip
import hashlib
import importlib
import pkgutil
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import tensorflow_datasets as tfds
import tensorflow_datasets.text
from tensorflow_datasets.core import registered

from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.multi30k import download
from transformer_jax.data.parallel_text import content_hash
from transformer_jax.data.storage import Example, PairsBuilder
from transformer_jax.errors import UserError

FEATURES = {"text": tfds.features.Text()}
OWN = ("python_text", "tiny_shakespeare", "text_files")
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TRAIN_SHARE = 0.9
HELD_OUT = {"validation": range(0, 4), "test": range(4, 8)}  # hundredths of the texts of python_text


class PythonText(PairsBuilder):
    """What every Python installation carries: its language reference and the source of its standard library."""


class TinyShakespeare(PairsBuilder):
    """A million characters of Shakespeare (Karpathy 2015), the first 90 % to train, the last 10 % to validate."""


class TextFiles(PairsBuilder):
    """The user's own files."""


def open_python_text() -> PythonText:
    """The builder of the installation that runs this; other versions of Python have other texts."""
    version = "-".join(map(str, sys.version_info[:3]))
    splits = {name: partial(_python_text, name) for name in ("train", *HELD_OUT)}
    return PythonText(variant=f"python-{version}-{_installation()}", splits=splits, features=FEATURES)


def _library_files() -> list[Path]:
    """The standard library's source, without its own tests and generated tables."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data", "encodings", "lib2to3"}
    return sorted(file for file in root.rglob("*.py") if not left_out & set(file.relative_to(root).parts))


def _installation() -> str:
    sizes = [(file.name, file.stat().st_size) for file in _library_files()]
    return hashlib.sha256(repr(sizes).encode()).hexdigest()[:12]


def _python_text(split: str) -> Iterator[Example]:
    topics = importlib.import_module("pydoc_data.topics").topics
    named: dict[str, Callable[[], str]] = {f"topic {name}": partial(topics.__getitem__, name) for name in topics}
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in _library_files():
        named[str(file.relative_to(root))] = partial(file.read_text, encoding="utf-8", errors="replace")
    for name in sorted(named):
        # Held out by name: the same texts in every installation that has them.
        part = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
        owner = next((held_out for held_out, parts in HELD_OUT.items() if part in parts), "train")
        if owner == split:
            yield {"text": named[name]()}


def open_tiny_shakespeare(path: str) -> TinyShakespeare:
    """The builder; ``path`` is a folder with input.txt or input.txt.gz, or "" to download it."""
    if path:
        folder = Path(path).expanduser()
        found = [folder / name for name in ("input.txt", "input.txt.gz") if (folder / name).is_file()]
        if not found:
            raise UserError(
                f"dataset.path is {path!r}, which lacks input.txt or input.txt.gz: give the folder that has it, "
                'or dataset.path="" to download it'
            )
        file = found[0]
    else:
        file = cache_directory() / "downloads" / "tiny_shakespeare" / "input.txt"
        with exclusive("tiny_shakespeare-download"):
            download(SHAKESPEARE_URL, file, SHAKESPEARE_SHA256)

    def part(split: str) -> Iterator[Example]:
        text = read_text(file)
        cut = int(len(text) * TRAIN_SHARE)
        yield {"text": text[:cut] if split == "train" else text[cut:]}

    splits = {split: partial(part, split) for split in ("train", "validation")}
    return TinyShakespeare(variant=content_hash({"all": [file]}), splits=splits, features=FEATURES)


def open_text_files(path: str, splits: Mapping[str, str]) -> TextFiles:
    """The builder for the files named in `splits`, such as {"train": "books/*.txt,extra.txt.gz"}.

    Args:
      path: the folder that names start from; "" is the current one.
      splits: for each split names or patterns of UTF-8 files, plain or .gz, with commas between; "" for none.

    Raises:
      UserError: no training file is named, or a name matches no file.
    """
    files = {split: find_files(path, split, names) for split, names in splits.items() if names}
    if "train" not in files:
        raise UserError("dataset.train is empty: name the training files, for example dataset.train='books/*.txt'")

    def texts(split: str) -> Iterator[Example]:
        for file in files[split]:
            yield {"text": read_text(file)}

    made = {split: partial(texts, split) for split in files}
    return TextFiles(variant=content_hash(files), splits=made, features=FEATURES)


def find_files(path: str, split: str, names: str) -> list[Path]:
    """The files that ``names``, names or patterns with commas between, mean in the folder ``path``; "" is the current.

    Raises: UserError for a folder or a file that there is not.
    """
    folder = Path(path).expanduser()
    if path and not folder.is_dir():
        raise UserError(f"dataset.path is {path!r}: there is no such folder")
    files: list[Path] = []
    for name in filter(None, (name.strip() for name in names.split(","))):
        matching = sorted(file for file in folder.glob(name) if file.is_file()) if "*" in name else [folder / name]
        if not matching or not matching[0].is_file():
            raise UserError(f"dataset.{split} names {folder / name}, which is no file: check dataset.path too")
        files.extend(matching)
    return files


def read_text(file: Path) -> str:
    """A whole file, plain or gzip. Raises: UserError if it is not UTF-8."""
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); convert it first, for example with: "
            "iconv -f LATIN1 -t UTF-8"
        ) from None


def open_tfds_text(name: str, path: str, feature: str) -> tfds.core.DatasetBuilder:
    """The TFDS builder called ``name``, prepared or not, whose examples have the text feature called ``feature``.

    Raises:
      UserError: TFDS knows no such dataset, or it has no such text.
    """
    builder = open_tfds(name, path, OWN)
    features = builder.info.features or {}
    texts = [key for key, value in features.items() if isinstance(value, tfds.features.Text)]
    if feature not in texts:
        raise UserError(f"dataset.feature is {feature!r}, but the texts of {name} are {', '.join(texts) or 'none'}")
    return builder


def open_tfds(name: str, path: str, own: Sequence[str]) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a text dataset. Raises: UserError with the nearest names, ``own`` among them."""
    # TFDS finds these builders only once their modules are imported.
    for module in pkgutil.iter_modules(tensorflow_datasets.text.__path__, "tensorflow_datasets.text."):
        if not module.name.endswith("_test"):
            importlib.import_module(module.name)
    try:
        return tfds.builder(name, data_dir=path or str(cache_directory() / "datasets"))
    except registered.DatasetNotFoundError as error:
        known = [*own, *registered.list_imported_builders()]
        near = difflib.get_close_matches(name.split("/")[0], known, n=3) or own
        raise UserError(
            f"dataset.name is {name!r}, neither {', '.join(own)} nor a TFDS dataset. Did you mean {' or '.join(near)}?"
        ) from error
    except ValueError as error:
        raise UserError(f"dataset.name is {name!r}, which TFDS cannot build: {error}") from error
