"""Captions to PNG files and a grid of them: what the generate command does with images, without its flags."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from matplotlib.figure import Figure

from transformer_jax.analysis.text_to_image import TextToImageRun
from transformer_jax.errors import UserError
from transformer_jax.run_directory import write_text

GRID, LIST = "grid.png", "images.jsonl"


def write_images(run: TextToImageRun, captions: Sequence[str], folder: Path, **settings: Any) -> list[Path]:
    """Writes an image a file, ``grid.png`` with all of them, and ``images.jsonl``, which says what is what.

    Args: settings: as for `TextToImageRun.generator`.
    Returns: the files, the grid first.
    Raises: UserError when there is no caption, or the folder cannot be written.
    """
    if not captions:
        raise UserError("there is no caption: give --text, or a file with one a line.")
    images, scores = run.generate_scored(captions, **settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Choose another --output.") from error
    rows, files = [], [folder / GRID]
    for number, caption in enumerate(captions):
        for rank in range(images.shape[1]):
            file = folder / f"{number:03d}-{_slug(caption)}-{rank}.png"
            write_png(file, images[number, rank])
            rows.append({"file": file.name, "caption": caption, "rank": rank, "score": round(scores[number, rank], 4)})
            files.append(file)
    write_text(folder / LIST, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    grid_figure(images, captions).savefig(folder / GRID, dpi=110)
    return files


def write_png(file: Path, image: np.ndarray) -> None:
    """An image uint8[P, P, 1 or 3] at its own size."""
    matplotlib.image.imsave(file, np.broadcast_to(image, (*image.shape[:2], 3)))


def grid_figure(images: np.ndarray, captions: Sequence[str], columns: int = 4) -> Figure:
    """A figure of images uint8[n, k, P, P, C]: the k of each caption beside each other, under it."""
    n, k = images.shape[:2]
    columns = min(n, max(1, columns // k))
    lines = -(-n // columns)
    figure = Figure(figsize=(1.75 * k * columns, 2.1 * lines), layout="constrained")
    axes = figure.subplots(lines, columns * k, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, caption in enumerate(captions):
        for j in range(k):
            axis = axes[i // columns, i % columns * k + j]
            axis.imshow(np.broadcast_to(images[i, j], (*images.shape[2:4], 3)), interpolation="nearest")
        axes[i // columns, i % columns * k].set_title(_wrapped(caption, 26 * k), fontsize=7, loc="left")
    return figure


def _wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]


def interact(run: TextToImageRun, folder: Path, **settings: Any) -> None:
    """Draws what is typed, until the end of input (Ctrl-D); each caption into a folder of its own."""
    while True:
        try:
            caption = input("> ")
        except EOFError:
            print()
            return
        try:
            print(write_images(run, [caption], folder / _slug(caption), **settings)[0])
        except UserError as error:
            print(error, file=sys.stderr)
