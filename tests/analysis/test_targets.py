"""Programs are compiled for GPUs that are not here, if JAX's plugin is."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions

import pytest

from tests.experiments.commands import command
from tests.made_files import CHECKOUT, CONFIG, overrides, write_pairs
from transformer_jax.analysis import targets
from transformer_jax.errors import UserError

PLUGINS = [each for each in distributions() if each.name in ("jax-cuda12-plugin", "jax-cuda13-plugin")]


@pytest.mark.parametrize("target", ["h101", "H100", "h100:0", "h100:-1", "h100:two", "cpu"])
def test_what_is_no_target_is_named(target):
    with pytest.raises(UserError, match=f"--target={target}: (Did you mean h100|Known: a100, h100, h200)"):
        targets.target_devices(target)
    with pytest.raises(UserError, match=f"--target={target}"):
        targets.target_memory(target)


def test_without_the_plugin_it_says_what_to_install(monkeypatch):
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(targets, "version", version)
    with pytest.raises(UserError, match="though no GPU: install the extra cuda13 or cuda12"):
        targets.target_devices("h100")


def test_the_description_has_the_installed_versions(monkeypatch):
    installed = {"jax-cuda12-plugin": "0.10.2", "nvidia-cudnn-cu12": "9.8.0.87"}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(targets, "version", version)
    text = targets._description(targets.CARDS["h200"])
    assert "dnn_version_info { major: 9 minor: 8 patch: 0 }" in text
    assert "runtime_version { major: 12 }" in text
    assert "device_memory_size: 141000000000" in text


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("train", ["--workdir=x"], "--target goes with --dry-run alone"),
        ("benchmark", ["pipeline"], "pipeline would run on it; memory only compiles"),
    ],
)
def test_nothing_runs_on_a_target(name, words, message):
    done = command(name, *words, "--config=configs/phrases.py", "--target=h100")
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(not PLUGINS, reason="needs JAX's plugin for CUDA")
@pytest.mark.parametrize("mesh", ["mesh.fsdp=2", "mesh.tensor=2"])
def test_a_dry_run_for_four_cards_that_are_not_here(tmp_path, monkeypatch, mesh):
    """With cuDNN's attention, which the compiler cannot split by itself, and of whose lengths some are odd."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), *sys.path]))
    given = [*overrides(write_pairs(tmp_path)), mesh, "model.dtype=bfloat16", "model.attention_implementation=cudnn"]
    given += ["model.d_model=32", "model.num_heads=4"]
    words = [f"--config={CONFIG}", "--dry-run", "--target=h100:4", *(f"--config.{each}" for each in given)]
    done = subprocess.run(
        [sys.executable, CHECKOUT / "experiments" / "train.py", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "4 x NVIDIA H100" in done.stdout
    assert "compiled for devices that are not here" in done.stdout
