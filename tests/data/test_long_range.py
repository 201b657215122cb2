"""The controlled tasks: every answer is right by a rule written here anew, and every distance is what it is called."""

import pytest

from transformer_jax.data.long_range import NOUNS, TASKS, generate, open_long_range
from transformer_jax.errors import UserError

PLURALS = {f"{noun}s" for noun in NOUNS}


def copy(words):
    return words, len(words)


def reverse(words):
    return words[::-1], len(words)


def recall(words):
    *pairs, question, key = words
    assert question == "?"
    keys = pairs[::2]
    assert len(set(keys)) == len(keys)
    return [pairs[2 * keys.index(key) + 1]], len(keys) - keys.index(key)


def agreement(words):
    rest = words[words.index(",") + 1 :] if "," in words else words
    nouns = [word in PLURALS for word in rest[:-1] if word in PLURALS or word in NOUNS]
    plural = nouns[0]
    return [words[-1] if plural else f"{words[-1]}s"], nouns[1:].count(not plural)


def dependency(words):
    first, second = (i for i, word in enumerate(words) if word.isdigit())
    return [str((int(words[first]) + int(words[second])) % 10)], second - first


RULES = {"copy": copy, "reverse": reverse, "recall": recall, "agreement": agreement, "dependency": dependency}


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_right_and_distances_what_they_are_called(task):
    splits = generate(task, {"train": 300, "validation": 50}, tested=5)
    assert generate(task, {"train": 300, "validation": 50}, tested=5) == splits
    for split, examples in splits.items():
        for example in examples:
            answer, distance = RULES[task](example["source"].split())
            assert example["target"].split() == answer
            assert example["distance"] == distance
            assert split == "test" or distance in TASKS[task].trained
    assert [example["distance"] for example in splits["test"][::5]] == list(TASKS[task].tested)
    sources = [example["source"] for examples in splits.values() for example in examples]
    assert len(set(sources)) == len(sources)
    assert {example["distance"] for example in splits["train"]} == set(TASKS[task].trained)
    assert max(TASKS[task].tested) > max(TASKS[task].trained)


def test_single_answers_cannot_be_guessed_from_the_distance():
    """The commonest answer to agreement is hardly commoner than the others of its verb."""
    answers = [example["target"].endswith("s") for example in generate("agreement", {"train": 2000}, tested=1)["train"]]
    assert 0.45 < sum(answers) / len(answers) < 0.55


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match=r"'long_range/revers': .*one of copy, reverse, recall"):
        open_long_range("long_range/revers")
