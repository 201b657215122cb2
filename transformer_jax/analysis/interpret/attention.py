"""Attention maps: the weights of every layer and head, as arrays and as figures."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from transformer_jax.analysis.translation import TranslationRun

KINDS = {
    "encoder": "encoder/layer_*/self_attention/weights",
    "decoder": "decoder/layer_*/self_attention/weights",
    "cross": "decoder/layer_*/cross_attention/weights",
}


def attention_maps(run: TranslationRun, source: str, target: str) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Attention weights under teacher forcing.

    Returns: ``maps``, with "encoder" float32[L, H, S, S], "decoder" float32[L, H, T, T] and "cross"
      float32[L, H, T, S] for L layers and H heads, rows the queries, those of them that the network has; the source
      pieces (S); and the target pieces that are predicted (T). Row t of the decoder's maps is where the model looks to
      predict piece t.
    Raises: UserError for a network without attention.
    """
    inputs = run.inputs([source], [target])
    found = run.capture_inputs(inputs, ["*/weights"])
    there = {kind: pattern for kind, pattern in KINDS.items() if fnmatch.filter(found, pattern)}
    maps = {kind: stacked(found, pattern)[0] for kind, pattern in there.items()}
    source_pieces, target_pieces = run.pieces(inputs)
    return maps, source_pieces, target_pieces


def stacked(activations: Mapping[str, np.ndarray], pattern: str) -> np.ndarray:
    """The activations that a pattern matches, layer by layer: [B, L, …], the batch's axis still first."""
    layers = sorted(fnmatch.filter(activations, pattern), key=lambda name: int(re.findall(r"layer_(\d+)/", name)[0]))
    return np.stack([activations[name] for name in layers], axis=1)


def plot_attention(weights: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> Figure:
    """A figure of float32[L, H, T, S] weights: one panel a layer and head, the same scale in all."""
    layers, heads = weights.shape[:2]
    panel = 0.22 * max(len(rows), len(columns), 8)
    figure = Figure(figsize=(heads * panel + 1.5, layers * panel + 1.2), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            axis = axes[layer, head]
            image = axis.imshow(weights[layer, head], vmin=0.0, vmax=1.0, cmap="Blues", aspect="auto")
            axis.set_xticks(range(len(columns)), columns if layer == layers - 1 else [], rotation=90, fontsize=7)
            axis.set_yticks(range(len(rows)), rows if head == 0 else [], fontsize=7)
            if layer == 0:
                axis.set_title(f"head {head}", fontsize=8)
            if head == 0:
                axis.set_ylabel(f"layer {layer}", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.6, label="attention weight")
    return figure


def plot_maps(
    maps: Mapping[str, np.ndarray], rows: Sequence[str], columns: Mapping[str, Sequence[str]], title: str
) -> Figure:
    """A figure of several float[T, S] maps with the same rows side by side, zero in the middle of one scale."""
    figure = Figure(figsize=(0.35 * sum(map(len, columns.values())) + 3, 0.3 * len(rows) + 2), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(maps), squeeze=False, width_ratios=[len(columns[name]) for name in maps])[0]
    largest = max(np.abs(values).max() for values in maps.values())
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        image = axis.imshow(values, vmin=-largest, vmax=largest, cmap="RdBu", aspect="auto")
        axis.set_xticks(range(len(columns[name])), columns[name], rotation=90, fontsize=7)
        axis.set_yticks(range(len(rows)), rows if axis is axes[0] else [], fontsize=7)
        axis.set_title(name.replace("_", " "), fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def save_attention_figures(run: TranslationRun, source: str, target: str, folder: Path) -> list[Path]:
    """Writes encoder.png, decoder.png and cross.png of a sentence pair, those that there are; returns their paths."""
    maps, source_pieces, target_pieces = attention_maps(run, source, target)
    inputs = run.read_pieces("target_embeddings", run.inputs([source], [target]))
    labels = {
        "encoder": (source_pieces, source_pieces, "Encoder self-attention: rows look at columns"),
        "decoder": (
            target_pieces,
            inputs,
            "Decoder self-attention: to predict a row, the model looks at columns",
        ),
        "cross": (
            target_pieces,
            source_pieces,
            "Cross-attention: to predict a row, the model looks at columns",
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in maps:
        path = folder / f"{kind}.png"
        plot_attention(maps[kind], *labels[kind]).savefig(path, dpi=110)
        paths.append(path)
    return paths
