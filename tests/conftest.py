"""Fixtures that several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from tests import browser

# Most of the time of these tests is compiling small programs; they need not be fast ones.
QUICK = ("backend_optimization_level=0", "cpu_use_fusion_emitters=false", "cpu_parallel_codegen_split_count=1")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in QUICK))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets, tokenizers and compiled programs of this session: one folder for all its workers and commands."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    os.environ["TRANSFORMER_JAX_CACHE"] = str(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def programs_freed() -> Iterator[None]:
    """Frees each file's compiled programs: every one maps memory, and a process may have 65,530 maps, no more."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the checkout; tests that need it skip where it is absent."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("needs the folder ../shared/data beside the checkout, which is not here")
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a window; tests that need it skip where it is not installed."""
    yield from browser.start()
