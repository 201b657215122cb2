"""How good predicted labels are: accuracy, F1 by label, and F1 of entities as CoNLL counts them."""

from collections.abc import Sequence

import numpy as np


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The share of int[N] that are the same."""
    return float(np.mean(predicted == labels))


def macro_f1(predicted: np.ndarray, labels: np.ndarray, num_labels: int) -> float:
    """The mean over the labels of 2·TP / (2·TP + FP + FN); a label that is neither there nor predicted is left out."""
    scores = []
    for label in range(num_labels):
        right = np.sum((predicted == label) & (labels == label))
        wrong = np.sum((predicted == label) != (labels == label))
        if right or wrong:
            scores.append(2 * right / (2 * right + wrong))
    return float(np.mean(scores))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The (type, first, last) that tags such as B-PER, I-PER, O mark, in any of the schemes IOB1, IOB2, IOBES.

    An I- that continues nothing begins an entity, as in the script of CoNLL 2000.
    """
    found, first, kind = set(), 0, ""
    closed = True
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-") if "-" in tag else ("O" if tag == "O" else "I", "", tag)
        inside = prefix != "O"
        if kind and (closed or not inside or prefix in ("B", "S") or name != kind):
            found.add((kind, first, i - 1))
            kind = ""
        if inside and not kind:
            kind, first = name, i
        closed = prefix in ("E", "S")
    return found


def entity_f1(predicted: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> float:
    """F1 over all entities: one is right if its type and both its ends are. 0 where there is none."""
    right = total = 0
    for p, t in zip(predicted, tags, strict=True):
        ours, theirs = entities(p), entities(t)
        right, total = right + len(ours & theirs), total + len(ours) + len(theirs)
    return 2 * right / total if total else 0.0
