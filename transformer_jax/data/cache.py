"""Where prepared datasets, tokenizers and encoded text are kept between runs, and how processes share it."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformer_jax.errors import UserError

VARIABLE = "TRANSFORMER_JAX_CACHE"


def cache_directory() -> Path:
    """The cache folder: $TRANSFORMER_JAX_CACHE, else ~/.cache/transformer_jax. Created private (mode 0700).

    Raises:
      UserError: if the folder cannot be made or written.
    """
    path = Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "transformer_jax").expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {path} cannot be made ({error.strerror}): set {VARIABLE} to a folder that can"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"no permission to write in the cache folder {path}: set {VARIABLE} to another folder")
    return path


@contextmanager
def exclusive(key: str) -> Iterator[None]:
    """Hold the cache's lock called `key`: of all processes on this machine, one at a time runs the body.

    The operating system releases the lock when its holder dies, so nothing has to be cleaned up by hand.
    """
    locks = cache_directory() / "locks"
    locks.mkdir(exist_ok=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    with (locks / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
