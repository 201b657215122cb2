"""Learning-rate schedules and optimizers by name."""

from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from transformer_jax.errors import UserError
from transformer_jax.training.muon import matrix_axes, scale_by_muon


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters move. Adam with ``inverse_square_root`` is the paper's (section 5.3)."""

    name: Literal["adam", "adamw", "muon", "schedule_free_adamw"]
    schedule: Literal["inverse_square_root", "cosine", "linear", "warmup_stable_decay", "constant"]
    peak_learning_rate: float
    warmup_steps: int
    decay_fraction: float  # warmup_stable_decay: the last part of the run, in which the rate falls to zero
    b1: float
    b2: float
    epsilon: float
    weight_decay: float
    clip_norm: float  # global norm of gradients; 0: no clipping

    def __post_init__(self) -> None:
        if self.peak_learning_rate <= 0:
            raise UserError(f"optimizer.peak_learning_rate is {self.peak_learning_rate}; it must be above 0.")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps is {self.warmup_steps}; it must be at least 0.")
        if not 0 < self.decay_fraction <= 1:
            raise UserError(f"optimizer.decay_fraction is {self.decay_fraction}; it must be above 0 and at most 1.")
        if self.clip_norm < 0:
            raise UserError(f"optimizer.clip_norm is {self.clip_norm}; it must be at least 0 (0: no clipping).")
        if self.name == "adam" and self.weight_decay:
            raise UserError(
                f"optimizer.weight_decay={self.weight_decay} needs optimizer.name='adamw'; 'adam' has none."
            )
        if self.name == "schedule_free_adamw" and self.schedule != "constant":
            raise UserError(
                f"optimizer.schedule={self.schedule!r} cannot go with schedule_free_adamw, which replaces it; "
                "use 'constant'."
            )


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The rate at each step: linear warm-up to the peak, then the named decay, zero at ``total_steps`` unless
    inverse_square_root (Vaswani et al. 2017, eq. 3, with the peak given instead of d_model) or constant."""
    peak, warmup = config.peak_learning_rate, max(config.warmup_steps, 1)
    after = max(total_steps - warmup, 1)
    if config.schedule == "inverse_square_root":
        decay: optax.Schedule = lambda step: peak * (warmup / (jnp.maximum(step, 0) + warmup)) ** 0.5
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, after)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, 0.0, after)
    elif config.schedule == "warmup_stable_decay":
        length = min(max(int(config.decay_fraction * total_steps), 1), after)
        decay = optax.linear_schedule(peak, 0.0, length, transition_begin=after - length)
    else:
        decay = optax.constant_schedule(peak)
    # Step 0 already moves: a first update with rate zero would be a batch thrown away.
    warm = optax.linear_schedule(peak / warmup, peak, warmup - 1) if warmup > 1 else optax.constant_schedule(peak)
    return optax.join_schedules([warm, decay], [warmup])


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to a global norm; ``update`` takes their norm where it is known already."""

    def update(updates: Any, state: Any, params: Any = None, *, norm: Any = None, **_: Any) -> tuple[Any, Any]:
        norm = optax.global_norm(updates) if norm is None else norm
        return jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / norm), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _decayed(params: Any) -> Any:
    """Which parameters AdamW's weight decay shrinks: kernels and tables, not norms and biases."""
    named = lambda path, leaf: str(getattr(path[-1], "key", path[-1])) in ("kernel", "embedding")
    return jax.tree_util.tree_map_with_path(named, params)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """The update rule: clipping, then the named optimizer with its schedule."""
    rate = learning_rate(config, total_steps)
    adam = dict(b1=config.b1, b2=config.b2, eps=config.epsilon)
    if config.name == "adam":
        optimizer = optax.adam(rate, **adam)
    elif config.name == "adamw":
        optimizer = optax.adamw(rate, **adam, weight_decay=config.weight_decay, mask=_decayed)
    elif config.name == "schedule_free_adamw":
        # Its own warm-up has a first step of zero, and with warmup_steps=0 no other.
        optimizer = contrib.schedule_free_adamw(cast(Any, rate), weight_decay=config.weight_decay, **adam)
    else:
        decayed = optax.add_decayed_weights(config.weight_decay)
        muon = optax.chain(scale_by_muon(config.b1), decayed, optax.scale_by_learning_rate(rate))
        others = optax.adamw(rate, **adam, weight_decay=config.weight_decay, mask=_decayed)
        label = lambda path, leaf: "others" if matrix_axes(path, leaf) is None else "muon"
        labels = lambda params: jax.tree_util.tree_map_with_path(label, params)
        optimizer = optax.partition({"muon": muon, "others": others}, labels)
    clip = clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optimizer)


def evaluation_parameters(config: OptimizerConfig, opt_state: Any, params: Any) -> Any:
    """The parameters to evaluate: Schedule-Free keeps an average beside its iterate, the others use ``params``."""
    if config.name == "schedule_free_adamw":
        return contrib.schedule_free_eval_params(opt_state[1], params)
    return params
