"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017) once more, in plain NumPy and float64.

An executable specification, to be read beside the paper from top to bottom. From the same parameters it computes
what `EncoderDecoder` computes with the paper's choices (the defaults of `TransformerConfig`) and no dropout.

Shapes: B batch, T target length, S source length, D d_model, H heads, K = D/H, F d_ff, V vocabulary.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Weights = Any  # nested dicts of arrays, as Flax names them

PADDING, BEGINNING = 0, 3


def transformer(params: Weights, source: ArrayLike, target: ArrayLike) -> Array:
    """Logits float64[B, T, V]: position t predicts target[:, t] from source int[B, S] and target[:, :t]."""
    source, target = np.asarray(source), np.asarray(target)
    inputs = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BEGINNING)  # figure 1: "shifted right"
    table = np.asarray(params["shared_embedding"]["embedding"], np.float64)

    not_padding = (source != PADDING)[:, None, None, :]  # [B, 1, 1, S]
    not_later = np.tri(inputs.shape[1], dtype=bool)  # [T, T]: position i sees j <= i (section 3.2.3)

    x = embed(table, source)
    for layer in layers(params["encoder"]):  # section 3.1, figure 1 left
        attended = multi_head(layer["self_attention"], x, x, not_padding)
        x = add_and_norm(layer["self_attention_norm"], x, attended)
        x = add_and_norm(layer["feed_forward_norm"], x, feed_forward(layer["feed_forward"], x))
    memory = x

    y = embed(table, inputs)
    for layer in layers(params["decoder"]):  # section 3.1, figure 1 right
        attended = multi_head(layer["self_attention"], y, y, not_later)
        y = add_and_norm(layer["self_attention_norm"], y, attended)
        attended = multi_head(layer["cross_attention"], y, memory, not_padding)
        y = add_and_norm(layer["cross_attention_norm"], y, attended)
        y = add_and_norm(layer["feed_forward_norm"], y, feed_forward(layer["feed_forward"], y))
    return y @ table.T  # section 3.4: the linear layer before the softmax is the embedding table, tied


def embed(table: Array, tokens: Array) -> Array:
    """E[token]·√D (section 3.4) plus the positional encoding (section 3.5): [B, L] -> [B, L, D]."""
    length, d_model = tokens.shape[1], table.shape[1]
    encoding = np.zeros((length, d_model))
    position, i = np.arange(length)[:, None], np.arange(d_model // 2)
    encoding[:, 0::2] = np.sin(position / 10000 ** (2 * i / d_model))
    encoding[:, 1::2] = np.cos(position / 10000 ** (2 * i / d_model))
    return table[tokens] * np.sqrt(d_model) + encoding


def multi_head(weights: Weights, x: Array, y: Array, visible: Array) -> Array:
    """Queries of x[B, T, D], keys and values of y[B, S, D]: Concat(head_1 … head_H)·W^O (section 3.2.2)."""
    q = np.einsum("btd,dhk->bhtk", x, weights["query"]["kernel"])  # Q·W_i^Q for every head i
    k = np.einsum("bsd,dhk->bhsk", y, weights["key"]["kernel"])
    v = np.einsum("bsd,dhk->bhsk", y, weights["value"]["kernel"])
    return np.einsum("bhtk,hkd->btd", attention(q, k, v, visible), weights["output"]["kernel"])


def attention(q: Array, k: Array, v: Array, visible: Array) -> Array:
    """softmax(Q·Kᵀ/√K)·V (eq. 1); what is not visible gets a score of almost -∞ (section 3.2.3)."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    return softmax(np.where(visible, scores, -1e9)) @ v


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def feed_forward(weights: Weights, x: Array) -> Array:
    """max(0, x·W_1 + b_1)·W_2 + b_2 (eq. 2)."""
    hidden = np.maximum(0, x @ weights["input"]["kernel"] + weights["input"]["bias"])
    return hidden @ weights["output"]["kernel"] + weights["output"]["bias"]


def add_and_norm(weights: Weights, x: Array, sublayer: Array) -> Array:
    """LayerNorm(x + Sublayer(x)) (section 3.1), with a learned scale and bias (Ba et al. 2016, eq. 4)."""
    x = x + sublayer
    deviation = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(deviation**2, axis=-1, keepdims=True)
    return deviation / np.sqrt(variance + 1e-6) * weights["scale"] + weights["bias"]


def layers(stack: Weights) -> list[Weights]:
    return [stack[f"layer_{i}"] for i in range(len(stack))]
