"""`captioned_shapes`: captions and scenes are one to one, images show them, held-out pairs stay out of training."""

import itertools

import numpy as np
import pytest

from transformer_jax.data.captioned_shapes import (
    BACKGROUND,
    COLOURS,
    GAP,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Group,
    Scene,
    coverage,
    draw_scene,
    generate,
    parse_caption,
    place,
    render,
)

AREAS = {"circle": np.pi, "square": 4.0, "triangle": 2.0, "cross": 4 * (2 * 0.36 - 0.36**2)}


def test_every_caption_says_what_its_scene_is():
    groups = [Group(*parts) for parts in itertools.product((1, 2, 3), SIZES, COLOURS, SHAPES)]
    scenes = [Scene((group,), None) for group in groups]
    scenes += [Scene(pair, relation) for pair in itertools.pairwise(groups) for relation in RELATIONS]
    captions = [str(scene) for scene in scenes]
    assert len(set(captions)) == len(scenes)
    assert [parse_caption(caption) for caption in captions] == scenes
    scene = Scene((Group(1, "small", "red", "cross"), Group(2, "large", "blue", "circle")), "left of")
    assert str(scene) == "a small red cross left of two large blue circles"


@pytest.mark.parametrize(
    "caption",
    ["", "a red circle", "a small red circles", "two small red circle", "a small red circle left of", "a dog",
     "a small pink circle", "a small red circle left of a small red circle above a small red circle"],
)  # fmt: skip
def test_other_captions_are_none_of_its(caption):
    assert parse_caption(caption) is None


def test_splits_are_functions_of_their_names_and_unseen_pairs_are_nowhere_else():
    made = {split: list(generate(split, 60)) for split in ("train", "test", "unseen")}
    again = list(generate("train", 60))
    assert all((a["image"] == b["image"]).all() for a, b in zip(made["train"], again, strict=True))
    assert [e["caption"] for e in made["train"]] != [e["caption"] for e in made["test"]]
    for split, examples in made.items():
        for example in examples:
            pairs = {(group.colour, group.shape) for group in parse_caption(example["caption"]).groups}
            assert bool(pairs & HELD_OUT) == (split == "unseen")
    # Each colour and each shape is learned from others.
    assert {colour for colour, _ in set(itertools.product(COLOURS, SHAPES)) - HELD_OUT} == set(COLOURS)
    assert {shape for _, shape in set(itertools.product(COLOURS, SHAPES)) - HELD_OUT} == set(SHAPES)


def test_shapes_lie_apart_and_as_the_caption_says():
    rng = np.random.default_rng(1)
    for _ in range(60):
        scene, placed = draw_scene(rng), None
        while (placed := place(scene, rng)) is None:
            scene = draw_scene(rng)
        centres, radii = placed
        assert (centres >= radii[:, None]).all()
        assert (centres <= SIDE - radii[:, None]).all()
        for i, j in itertools.combinations(range(len(radii)), 2):
            assert abs(centres[i] - centres[j]).max() >= radii[i] + radii[j] + GAP - 1e-9
        if scene.relation:
            first = scene.groups[0].number
            offset = centres[:first].mean(axis=0) - centres[first:].mean(axis=0)
            direction = np.array(RELATIONS[scene.relation])
            assert offset @ direction > abs(offset @ direction[::-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_smooth_and_areas_right(shape):
    drawn = coverage(shape, np.array([15.3, 16.8]), 5.4)
    assert drawn.sum() == pytest.approx(AREAS[shape] * 5.4**2, rel=0.02)
    assert 8 < ((drawn > 0.02) & (drawn < 0.98)).sum() < 60
    image = render(Scene((Group(1, "large", "blue", shape),), None), np.array([[15.3, 16.8]]), np.array([5.4]))
    assert image.dtype == np.uint8
    assert tuple(image[0, 0]) == BACKGROUND
    assert tuple(image[17, 15]) == COLOURS["blue"]
