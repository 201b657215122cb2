"""What a model of any size needs under a mesh of any size, from shapes alone: nothing is allocated or compiled."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh

from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config
from transformer_jax.families.language_model import LanguageModelRunConfig, make_task
from transformer_jax.models.language_model import LanguageModelConfig
from transformer_jax.sharding import AXES, parameter_shardings, state_shardings
from transformer_jax.training.optimizers import make_optimizer


@dataclass(frozen=True)
class Sizes:
    """Numbers of a language model and of a step of its training.

    Attributes:
      parameters: all of them; ``embedding_parameters``: of tables of tokens and positions among them.
      modules: parameters by the first two names of their paths.
      flops_per_token: of forward and backward pass: 6 for each parameter of a matrix product, the output table's among
        them, and 12·L·T·D for the attention scores (Chowdhery et al. 2022, Appendix B). Rematerialisation is not in it.
      step_flops, total_flops: of a step, and of all of the config's steps.
      device_bytes: on one device by kind: "parameters", "gradients" and "optimizer" (with the average of parameters) as
        they are placed; "activations" and "logits" are estimates.
    """

    parameters: int
    embedding_parameters: int
    modules: dict[str, int]
    tokens_per_step: int
    flops_per_token: float
    step_flops: float
    total_flops: float
    mesh: dict[str, int]
    device_bytes: dict[str, int]


def language_model_sizes(mapping: Any, devices: int = 1) -> Sizes:
    """The sizes of a config's model on so many devices, which need not be there.

    Args:
      mapping: the config; a mesh axis of -1 takes the devices that the others leave.
    Raises: UserError as `train` does: a mesh that does not fit, a size that its axis does not divide.
    """
    config: LanguageModelRunConfig = parse_config(mapping)
    if not isinstance(config, LanguageModelRunConfig):
        raise UserError(f"{config.name} is of the family {config.family}; sizes are those of language models.")
    mesh = _mesh(config, devices)
    task = make_task(config, config.tokenizer.vocab_size)
    model, training = task.model.config, config.training
    boxed = jax.eval_shape(task.init, jax.random.key(0))
    optimizer = make_optimizer(config.optimizer, training.total_steps)

    def create() -> dict[str, Any]:
        params = nn.unbox(task.init(jax.random.key(0)))
        state = {"parameters": params, "gradients": params, "optimizer": [optimizer.init(params)]}
        return state | ({"optimizer": [*state["optimizer"], params]} if training.ema_decay else {})

    state = jax.eval_shape(create)
    placed = state_shardings(mesh, state, state["parameters"], parameter_shardings(mesh, boxed))
    held = jax.tree.map(lambda s, p: math.prod(p.shard_shape(s.shape)) * s.dtype.itemsize, state, placed)
    modules: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state["parameters"]):
        name = "/".join(key.key for key in path[:2])
        modules[name] = modules.get(name, 0) + math.prod(leaf.shape)
    total = sum(modules.values())
    tables = sum(count for name, count in modules.items() if name.endswith("/embedding"))
    matrices = total - tables + model.vocab_size * model.d_model
    length, tokens = config.batching.length, config.batching.rows * config.batching.length
    per_token = 6.0 * matrices + 12.0 * model.num_layers * length * model.d_model
    rows = config.batching.rows / (mesh.shape["data"] * mesh.shape["fsdp"] * training.accumulation)
    chunk = min(config.task.loss_chunk, math.ceil(rows * length))
    return Sizes(
        parameters=total,
        embedding_parameters=tables,
        modules=modules,
        tokens_per_step=tokens,
        flops_per_token=per_token,
        step_flops=per_token * tokens,
        total_flops=per_token * tokens * training.total_steps,
        mesh=dict(mesh.shape),
        device_bytes={
            **{name: sum(jax.tree.leaves(held[name])) for name in ("parameters", "gradients", "optimizer")},
            "activations": activation_bytes(model, rows, length, mesh.shape["tensor"]),
            "logits": 2 * 4 * chunk * model.vocab_size // mesh.shape["tensor"],
        },
    )


def activation_bytes(model: LanguageModelConfig, rows: float, length: int, tensor: int) -> int:
    """An estimate of what the forward pass of ``rows`` sequences keeps for the backward pass on one device.

    A layer keeps its input, what its two norms make of it, queries, keys, values, the heads' outputs and both sides of
    the activation; and for every pair of positions scores in float32 and weights (Korthikanti et al. 2022, section 4,
    for our blocks without dropout masks). Heads and feed-forward are divided over the tensor axis. With remat="full"
    only inputs are kept, and one layer is whole at a time; "dots" lies between and is counted as "none".
    """
    c, size = model, jnp.dtype(model.activation_dtype).itemsize
    heads = 2 * c.num_heads + 2 * c.kv_heads
    split = (heads * c.head_dim + (3 if c.activation.endswith("glu") else 2) * c.d_ff) / tensor
    pairs = c.num_heads / tensor * length * (4 + size)
    layer = length * ((3 * c.d_model + split) * size + pairs)
    whole = 1 if c.remat == "full" else c.num_layers
    inputs = c.num_layers * length * c.d_model * size if c.remat == "full" else 0
    return math.ceil(rows * (whole * layer + inputs))


def _mesh(config: LanguageModelRunConfig, devices: int) -> Any:
    """An abstract mesh, which knows sizes and shardings but no devices."""
    sizes = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [max(devices // known, 1) if size == -1 else size for size in sizes]
    if math.prod(sizes) != devices:
        raise UserError(
            f"mesh: {dict(zip(AXES, sizes, strict=True))} are {math.prod(sizes)} devices, not {devices}; set "
            "--devices, or a size to -1 to use what is left."
        )
    return AbstractMesh(tuple(sizes), AXES)


def format_sizes(sizes: Sizes) -> str:
    """The numbers for a terminal."""
    gibibytes = {name: count / 2**30 for name, count in sizes.device_bytes.items()}
    lines = [
        f"parameters       {sizes.parameters:,}, {sizes.embedding_parameters:,} of them in tables",
        *(f"  {name:<28} {count:>17,}" for name, count in sizes.modules.items()),
        f"FLOPs            {sizes.flops_per_token:.3e} a token, {sizes.step_flops:.3e} a step of "
        f"{sizes.tokens_per_step:,} tokens, {sizes.total_flops:.3e} in all "
        f"({sizes.total_flops / 8.64e19:,.1f} petaflop/s-days)",
        f"mesh             {sizes.mesh}",
        "on each device   " + ", ".join(f"{name} {value:,.2f} GiB" for name, value in gibibytes.items()),
        f"                 {sum(gibibytes.values()):,.2f} GiB together; activations and logits are estimates",
    ]
    return "\n".join(lines)
