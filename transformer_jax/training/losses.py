"""Losses over a large vocabulary that never hold the logits of a whole batch.

Notation: N tokens, D d_model, V vocabulary. Every loss is a sum with its count, divided once at the end.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from transformer_jax.models.layers import operands

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


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def summed_cross_entropy(
    hidden: Array, table: Array, targets: Array, weights: Array, label_smoothing: float, chunk: int
) -> tuple[Array, Sums]:
    """The sum of `cross_entropy` over rows, from hidden states, without ever holding all logits.

    Works through ``chunk`` rows at a time and forms its gradients on the way. With e = exp(z - max) and the loss
    above, dz = w·(e/Σe - ε/V - (1-ε)·[target]): the scale w/Σe goes into the small matrices beside e, the other two
    terms are of rank one and of N rows, so e is the only [chunk, V] array besides the logits, and chunks of rows of
    weight zero (padding) are never computed.

    Args: hidden [N, D]; table float32[V, D]; targets int32[N]; weights float32[N], each 0 or 1.
    Returns: the loss, and sums of "loss", "nll" and "tokens".
    """
    return _cross_entropy_in_chunks(hidden, table, targets, weights, label_smoothing, chunk, gradients=False)[0]


@jax.named_scope("loss")
def _cross_entropy_in_chunks(
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
    label_smoothing: float,
    chunk: int,
    gradients: bool,
) -> tuple[tuple[Array, Sums], tuple[Array, Array] | None]:
    rows, vocab_size = hidden.shape[0], table.shape[0]
    chunk = min(chunk, rows)
    smoothing = label_smoothing / vocab_size
    (kernel,) = operands(table.astype(hidden.dtype))
    # Rows that count come first; the loop below ends after them.
    order = jnp.argsort(weights == 0, stable=True)
    pad = lambda x: jnp.pad(x[order], ((0, -rows % chunk), *((0, 0),) * (x.ndim - 1)))
    (h,), t, w = operands(pad(hidden)), pad(targets), pad(weights)
    target_rows = kernel[t]
    h32 = h.astype(jnp.float32)
    target = jnp.sum(h32 * target_rows, axis=-1)
    mean = h32 @ jnp.mean(table, axis=0)
    count = jnp.sum(weights)

    def body(i: Array, carry: tuple) -> tuple:
        normalisers, dh, dtable = carry
        part = jax.lax.dynamic_slice_in_dim(h, i * chunk, chunk)
        z = jnp.dot(part, kernel.T, preferred_element_type=jnp.float32)
        largest = jnp.max(z, axis=-1)
        e = jnp.exp(z - largest[:, None])
        total = jnp.sum(e, axis=-1)
        normalisers = jax.lax.dynamic_update_slice_in_dim(normalisers, largest + jnp.log(total), i * chunk, 0)
        if gradients:
            scale = (jax.lax.dynamic_slice_in_dim(w, i * chunk, chunk) / total)[:, None]
            (e,) = operands(e.astype(hidden.dtype))
            from_e = jnp.dot(e, kernel, preferred_element_type=jnp.float32) * scale
            dh = jax.lax.dynamic_update_slice_in_dim(dh, from_e, i * chunk, 0)
            (scaled,) = operands((part * scale).astype(hidden.dtype))
            dtable = dtable + jnp.dot(e.T, scaled, preferred_element_type=jnp.float32)
        return normalisers, dh, dtable

    start = (
        jnp.zeros(w.shape),
        jnp.zeros(h.shape) if gradients else None,
        jnp.zeros(table.shape) if gradients else None,
    )
    if chunk == rows:  # a loop that ends when data says so makes a GPU wait for the host
        normalisers, dh, dtable = body(jnp.zeros((), jnp.int32), start)
    else:
        chunks = jnp.ceil(count / chunk).astype(jnp.int32)
        normalisers, dh, dtable = jax.lax.fori_loop(0, chunks, body, start)
    nll = jnp.sum(w * (normalisers - target))
    loss = nll + label_smoothing * jnp.sum(w * (target - mean))
    sums = (loss, {"loss": loss, "nll": nll, "tokens": count})
    if not gradients:
        return sums, None
    weight = w[:, None]
    direct = weight * (1.0 - label_smoothing)
    dh = dh - direct * target_rows - weight * smoothing * jnp.sum(table, axis=0)
    dtable = dtable.at[t].add(-direct * h32) - smoothing * jnp.sum(weight * h32, axis=0)
    back = jnp.zeros(hidden.shape, hidden.dtype).at[order].set(dh[:rows].astype(hidden.dtype), unique_indices=True)
    return sums, (back, dtable)


def _cross_entropy_forward(
    hidden: Array, table: Array, targets: Array, weights: Array, label_smoothing: float, chunk: int
) -> tuple[tuple[Array, Sums], Any]:
    return _cross_entropy_in_chunks(hidden, table, targets, weights, label_smoothing, chunk, gradients=True)


@jax.named_scope("loss")
def _cross_entropy_backward(label_smoothing: float, chunk: int, residual: Any, cotangent: Any) -> tuple:
    dhidden, dtable = jax.tree.map(lambda g: g * cotangent[0].astype(g.dtype), residual)
    return dhidden, dtable, None, None


summed_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def count_correct(hidden: Array, table: Array, targets: Array, weights: Array, chunk: int) -> Array:
    """Of how many rows the target has the largest logit: float32[]. Arguments as for `summed_cross_entropy`."""
    order, chunk = jnp.argsort(weights == 0, stable=True), min(chunk, len(weights))
    pad = lambda x: jnp.pad(x[order], ((0, -x.shape[0] % chunk), *((0, 0),) * (x.ndim - 1)))
    (h, kernel), t, w = operands(pad(hidden), table.astype(hidden.dtype)), pad(targets), pad(weights)

    def body(i: Array, count: Array) -> Array:
        part, wanted, weight = (jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in (h, t, w))
        z = jnp.dot(part, kernel.T, preferred_element_type=jnp.float32)
        return count + jnp.sum(weight * (jnp.argmax(z, axis=-1) == wanted))

    chunks = jnp.ceil(jnp.sum(weights) / chunk).astype(jnp.int32)
    return jax.lax.fori_loop(0, chunks, body, jnp.zeros(()))


def in_chunks(rows_loss: Callable[..., tuple[Array, Sums]], chunk: int) -> Callable[..., tuple[Array, Sums]]:
    """Sums a loss over chunks of rows, forming its gradients on the way forward.

    ``rows_loss(rows, table, constants) -> (loss, sums)`` where ``rows`` and ``constants`` are trees of arrays with
    leading axis N, ``table`` is float32[V, D]; loss and sums are sums over the rows given. The result has the same
    signature, is differentiable in ``rows`` and ``table``, and holds the logits of one chunk at a time, forwards
    and backwards. N is padded up to whole chunks with zeros: rows_loss must give zero for all-zero constants.
    """

    def split(tree: Any) -> Any:
        def one(x: Array) -> Array:
            size = min(chunk, x.shape[0])
            padding = -x.shape[0] % size
            return jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])

        return jax.tree.map(one, tree)

    @jax.named_scope("loss")
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
    @jax.named_scope("loss")
    def summed(rows: Any, table: Array, constants: Any) -> tuple[Array, Sums]:
        def body(carry: Any, xs: tuple) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, rows_loss(xs[0], table, xs[1])), None

        xs = (split(rows), split(constants))
        shapes = jax.eval_shape(
            rows_loss, *(jax.tree.map(lambda x: x[0], xs[0]), table, jax.tree.map(lambda x: x[0], xs[1]))
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(body, zeros, xs)[0]

    @jax.named_scope("loss")
    def backward(residual: tuple, cotangent: tuple) -> tuple:
        scale = cotangent[0]
        drows, dtable = jax.tree.map(lambda g: g * scale.astype(g.dtype), residual)
        return drows, dtable, None

    summed.defvjp(forward, backward)
    return summed


def consistent_rows(label_smoothing: float, weight: float, symmetric: bool) -> Callable[..., tuple[Array, Sums]]:
    """The row loss of two passes that should agree: rows = (first [N, D], second [N, D]).

    Symmetric, it is R-Drop (Liang et al. 2021, eq. 4), halved to the scale of one pass: the mean of the two cross
    entropies + weight/4·(KL(p||q) + KL(q||p)). Otherwise SimCut (Gao et al. 2022, eq. 5): the first pass' cross
    entropy + weight·KL(p||q), with gradients through both.
    """

    def rows_loss(rows: tuple[Array, Array], table: Array, constants: dict[str, Array]) -> tuple[Array, Sums]:
        kernel, weights, targets = table.T.astype(rows[0].dtype), constants["weights"], constants["targets"]
        first, second = (jnp.dot(*operands(row, kernel), preferred_element_type=jnp.float32) for row in rows)
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
