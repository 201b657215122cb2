"""What is to be seen in an image of `captioned_shapes`, read from its pixels, and how much of a caption it shows.

Connected patches that differ from the background are shapes; the colour is that of their inside, shape and size are
those of the drawn shape that covers the patch best.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from scipy import ndimage

from transformer_jax.data.captioned_shapes import (
    BACKGROUND,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Group,
    Scene,
    coverage,
    parse_caption,
)
from transformer_jax.errors import UserError

THRESHOLD = 60.0  # of the distance to the background, over the three channels
LEAST_AREA = 5  # pixels; less is no shape
LEAST_FIT = 0.6  # overlap with the best drawn shape; less is none of them
MOST_OBJECTS = 6
CROP = 17  # pixels: what the largest shape fits into
STEPS = 4  # places in a pixel at which shapes are drawn for comparison


@dataclass(frozen=True)
class Seen:
    """One shape in an image; its centre in pixels. Size and shape are None where it resembles none."""

    x: float
    y: float
    size: str | None
    colour: str
    shape: str | None


@cache
def _templates() -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Drawn shapes float32[STEPS², n, CROP, CROP] by where in the middle pixel their centre of mass lies, and the
    (size, shape) of each of the n.
    """
    names, kinds = [], []
    for shape in SHAPES:
        for size, (low, high) in SIZES.items():
            for radius in np.linspace(low - 0.2, high + 0.2, 5):
                kinds.append((shape, float(radius)))
                names.append((size, shape))
    middle = np.array([CROP / 2, CROP / 2])
    bank = np.zeros((STEPS * STEPS, len(kinds), CROP, CROP), np.float32)
    for n, (shape, radius) in enumerate(kinds):
        drawn = coverage(shape, middle, radius, CROP)
        shift = middle - _centre_of_mass(drawn)  # of a triangle it is not the middle
        for i, j in product(range(STEPS), repeat=2):
            within = (np.array([j, i]) + 0.5) / STEPS - 0.5
            bank[i * STEPS + j, n] = coverage(shape, middle + shift + within, radius, CROP)
    return bank, names


def _centre_of_mass(weights: np.ndarray) -> np.ndarray:
    """(x, y), where pixel 0 reaches from 0 to 1."""
    at = np.arange(len(weights)) + 0.5
    return np.array([weights.sum(axis=0) @ at, weights.sum(axis=1) @ at]) / weights.sum()


def read_shapes(image: np.ndarray) -> list[Seen]:
    """The shapes of an image uint8[32, 32, 3], the larger ones first, at most `MOST_OBJECTS`."""
    difference = image.astype(np.float32) - np.array(BACKGROUND, np.float32)
    labels, count = ndimage.label(np.linalg.norm(difference, axis=2) > THRESHOLD)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = [int(i) + 1 for i in np.argsort(-areas, kind="stable")[:MOST_OBJECTS] if areas[i] >= LEAST_AREA]
    return [_read_one(difference, labels == label) for label in order]


def _read_one(difference: np.ndarray, patch: np.ndarray) -> Seen:
    # What is wholly covered has the colour itself, edges only a part of it.
    strength = np.linalg.norm(difference, axis=2) * patch
    inside = difference[strength >= 0.8 * strength.max()].mean(axis=0)
    wanted = {name: np.array(colour, np.float32) - BACKGROUND for name, colour in COLOURS.items()}
    colour = min(wanted, key=lambda name: float(np.linalg.norm(wanted[name] - inside)))
    covered = (difference @ inside / (inside @ inside)).clip(0, 1) * ndimage.binary_dilation(patch)
    centre = _centre_of_mass(covered)
    x, y = np.clip(centre.astype(int), 0, SIDE - 1)
    half = CROP // 2
    crop = np.pad(covered, half)[y : y + CROP, x : x + CROP]
    bank, names = _templates()
    i, j = np.clip(((centre[::-1] - (y, x)) * STEPS).astype(int), 0, STEPS - 1)
    drawn = bank[i * STEPS + j]
    fits = np.minimum(drawn, crop).sum(axis=(1, 2)) / np.maximum(drawn, crop).sum(axis=(1, 2))
    best = int(np.argmax(fits))
    size, shape = names[best] if fits[best] >= LEAST_FIT else (None, None)
    return Seen(float(centre[0]), float(centre[1]), size, colour, shape)


def matches(scene: Scene, seen: Sequence[Seen]) -> dict[str, tuple[int, int]]:
    """For each kind of attribute of a scene (number, size, colour, shape, relation) how many are right, and of how
    many.

    What is seen is dealt out to the scene's groups so that most is right. A group's size, colour or shape is right if
    that of each of its members is; a relation if centres differ most along it, in its direction.
    """
    best: dict[str, tuple[int, int]] = {}
    for dealt in product(range(len(scene.groups)), repeat=len(seen)):
        members = [[s for s, owner in zip(seen, dealt, strict=True) if owner == g] for g in range(len(scene.groups))]
        found = {
            name: (sum(map(right, scene.groups, members)), len(scene.groups))
            for name, right in (("number", _right_number), *((name, _right(name)) for name in _COMMON))
        }
        if scene.relation is not None:
            found["relation"] = int(all(members) and _relation(*members) == scene.relation), 1
        if not best or _total(found) > _total(best):
            best = found
    return best


_COMMON = ("size", "colour", "shape")


def _total(found: dict[str, tuple[int, int]]) -> int:
    return sum(right for right, _ in found.values())


def _right_number(group: Group, members: Sequence[Seen]) -> bool:
    return len(members) == group.number


def _right(name: str) -> Callable[[Group, Sequence[Seen]], bool]:
    return lambda group, members: bool(members) and all(getattr(m, name) == getattr(group, name) for m in members)


def _relation(first: Sequence[Seen], second: Sequence[Seen]) -> str:
    """How the centre of the first lies to that of the second."""
    x, y = (np.mean([getattr(s, a) for s in first]) - np.mean([getattr(s, a) for s in second]) for a in "xy")
    return max(RELATIONS, key=lambda name: float(np.dot(RELATIONS[name], (x, y))))


def shape_scores(images: Iterable[np.ndarray], captions: Sequence[str]) -> dict[str, float]:
    """Shares of what captions ask for that images show: "attributes" of all kinds together, each kind by its name, and
    "scenes" in which everything is right.

    Raises: UserError for a caption that is none of the dataset's.
    """
    totals: dict[str, np.ndarray] = {}
    for image, caption in zip(images, captions, strict=True):
        scene = parse_caption(caption)
        if scene is None:
            raise UserError(f"{caption!r} is no caption of captioned_shapes, so what it asks for cannot be read.")
        found = matches(scene, read_shapes(image))
        right = np.sum(list(found.values()), axis=0)
        for name, counts in (found | {"attributes": right, "scenes": (right[0] == right[1], 1)}).items():
            totals[name] = totals.get(name, np.zeros(2)) + counts
    return {name: float(right / count) for name, (right, count) in totals.items()}
