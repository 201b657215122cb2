"""The reader of shapes: right about what was drawn, wrong where an image is, and fair about what counts."""

import numpy as np
import pytest

from transformer_jax.data.captioned_shapes import COLOURS, SHAPES, Group, Scene, generate, parse_caption, render
from transformer_jax.errors import UserError
from transformer_jax.evaluation.shape_reader import matches, read_shapes, shape_scores


def draw(caption, centres, radii):
    return render(parse_caption(caption), np.array(centres, float), np.array(radii, float))


@pytest.fixture(scope="module")
def examples():
    return [*generate("test", 1200), *generate("unseen", 400)]


def test_true_renders_are_read_right(examples):
    """At least 99.9 % of what the captions of 1,600 images say; a bound that holds for scenes too."""
    scores = shape_scores([e["image"] for e in examples], [e["caption"] for e in examples])
    assert set(scores) == {"number", "size", "colour", "shape", "relation", "attributes", "scenes"}
    assert min(scores.values()) >= 0.999


def test_blurred_and_noisy_renders_too(examples):
    """What a decoder makes is not what was drawn: half of each edge is smeared, and there is noise."""
    rng = np.random.default_rng(0)
    images = []
    for example in examples[:300]:
        image = example["image"].astype(float)
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        smeared = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
        noisy = 0.7 * image + 0.3 * smeared + rng.normal(0, 8, image.shape)
        images.append(noisy.clip(0, 255).astype(np.uint8))
    assert shape_scores(images, [e["caption"] for e in examples[:300]])["attributes"] >= 0.99


def test_each_attribute_is_told_from_the_others():
    """One thing about the image is changed at a time, and that alone is wrong."""
    image = draw("a small red circle left of a large blue square", [[6, 16], [22, 15]], [3, 5.5])
    for caption, wrong in (
        ("a small red circle left of a large blue square", {}),
        ("a small red circle right of a large blue square", {"relation": 1}),
        ("a small red circle above a large blue square", {"relation": 1}),
        ("a large red circle left of a large blue square", {"size": 1}),
        ("a small green circle left of a large blue square", {"colour": 1}),
        ("a small red cross left of a large white square", {"shape": 1, "colour": 1}),
        ("two small red circles left of a large blue square", {"number": 1}),
    ):
        found = matches(parse_caption(caption), read_shapes(image))
        missed = {name: total - right for name, (right, total) in found.items() if right < total}
        assert missed == wrong, caption


def test_what_is_missing_or_too_much_is_wrong():
    scene = Scene((Group(1, "small", "red", "circle"),), None)
    empty = np.full((32, 32, 3), 20, np.uint8)
    assert matches(scene, read_shapes(empty)) == {n: (0, 1) for n in ("number", "size", "colour", "shape")}
    two = draw("two small red circles", [[6, 6], [20, 20]], [3, 3])
    assert matches(scene, read_shapes(two))["number"] == (0, 1)
    # A stray blob is no circle, whatever else is right.
    blob = draw("a small red circle", [[6, 6]], [3])
    blob[20:23, 10:30] = COLOURS["red"]
    found = matches(scene, read_shapes(blob))
    assert (found["number"], found["shape"]) == ((0, 1), (0, 1))
    assert next(seen for seen in read_shapes(blob) if seen.y > 15).shape is None


def test_colours_and_shapes_are_where_they_are_seen():
    for colour in COLOURS:
        for shape in SHAPES:
            (seen,) = read_shapes(draw(f"a large {colour} {shape}", [[10.25, 20.5]], [5.2]))
            assert (seen.colour, seen.shape, seen.size) == (colour, shape, "large")
            assert abs(seen.x - 10.25) < 0.3


def test_other_captions_are_refused():
    with pytest.raises(UserError, match="'a dog' is no caption of captioned_shapes"):
        shape_scores([np.zeros((32, 32, 3), np.uint8)], ["a dog"])
