"""Losses over a large vocabulary that never hold the logits of a whole batch.

Notation: N tokens, D d_model, V vocabulary. Every loss is a sum with its count, divided once at the end.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Sums = dict[str, Array]


def cross_entropy(logits: Array, targets: Array, label_smoothing: float) -> tuple[Array, Array]:
    """Label-smoothed cross entropy and plain negative log-likelihood of each row, in float32.

    With smoothing ε the target distribution is (1-ε) on the target and ε/V on every entry (Szegedy et al. 2016,
    section 7), so the loss is log Σ exp(z) - (1-ε)·z[target] - ε·mean(z): no one-hot rows are formed.

    Args: logits [N, V]; targets int32[N].  Returns: two float32[N].
    """
    logits = logits.astype(jnp.float32)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    # A masked sum, not a gather: its gradient is elementwise and fuses with the softmax, a scatter would not.
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    nll = normaliser - target
    return nll + label_smoothing * (target - jnp.mean(logits, axis=-1)), nll


def in_chunks(rows_loss: Callable[..., tuple[Array, Sums]], chunk: int) -> Callable[..., tuple[Array, Sums]]:
    """Sums a loss over chunks of rows, forming its gradients on the way forward.

    ``rows_loss(rows, table, constants) -> (loss, sums)`` where ``rows`` and ``constants`` are trees of arrays with
    leading axis N, ``table`` is float32[V, D]; loss and sums are sums over the rows given. The result has the same
    signature, is differentiable in ``rows`` and ``table``, and holds the logits of one chunk at a time, forwards
    and backwards. N is padded up to whole chunks with zeros: rows_loss must give zero for all-zero constants.
    """

    def split(tree: Any) -> Any:
        def one(x: Array) -> Array:
            padding = -x.shape[0] % chunk
            return jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:])

        return jax.tree.map(one, tree)

    def forward(rows: Any, table: Array, constants: Any) -> tuple[tuple[Array, Sums], tuple]:
        gradient = jax.value_and_grad(rows_loss, argnums=(0, 1), has_aux=True)

        def body(carry: tuple, xs: tuple) -> tuple[tuple, Any]:
            value, dtable = carry
            new, (drows, dtable_part) = gradient(xs[0], table, xs[1])
            return (jax.tree.map(jnp.add, value, new), dtable + dtable_part), drows

        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (split(rows), split(constants)))
        shapes = jax.eval_shape(rows_loss, first[0], table, first[1])
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (value, dtable), drows = jax.lax.scan(body, (zeros, jnp.zeros_like(table)), (split(rows), split(constants)))
        drows = jax.tree.map(lambda d, x: d.reshape(-1, *x.shape[1:])[: x.shape[0]], drows, rows)
        return value, (drows, dtable)

    @jax.custom_vjp
    def summed(rows: Any, table: Array, constants: Any) -> tuple[Array, Sums]:
        def body(carry: Any, xs: tuple) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, rows_loss(xs[0], table, xs[1])), None

        xs = (split(rows), split(constants))
        shapes = jax.eval_shape(rows_loss, *(jax.tree.map(lambda x: x[0], xs[0]), table, jax.tree.map(lambda x: x[0], xs[1])))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(body, zeros, xs)[0]

    def backward(residual: tuple, cotangent: tuple) -> tuple:
        scale = cotangent[0]
        drows, dtable = jax.tree.map(lambda g: g * scale.astype(g.dtype), residual)
        return drows, dtable, None

    summed.defvjp(forward, backward)
    return summed


def smoothed_rows(label_smoothing: float) -> Callable[..., tuple[Array, Sums]]:
    """The row loss of plain training: rows = hidden [N, D], constants = {targets int32[N], weights float32[N]}."""

    def rows_loss(hidden: Array, table: Array, constants: dict[str, Array]) -> tuple[Array, Sums]:
        logits = jnp.dot(hidden, table.T.astype(hidden.dtype), preferred_element_type=jnp.float32)
        smoothed, nll = cross_entropy(logits, constants["targets"], label_smoothing)
        weights = constants["weights"]
        total = jnp.sum(weights * smoothed)
        return total, {"loss": total, "nll": jnp.sum(weights * nll), "tokens": jnp.sum(weights)}

    return rows_loss


def consistent_rows(
    label_smoothing: float, weight: float, symmetric: bool
) -> Callable[..., tuple[Array, Sums]]:
    """The row loss of two passes that should agree: rows = (first [N, D], second [N, D]).

    Symmetric, it is R-Drop (Liang et al. 2021, eq. 4), halved to the scale of one pass: the mean of the two cross
    entropies + weight/4·(KL(p||q) + KL(q||p)). Otherwise SimCut (Gao et al. 2022, eq. 5): the first pass' cross
    entropy + weight·KL(p||q), with gradients through both.
    """

    def rows_loss(rows: tuple[Array, Array], table: Array, constants: dict[str, Array]) -> tuple[Array, Sums]:
        kernel, weights, targets = table.T.astype(rows[0].dtype), constants["weights"], constants["targets"]
        first, second = (jnp.dot(row, kernel, preferred_element_type=jnp.float32) for row in rows)
        log_p, log_q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
        smoothed, nll = cross_entropy(first, targets, label_smoothing)
        if symmetric:
            smoothed = (smoothed + cross_entropy(second, targets, label_smoothing)[0]) / 2
            divergence = jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1) / 4
        else:
            divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        total = jnp.sum(weights * (smoothed + weight * divergence))
        return total, {"loss": total, "nll": jnp.sum(weights * nll), "tokens": jnp.sum(weights)}

    return rows_loss
