"""`captioned_shapes`: an embedded dataset of 32 x 32 images of coloured shapes, drawn from the captions they go with.

A caption composes number, size, colour and shape, and of two groups their relation: "two small red circles left of a
large blue square". It determines the scene but for places and exact sizes. Some pairs of colour and shape (`HELD_OUT`)
never meet in training: the split "unseen" is of scenes that have one.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer_jax.data.storage import Example, PairsBuilder

SIDE, CHANNELS = 32, 3
SPLITS = {"train": 30_000, "validation": 1_000, "test": 2_000, "unseen": 2_000}
BACKGROUND = (20, 20, 20)
COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 185, 65),
    "blue": (50, 95, 235),
    "yellow": (240, 215, 50),
    "purple": (170, 60, 215),
    "white": (240, 240, 240),
}
SHAPES = {  # whether a point is inside, for coordinates from -1 to 1, the second downwards
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 1,
    "triangle": lambda u, v: (abs(u) <= (v + 1) / 2) & (v <= 1),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.36) & (np.maximum(abs(u), abs(v)) <= 1),
}
SIZES = {"small": (2.7, 3.3), "large": (5.0, 5.8)}  # half the width, in pixels
NUMBERS = {"a": 1, "two": 2, "three": 3}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # from the second to the first
HELD_OUT = frozenset({("red", "cross"), ("green", "circle"), ("blue", "triangle"), ("yellow", "square")})
GAP = 2.0  # pixels between two shapes, at least
SAMPLES = 6  # points a pixel along each axis


def image_features(channels: int) -> dict[str, Any]:
    """What an example of a captioned image has; ``label`` is its class, -1 where there are none."""
    packed = tfds.features.Encoding.ZLIB
    return {
        "image": tfds.features.Tensor(shape=(SIDE, SIDE, channels), dtype=np.uint8, encoding=packed),
        "caption": tfds.features.Text(),
        "label": tfds.features.Scalar(dtype=np.int64),
    }


@dataclass(frozen=True)
class Group:
    """Shapes of one kind: "two small red circles"."""

    number: int
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        word = next(word for word, number in NUMBERS.items() if number == self.number)
        plural = "" if self.number == 1 else "es" if self.shape.endswith("s") else "s"
        return f"{word} {self.size} {self.colour} {self.shape}{plural}"

    @property
    def is_held_out(self) -> bool:
        return (self.colour, self.shape) in HELD_OUT


@dataclass(frozen=True)
class Scene:
    """One group, or two and the first one's relation to the second. ``str`` is the caption."""

    groups: tuple[Group, ...]
    relation: str | None

    def __str__(self) -> str:
        return f" {self.relation} ".join(map(str, self.groups))

    @property
    def is_held_out(self) -> bool:
        return any(group.is_held_out for group in self.groups)


def parse_caption(caption: str) -> Scene | None:
    """The scene that a caption describes; None where it is none of this dataset's."""
    for relation in RELATIONS:
        first, found, second = caption.strip().partition(f" {relation} ")
        if found:
            groups = _parse_group(first), _parse_group(second)
            return Scene((groups[0], groups[1]), relation) if groups[0] and groups[1] else None
    group = _parse_group(caption)
    return Scene((group,), None) if group else None


def _parse_group(text: str) -> Group | None:
    words = text.split()
    if len(words) != 4 or words[0] not in NUMBERS or words[1] not in SIZES or words[2] not in COLOURS:
        return None
    made = (Group(NUMBERS[words[0]], words[1], words[2], shape) for shape in SHAPES)
    return next((group for group in made if str(group) == " ".join(words)), None)


class CaptionedShapes(PairsBuilder):
    """TFDS builder of generated scenes. A change of what is generated raises VERSION."""

    VERSION = tfds.core.Version("1.0.0")


def open_captioned_shapes(sizes: Mapping[str, int]) -> CaptionedShapes:
    """The builder, with so many examples a split."""
    splits = {split: partial(generate, split, count) for split, count in sizes.items()}
    variant = "-".join(map(str, sizes.values()))
    return CaptionedShapes(variant=variant, splits=splits, features=image_features(CHANNELS))


def generate(split: str, count: int) -> Iterator[Example]:
    """The examples of one split: a function of its name and their number alone."""
    rng = np.random.default_rng((2021, list(SPLITS).index(split)))
    for _ in range(count):
        scene, placed = None, None
        while scene is None or placed is None:
            scene = draw_scene(rng)
            if scene.is_held_out == (split == "unseen"):
                placed = place(scene, rng)
        yield {"image": render(scene, *placed), "caption": str(scene), "label": -1}


def draw_scene(rng: np.random.Generator) -> Scene:
    """Two of five scenes have one group of up to three shapes, the others two groups of up to three together."""

    kinds: tuple[Collection[str], ...] = (SIZES, COLOURS, SHAPES)

    def group(number: int) -> Group:
        size, colour, shape = (list(names)[int(rng.random() * len(names))] for names in kinds)
        return Group(number, size, colour, shape)

    if rng.random() < 0.4:
        return Scene((group(1 + int(rng.random() * 3)),), None)
    numbers = ((1, 1), (1, 1), (1, 1), (2, 1), (1, 2))[int(rng.random() * 5)]
    first, second = group(numbers[0]), group(numbers[1])
    while (first.colour, first.shape) == (second.colour, second.shape):
        second = group(numbers[1])
    return Scene((first, second), list(RELATIONS)[int(rng.random() * len(RELATIONS))])


def place(scene: Scene, rng: np.random.Generator, tries: int = 400) -> tuple[np.ndarray, np.ndarray] | None:
    """Centres float64[n, 2] (x, y) and half widths float64[n] in pixels; None if ``tries`` random ones all fail.

    Shapes keep a gap. Related groups lie apart along the relation's axis, along which their centres differ most.
    """
    groups = [group for group in scene.groups for _ in range(group.number)]
    low, high = np.array([SIZES[group.size] for group in groups]).T
    radii = low + (high - low) * rng.random((tries, len(groups)))
    centres = radii[..., None] + 0.5 + (SIDE - 1 - 2 * radii)[..., None] * rng.random((tries, len(groups), 2))
    good = np.ones(tries, bool)
    for i in range(len(groups)):
        for j in range(i):
            apart = abs(centres[:, i] - centres[:, j]).max(axis=1)
            good &= apart >= radii[:, i] + radii[:, j] + GAP
    if scene.relation is not None:
        first = scene.groups[0].number
        direction = np.array(RELATIONS[scene.relation])
        offset = centres[:, :first].mean(axis=1) - centres[:, first:].mean(axis=1)
        along = centres @ direction
        good &= (along - radii)[:, :first].min(axis=1) >= (along + radii)[:, first:].max(axis=1)
        good &= offset @ direction >= 1.3 * abs(offset @ direction[::-1])
    if not good.any():
        return None
    chosen = int(np.argmax(good))
    return centres[chosen], radii[chosen]


def coverage(shape: str, centre: np.ndarray, radius: float, side: int = SIDE) -> np.ndarray:
    """float32[side, side]: how much of each pixel a shape covers, from ``SAMPLES``² points in each."""
    points = (np.arange(side * SAMPLES) + 0.5) / SAMPLES
    u, v = (points - centre[0]) / radius, (points - centre[1]) / radius
    inside = np.zeros((len(points), len(points)), np.float32)
    x, y = np.flatnonzero(abs(u) <= 1), np.flatnonzero(abs(v) <= 1)
    inside[np.ix_(y, x)] = SHAPES[shape](u[x][None, :], v[y][:, None])
    return inside.reshape(side, SAMPLES, side, SAMPLES).mean(axis=(1, 3), dtype=np.float32)


def render(scene: Scene, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """The image uint8[32, 32, 3] of a scene whose shapes lie there."""
    image = np.tile(np.array(BACKGROUND, np.float32), (SIDE, SIDE, 1))
    groups = [group for group in scene.groups for _ in range(group.number)]
    for group, centre, radius in zip(groups, centres, radii, strict=True):
        covered = coverage(group.shape, centre, float(radius))[..., None]
        image += covered * (np.array(COLOURS[group.colour], np.float32) - image)
    return np.rint(image).astype(np.uint8)
