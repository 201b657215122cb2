"""Attention maps: the weights of every layer and head, as arrays and as figures."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from transformer_jax.analysis.capture import Inputs
from transformer_jax.analysis.run import Run

KINDS = {
    "encoder": "encoder/layer_*/self_attention/weights",
    "decoder": "decoder/layer_*/self_attention/weights",
    "cross": "decoder/layer_*/cross_attention/weights",
}
TITLES = {
    "encoder": "Encoder self-attention: rows look at columns",
    "decoder": "Decoder self-attention: to predict a row, the model looks at columns",
    "cross": "Cross-attention: to predict a row, the model looks at columns",
}


@dataclass(frozen=True)
class AttentionMaps:
    """Where every layer and head looks in one text, or pair of texts.

    Attributes:
      maps: by kind, of those that the network has, float32[L, H, rows, columns] for L layers and H heads: "encoder",
        "decoder", "cross". A row is a query, and sums to one.
      rows, columns: by kind, names of tokens. Of a decoder's maps rows are the tokens that are predicted there, columns
        of "decoder" those that have been read.
    """

    maps: dict[str, np.ndarray]
    rows: dict[str, list[str]]
    columns: dict[str, list[str]]

    def plot(self, kind: str) -> Figure:
        """One panel a layer and head."""
        return plot_attention(self.maps[kind], self.rows[kind], self.columns[kind], TITLES[kind])


def attention_maps(run: Run, *texts: str) -> AttentionMaps:
    """The weights of all attentions in teacher forcing, for a text, or a source and a target."""
    inputs = run.inputs(*([text] for text in texts))
    found = run.capture_inputs(inputs, ["*/weights"])
    pieces = run.pieces(inputs)
    maps, rows, columns = {}, {}, {}
    for kind, pattern in KINDS.items():
        if names := fnmatch.filter(found, pattern):
            row_side, column_side = (side or 0 for side in run.sides(names[0]))
            maps[kind], columns[kind] = stacked(found, pattern)[0], pieces[column_side]
            rows[kind] = pieces[row_side] if kind == "encoder" else predicted_names(run, inputs)
            if kind == "decoder":
                (read,) = (name for name in run.points if name in ("embeddings", "target_embeddings"))
                columns[kind] = run.read_pieces(read, inputs)
    return AttentionMaps(maps, rows, columns)


def predicted_names(run: Run, inputs: Inputs) -> list[str]:
    """Names of the tokens that the positions of the first row are to predict, "" where there is none."""
    return [run.token_names([token])[0] if token else "" for token in run.predicted(inputs)[0].tolist()]


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


def save_attention_figures(run: Run, *texts: str, folder: Path) -> list[Path]:
    """Writes a figure of each kind of attention, encoder.png, decoder.png and cross.png; returns their paths."""
    found = attention_maps(run, *texts)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"{kind}.png" for kind in found.maps}
    for kind, path in paths.items():
        found.plot(kind).savefig(path, dpi=110)
    return list(paths.values())
