"""A folder that knows whether it is as it was written: digests.json has the SHA-256 of every other file in it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from transformer_jax.errors import UserError

RECORD = "digests.json"


class CheckpointDamaged(UserError):
    """A checkpoint is not as it was written. `step` says which, `file` what is wrong in it."""

    def __init__(self, step: int, file: Path, problem: str) -> None:
        super().__init__(
            f"Checkpoint {step} is damaged: {file} {problem}. Move the checkpoint away to use another one."
        )
        self.step = step
        self.file = file
        self.problem = problem


def seal(folder: Path) -> None:
    """Writes the digests of all that is in folder."""
    (folder / RECORD).write_text(json.dumps(digests(folder), sort_keys=True))


def verify(folder: Path, step: int) -> None:
    """Raises: CheckpointDamaged naming the first file that is not what was sealed."""
    expected, found = _recorded(folder, step), digests(folder)
    for name in sorted({*expected, *found}):
        if name not in found:
            raise CheckpointDamaged(step, folder / name, "is missing")
        if name not in expected:
            raise CheckpointDamaged(step, folder / name, "was not there when it was saved")
        if found[name] != expected[name]:
            raise CheckpointDamaged(step, folder / name, "is not what was written")


def read_json(folder: Path, name: str, step: int) -> Any:
    """One file of the folder, verified by itself. Raises: CheckpointDamaged."""
    file = folder / name
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointDamaged(step, file, f"cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != _recorded(folder, step).get(name):
        raise CheckpointDamaged(step, file, "is not what was written")
    return json.loads(content)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path, of all files but the record itself."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file != folder / RECORD:
            with file.open("rb") as stream:
                found[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def _recorded(folder: Path, step: int) -> dict[str, str]:
    file = folder / RECORD
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError as error:
        raise CheckpointDamaged(step, file, "is missing") from error
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointDamaged(step, file, f"cannot be read ({error})") from error
