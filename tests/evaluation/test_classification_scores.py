"""Scores of predicted labels against values worked out by hand."""

import numpy as np
import pytest

from transformer_jax.evaluation.classification import accuracy, entities, entity_f1, macro_f1


def test_accuracy_and_macro_f1() -> None:
    labels, predicted = np.asarray([0, 0, 0, 1, 1, 2]), np.asarray([0, 0, 1, 1, 2, 2])
    assert accuracy(predicted, labels) == pytest.approx(4 / 6)
    # Label 0: 2 of (2 + 3); 1: 1 of (2 + 2); 2: 1 of (2 + 1), each twice over the sum; 3 is nowhere.
    assert macro_f1(predicted, labels, 4) == pytest.approx(np.mean([4 / 5, 2 / 4, 2 / 3]))
    assert macro_f1(labels, labels, 4) == 1


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("I-PER I-PER O I-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),  # IOB1
        ("B-PER B-PER I-LOC", {("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)}),
        ("S-PER S-PER B-LOC E-LOC I-LOC", {("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 3), ("LOC", 4, 4)}),
        ("O I-PER B-PER I-PER", {("PER", 1, 1), ("PER", 2, 3)}),
        ("B-a-b I-a-b", {("a-b", 0, 1)}),
        ("O O", set()),
    ],
)
def test_entities_of_every_scheme(tags: str, wanted: set) -> None:
    assert entities(tags.split()) == wanted


def test_entity_f1_wants_type_and_both_ends() -> None:
    tags = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-LOC"]]
    assert entity_f1(predicted, tags) == pytest.approx(2 * 1 / (3 + 3))
    assert entity_f1(tags, tags) == 1
    assert entity_f1([["O"]], [["O"]]) == 0
