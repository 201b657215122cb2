"""Multi30k: 29,000 image captions in English, German and French (Elliott et al., 2016, WMT task 1).

Read from a local folder, or fetched from the repository multi30k/dataset and checked against known sums.
"""

import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from transformer_jax.data.cache import cache_directory, exclusive
from transformer_jax.data.parallel_text import content_hash, file_hash, read_pairs
from transformer_jax.data.storage import PairsBuilder
from transformer_jax.errors import UserError

URL = "https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw"
LANGUAGES = ("en", "de", "fr")
STEMS = {"train": "train", "validation": "val", "test": "test_2016_flickr"}
SHA256 = {
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.fr.gz": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.fr.gz": "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.fr.gz": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
}
ATTEMPTS = 3
TIMEOUT_SECONDS = 30


class Multi30k(PairsBuilder):
    """TFDS builder of Multi30k."""


def open_multi30k(source_language: str, target_language: str, path: str) -> Multi30k:
    """The builder for one direction. `path` is a folder with the files of `SHA256`, or "" to download them.

    A folder's files may differ from the published ones (a subset, say): they are prepared as what they are.

    Raises:
      UserError: a language that Multi30k lacks, a missing file, a failed download.
    """
    for language in (source_language, target_language):
        if language not in LANGUAGES:
            raise UserError(f"multi30k has no language {language!r}: it has {', '.join(LANGUAGES)}")
    names = {
        split: [f"{stem}.{language}.gz" for language in (source_language, target_language)]
        for split, stem in STEMS.items()
    }
    if path:
        folder = Path(path).expanduser()
        missing = [name for files in names.values() for name in files if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"dataset.path is {path!r}, which lacks {', '.join(missing)}: give the folder that has them, "
                'or dataset.path="" to download them'
            )
    else:
        folder = cache_directory() / "downloads" / "multi30k"
        with exclusive("multi30k-download"):
            for files in names.values():
                for name in files:
                    download(f"{URL}/{name}", folder / name, SHA256[name])
    files_of = {split: [folder / name for name in files] for split, files in names.items()}
    return Multi30k(
        variant=f"{source_language}-{target_language}-{content_hash(files_of)}",
        splits={split: partial(read_pairs, files) for split, files in files_of.items()},
    )


def download(url: str, path: Path, sha256: str) -> None:
    """Fetches `url` to `path` unless it is there and whole. What stands at `path` is always checked.

    Raises:
      UserError: no connection, or other contents than `sha256` says, three times over.
    """
    if path.is_file() and file_hash(path) == sha256:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(ATTEMPTS):
        print(f"downloading {url}", file=sys.stderr, flush=True)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as file:
                shutil.copyfileobj(response, file)
            if (found := file_hash(part)) == sha256:
                os.replace(part, path)
                return
            reason = f"its SHA-256 is {found} instead of {sha256}"
        except OSError as error:  # URLError, HTTPError, time-outs and broken connections are all OSErrors
            reason = str(error)
        if attempt + 1 < ATTEMPTS:
            time.sleep(2**attempt)
    part.unlink(missing_ok=True)
    raise UserError(
        f"{url} could not be downloaded ({reason}). Try again with a network connection, or set dataset.path "
        f"to a folder with {', '.join(SHA256)}"
    )
