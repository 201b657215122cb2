"""Starts to train as experiments/train.py does and stops after the first step: when each part of that was done.

    python first_step.py CONFIG.json BEGIN RESULT.json

BEGIN is what time.monotonic() gave just before this process was started.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformer_jax.host import prepare_cpu


class _Done(Exception):
    """The first step is made."""


def main(config_file: str, begin: str, result: str) -> None:
    prepare_cpu()
    import jax

    from transformer_jax.training import loop

    ends = {"imports": time.monotonic()}

    class Watched(loop.Trainer):
        def __init__(self, *arguments: Any) -> None:
            ends["data"] = time.monotonic()
            super().__init__(*arguments)

        def _step(self) -> None:
            ends["compile"] = time.monotonic()
            super()._step()
            jax.block_until_ready(self.state)
            ends["first step"] = time.monotonic()
            raise _Done

    loop.Trainer = Watched  # type: ignore[misc, assignment]
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Done):
        loop.train(json.loads(Path(config_file).read_text()), Path(folder) / "run")
    times = [float(begin), *ends.values()]
    parts = {name: after - before for name, before, after in zip(ends, times, times[1:], strict=False)}
    Path(result).write_text(json.dumps(parts | {"all": times[-1] - times[0]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
