"""GPUs that programs are compiled for where there are none: XLA needs no more than a description of them."""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jax.experimental import topologies

from transformer_jax.config import suggest
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class Card:
    """What XLA asks of a GPU, from its data sheet: in bytes, bytes/s and GHz; shared memory is that of a core."""

    name: str
    capability: int
    cores: int
    units: int
    shared_memory: int
    cache: int
    memory: int
    bandwidth: int
    clock: float


CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", 8, 108, 64, 164 << 10, 40 << 20, 80 << 30, 2_039_000_000_000, 1.41),
    "h100": Card("NVIDIA H100 80GB HBM3", 9, 132, 128, 228 << 10, 50 << 20, 80 << 30, 3_352_000_000_000, 1.98),
    "h200": Card("NVIDIA H200", 9, 132, 128, 228 << 10, 50 << 20, 141 * 10**9, 4_800_000_000_000, 1.98),
}


def target_devices(target: str) -> list[Any]:
    """The devices of "h100", or of "h100:8" in one machine: a mesh of them can be compiled for, and run nothing.

    Raises: UserError for another name, and without JAX's plugin for CUDA.
    """
    card, count = _parse(target)
    try:
        described = _description(card)
        found = topologies.get_topology_desc(platform="cuda", target_config=described, topology=f"1x1x{count}")
    except (PackageNotFoundError, NotImplementedError) as error:
        raise UserError(
            f"--target={target} takes JAX's plugin for CUDA, though no GPU: install the extra cuda13 or cuda12."
        ) from error
    return list(found.devices)


def target_memory(target: str) -> int:
    """Bytes that one of them has."""
    return _parse(target)[0].memory


def _parse(target: str) -> tuple[Card, int]:
    name, _, count = target.partition(":")
    if name not in CARDS or not re.fullmatch("([1-9][0-9]*)?", count):
        raise UserError(f"--target={target}: {suggest(name, CARDS)} NAME:8 is a machine with eight of them.")
    return CARDS[name], int(count or 1)


def _description(card: Card) -> str:
    """A GpuTargetConfigProto of XLA as text, with the versions of CUDA and cuDNN that are installed."""
    cuda = 13
    try:
        version("jax-cuda13-plugin")
    except PackageNotFoundError:
        cuda = 12
    major, minor, patch = version(f"nvidia-cudnn-cu{cuda}").split(".")[:3]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 << 10}
  shared_memory_per_core: {card.shared_memory}
  shared_memory_per_block_optin: {card.shared_memory - 1024}
  threads_per_core_limit: 2048
  core_count: {card.cores}
  fpus_per_core: {card.units}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
  l2_cache_size: {card.cache}
  memory_bandwidth: {card.bandwidth}
  device_memory_size: {card.memory}
  clock_rate_ghz: {card.clock}
  cuda_compute_capability {{ major: {card.capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
runtime_version {{ major: {cuda} }}
device_description_str: "{card.name}"
"""
