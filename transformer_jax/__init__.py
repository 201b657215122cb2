"""transformer_jax: Transformers for research in JAX.

run = transformer_jax.load_run("runs/a")
run.translate(["A dog runs."])
"""

from typing import Any

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    # Importing jax takes a second, which a command with a misspelt flag need not wait for.
    if name == "load_run":
        from transformer_jax.analysis.run import load_run

        return load_run
    raise AttributeError(f"module 'transformer_jax' has no attribute {name!r}")
