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
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.epsilon <= 0:
            raise UserError(f"optimizer.epsilon is {self.epsilon}; it must be above 0.")
        if self.weight_decay < 0:
            raise UserError(f"optimizer.weight_decay is {self.weight_decay}; it must be at least 0.")
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


def scale_by_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformationExtraArgs:
    """Adam's direction (Kingma and Ba 2015, algorithm 1), with optax's state; where ``good`` is False that stays."""

    def update(updates: Any, state: Any, params: Any = None, *, good: Any = True, **_: Any) -> tuple[Any, Any]:
        del params
        keep, gain = jnp.where(good, jnp.array([[b1, b2], [1 - b1, 1 - b2]]), jnp.array([[1.0, 1.0], [0.0, 0.0]]))
        count = state.count + jnp.asarray(good, jnp.int32)
        clean = jax.tree.map(lambda g: jnp.where(good, g, 0.0), updates)
        mu = jax.tree.map(lambda m, g: keep[0] * m + gain[0] * g, state.mu, clean)
        nu = jax.tree.map(lambda v, g: keep[1] * v + gain[1] * g * g, state.nu, clean)
        # Or XLA computes the moments a second time from the old ones, and copies those before it overwrites them.
        mu, nu = jax.lax.optimization_barrier((mu, nu))
        steps = jnp.maximum(count, 1)
        first, second = 1.0 / (1.0 - b1**steps), 1.0 / (1.0 - b2**steps)
        direction = jax.tree.map(lambda m, v: m * first / (jnp.sqrt(v * second) + epsilon), mu, nu)
        return direction, optax.ScaleByAdamState(count, mu, nu)

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

    return optax.GradientTransformationExtraArgs(init, update)


def descend(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Minus the rate times the direction; nothing, and no count of the step, where ``good`` is False."""

    def update(updates: Any, state: Any, params: Any = None, *, good: Any = True, **_: Any) -> tuple[Any, Any]:
        del params
        scale = jnp.where(good, -rate(state.count), 0.0)
        count = state.count + jnp.asarray(good, jnp.int32)
        return jax.tree.map(lambda u: scale * u, updates), optax.ScaleByScheduleState(count)

    init = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
    return optax.GradientTransformationExtraArgs(init, update)


def guarded(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Any optimizer, moving nothing and keeping its state where ``good`` is False."""

    def update(updates: Any, state: Any, params: Any = None, *, good: Any = True, **_: Any) -> tuple[Any, Any]:
        choose = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
        updates, new = optimizer.update(updates, state, params)
        return choose(updates, jax.tree.map(jnp.zeros_like, updates)), choose(new, state)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _decayed(params: Any) -> Any:
    """Which parameters AdamW's weight decay shrinks: kernels and tables, not norms and biases."""
    named = lambda path, leaf: str(getattr(path[-1], "key", path[-1])) in ("kernel", "embedding")
    return jax.tree_util.tree_map_with_path(named, params)


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformationExtraArgs:
    """The update rule: clipping, then the named optimizer with its schedule.

    ``update(gradients, state, params, norm=…, mesh=…, good=…)``: the gradients' global norm, the mesh that what is
    costly may be shared out on, and bool[], whether the step is to be taken; without it the updates are zero and the
    state stays.
    """
    rate = learning_rate(config, total_steps)
    adam, decay = scale_by_adam(config.b1, config.b2, config.epsilon), config.weight_decay
    adamw = optax.chain(adam, optax.add_decayed_weights(decay, _decayed), descend(rate))
    if config.name == "adam":
        optimizer: optax.GradientTransformation = optax.chain(adam, descend(rate))
    elif config.name == "adamw":
        optimizer = adamw
    elif config.name == "schedule_free_adamw":
        # Its own warm-up has a first step of zero, and with warmup_steps=0 no other.
        settings = dict(b1=config.b1, b2=config.b2, eps=config.epsilon, weight_decay=decay)
        optimizer = guarded(contrib.schedule_free_adamw(cast(Any, rate), **settings))
    else:
        muon = optax.chain(scale_by_muon(config.b1), optax.add_decayed_weights(decay), descend(rate))
        label = lambda path, leaf: "adamw" if matrix_axes(path, leaf) is None else "muon"
        labels = lambda params: jax.tree_util.tree_map_with_path(label, params)
        optimizer = optax.partition({"muon": muon, "adamw": adamw}, labels)
    clip = clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optimizer)


def evaluation_parameters(config: OptimizerConfig, opt_state: Any, params: Any) -> Any:
    """The parameters to evaluate: Schedule-Free keeps an average beside its iterate, the others use ``params``."""
    if config.name == "schedule_free_adamw":
        return contrib.schedule_free_eval_params(opt_state[1], params)
    return params
