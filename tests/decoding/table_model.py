"""A tiny model for tests: a random table indexed by the source and the whole history of the beam.

Its cache holds that history, so a beam that is not reordered, or a row at a wrong position, gives other
logits.
"""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

BUCKETS = 997


def key_of(source_sum, history, count):
    """Bucket of a source and the first ``count`` tokens of history[..., T]."""
    position = jnp.arange(history.shape[-1])
    seen = jnp.where(position < count, (history + 1) * (position * 37 + 11), 0)
    return (source_sum * 131 + seen.sum(-1)) % BUCKETS


@dataclass(frozen=True)
class TableModel:
    """Logits float32[V] from a table float32[BUCKETS, V], which is its parameters."""

    def start(self, params, source, beam_size, max_length):
        B = source.shape[0]
        return {
            "source": source,
            "history": jnp.zeros((B, beam_size, max_length), jnp.int32),
            "position": jnp.zeros(B, jnp.int32),
        }

    def step(self, params, cache, tokens):
        position = cache["position"][:, None]
        here = jnp.arange(cache["history"].shape[-1]) == position[:, :, None]
        history = jnp.where(here, tokens[:, :, None], cache["history"])
        key = key_of(cache["source"].sum(1)[:, None], history, position[:, :, None] + 1)
        return params["logits"][key], {**cache, "history": history, "position": cache["position"] + 1}

    def reorder(self, cache, parents):
        return {**cache, "history": jnp.take_along_axis(cache["history"], parents[:, :, None], axis=1)}


@dataclass(frozen=True)
class AttendingTableModel(TableModel):
    """Attends by a second table, over the real source positions."""

    def step_with_attention(self, params, cache, tokens):
        source = cache["source"]
        logits, cache = self.step(params, cache, tokens)
        key = key_of(source.sum(1)[:, None], cache["history"], cache["position"][:, None, None])
        scores = params["attention"][key][..., : source.shape[1]]
        scores = jnp.where(source[:, None, :] == 0, -jnp.inf, scores)
        return logits, cache, jax.nn.softmax(scores)


def make_params(seed, vocab_size, scale=1.5):
    rng = np.random.default_rng(seed)
    return {
        "logits": jnp.asarray(rng.normal(size=(BUCKETS, vocab_size)) * scale, jnp.float32),
        "attention": jnp.asarray(rng.normal(size=(BUCKETS, 64)) * 2, jnp.float32),
    }


def enumerate_all(params, source, tokens, max_length, alpha=0.0, beta=0.0, min_length=1, prefix=()):
    """Every output over ``tokens`` and EOS within the rules: [(score, log_prob, tokens)], best first; NumPy
    only.
    """
    logits, attention = np.asarray(params["logits"], np.float64), np.asarray(params["attention"], np.float64)
    real = np.flatnonzero(source)
    found = []
    for length in range(max(1, min_length), max_length + 1):
        for body in itertools.product(tokens, repeat=length - 1):
            if body[: len(prefix)] != tuple(prefix):
                continue
            total, coverage, history = 0.0, np.zeros(len(real)), [3]
            for token in [*body, 1]:
                key = (
                    int(np.sum(source)) * 131 + sum((t + 1) * (i * 37 + 11) for i, t in enumerate(history))
                ) % BUCKETS
                total += logits[key, token] - np.log(np.exp(logits[key]).sum())
                weights = np.exp(attention[key, real])
                coverage += weights / weights.sum()
                history.append(token)
            score = total / ((5 + length) / 6) ** alpha
            score += beta * np.log(np.minimum(coverage, 1)).sum() if beta else 0.0
            found.append((score, total, body))
    return sorted(found, key=lambda item: -item[0])
