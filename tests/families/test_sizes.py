"""The published sizes, from shapes alone, up to 175 billion parameters under a mesh of a thousand devices."""

from pathlib import Path

import pytest

from experiments.command_line import load_config
from tests.experiments.commands import command
from transformer_jax.analysis.sizes import format_sizes, language_model_sizes
from transformer_jax.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "language_model.py"


def sizes(variant: str, devices: int = 1, **mesh: int):
    overrides = [f"mesh.{axis}={size}" for axis, size in mesh.items()]
    return language_model_sizes(load_config(f"{CONFIG}:{variant}", overrides), devices)


@pytest.mark.parametrize(
    ("variant", "published"),
    [
        ("gpt2", 124.4e6),
        ("gpt2-medium", 354.8e6),
        ("gpt2-large", 774.0e6),
        ("gpt2-xl", 1557.6e6),
        ("gpt3-small", 125e6),
        ("gpt3-medium", 350e6),
        ("gpt3-large", 760e6),
        ("gpt3-xl", 1.3e9),
        ("gpt3-2.7b", 2.7e9),
        ("gpt3-6.7b", 6.7e9),
        ("gpt3-13b", 13.0e9),
        ("gpt3-175b", 175.0e9),
    ],
)
def test_parameters_are_those_published(variant, published):
    """GPT-3's are rounded in Table 2.1; GPT-2's are those of the released weights, and 47 rows of the table."""
    found = sizes(variant)
    assert found.parameters == pytest.approx(published, rel=0.001 if variant.startswith("gpt2") else 0.025)
    assert sum(found.modules.values()) == found.parameters


def test_gpt3s_training_took_its_published_flops():
    """3.14e23 (Table D.1), where the attention scores are not counted."""
    found = sizes("gpt3-175b")
    scores = 12.0 * 96 * 2048 * 12288
    assert (found.flops_per_token - scores) * 300e9 == pytest.approx(3.14e23, rel=0.01)
    assert found.total_flops == pytest.approx(found.flops_per_token * 300e9, rel=1e-4)


def test_memory_is_divided_by_the_mesh():
    whole, spread = sizes("gpt3-175b"), sizes("gpt3-175b", 1024, fsdp=16, tensor=8)
    assert spread.mesh == {"data": 8, "fsdp": 16, "tensor": 8}
    assert whole.device_bytes["parameters"] == 4 * whole.parameters
    for kind in ("parameters", "gradients", "optimizer"):
        # Norms, biases and positions are not divided over every axis.
        assert spread.device_bytes[kind] == pytest.approx(whole.device_bytes[kind] / 128, rel=0.01)
    assert whole.device_bytes["optimizer"] == pytest.approx(2 * whole.device_bytes["parameters"], rel=1e-6)
    assert "174,604,836,864" in format_sizes(spread)


def test_the_command():
    mesh = ("--devices=1024", "--config.mesh.fsdp=16", "--config.mesh.tensor=8")
    done = command("sizes", f"--config={CONFIG}:gpt3-175b", *mesh)
    assert done.returncode == 0, done.stderr
    assert done.stdout == format_sizes(sizes("gpt3-175b", 1024, fsdp=16, tensor=8)) + "\n"


def test_meshes_that_cannot_be_are_named():
    with pytest.raises(UserError, match=r"'data': 1, 'fsdp': 3, 'tensor': 1\} are 3 devices, not 4"):
        sizes("gpt2", 4, fsdp=3)
    with pytest.raises(UserError, match=r"'kv_heads'.*size 25, which mesh\.tensor=8"):
        sizes("gpt2-xl", 8, tensor=8)
