"""Imports point one way, so that a part can be read, tested and replaced without those above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = "transformer_jax"
# What each part may import of the package besides itself. A file of its own narrows or widens its folder's rule.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "host": {"errors"},
    "progress": set(),
    "config": {"errors"},
    "distributed": {"errors"},
    "run_directory": {"errors", "config"},
    "models": {"errors"},
    "models/layers": {"errors", "host", "models"},
    "sharding": {"errors", "models"},
    "data": {"errors", "progress"},
    "evaluation": {"errors", "decoding"},
    "evaluation/shape_reader": {"errors", "data/captioned_shapes"},
    "decoding": {"errors", "progress", "models", "sharding", "data/tokenizers"},
    "training": {"errors", "progress", "host", "config", "distributed", "run_directory", "models", "sharding", "data"},
    "training/loop": {
        "errors",
        "progress",
        "distributed",
        "run_directory",
        "sharding",
        "data",
        "training",
        "experiment",
        "families",
    },
    "training/program": {"training", "experiment"},
    "training/resuming": {"errors", "config", "run_directory", "training", "experiment"},
    "training/reproduction": {"run_directory", "sharding", "training", "experiment", "families"},
    "experiment": {"errors", "config", "sharding", "training", "families/registry"},
    "families": {
        "errors",
        "config",
        "run_directory",
        "models",
        "sharding",
        "data",
        "training",
        "decoding",
        "evaluation",
        "experiment",
    },
    "analysis": {
        "errors",
        "progress",
        "host",
        "config",
        "distributed",
        "run_directory",
        "models",
        "sharding",
        "data",
        "training",
        "decoding",
        "evaluation",
        "experiment",
        "families",
    },
    "conversion": {
        "errors",
        "config",
        "run_directory",
        "models",
        "data",
        "training",
        "experiment",
        "families",
        "analysis",
    },
    "configs": set(),
}


def imports(file: Path) -> set[str]:
    """Dotted names of the modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def of_package(file: Path) -> set[str]:
    """The package's modules that a file imports, as "data/pipeline"."""
    found = set()
    for name in imports(file):
        path = CHECKOUT / name.replace(".", "/")
        if name.startswith(f"{PACKAGE}.") and (path.with_suffix(".py").exists() or path.is_dir()):
            found.add("/".join(name.split(".")[1:]))
    return found


def files(folder: str) -> list[Path]:
    return sorted((CHECKOUT / folder).rglob("*.py"))


@pytest.mark.parametrize("file", files(PACKAGE), ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_imports_point_one_way(file):
    name = file.relative_to(CHECKOUT / PACKAGE).with_suffix("").as_posix()
    if name == "__init__":
        return
    part = name.split("/")[0]
    allowed = ALLOWED.get(name, ALLOWED[part] | {part})
    for module in of_package(file) - {name}:
        owner = module.split("/")[0]
        assert module in allowed or owner in allowed or module == part, f"{name} imports {module}"


def test_configs_import_nothing_of_the_package():
    for file in files("configs"):
        assert not [name for name in imports(file) if name.startswith((PACKAGE, "experiments"))], file


def test_the_package_does_not_know_its_experiments():
    for file in files(PACKAGE):
        assert not [name for name in imports(file) if name.split(".")[0] in ("experiments", "configs", "tests")], file


def test_neither_tensorflow_nor_torch_is_imported():
    """TFDS is used without TensorFlow. PyTorch stands beside the project only: peers and makers of fixtures."""
    apart = [CHECKOUT / "experiments" / "peers", CHECKOUT / "tests" / "models" / "fixtures"]
    for folder in (PACKAGE, "configs", "experiments", "tests"):
        for file in files(folder):
            if not any(file.is_relative_to(path) for path in apart):
                found = {name.split(".")[0] for name in imports(file)} & {"tensorflow", "torch", "clu"}
                assert not found, f"{file} imports {found}"


def test_the_rules_can_fail(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from transformer_jax.training import loop\n    import torch.nn")
    assert of_package(file) == {"training", "training/loop"}
    assert "torch.nn" in imports(file)


def test_who_translates_waits_for_no_import_that_reading_a_dataset_needs():
    code = "import sys, transformer_jax.analysis.translation; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    loaded = set(found.stdout.split())
    assert not loaded & {"tensorflow_datasets", "pandas", "scipy", "matplotlib"}
