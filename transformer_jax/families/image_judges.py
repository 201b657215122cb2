"""What generated images show, judged without people: by a reader of shapes, or by a classifier of digits."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from transformer_jax.data.images import ImageDatasetConfig
from transformer_jax.data.mnist import digit_of
from transformer_jax.errors import UserError
from transformer_jax.evaluation.shape_reader import shape_scores
from transformer_jax.families.image_classification import classify, open_classifier

Judge = Callable[[Iterable[np.ndarray], Sequence[str]], dict[str, float]]
"""``judge(images, captions)`` gives shares of what the captions ask for that the images show."""


def make_judge(dataset: ImageDatasetConfig, classifier: str) -> Judge | None:
    """The judge of a dataset's images; None of digits without a classifier.

    Args: classifier: a run of the family "image_classification"; "" for none.
    """
    if dataset.name == "captioned_shapes":
        return shape_scores
    if not classifier:
        return None
    model, params = open_classifier(classifier)

    def digit_scores(images: Iterable[np.ndarray], captions: Sequence[str]) -> dict[str, float]:
        """Share of the images that the classifier takes for the digit of their caption."""
        wanted = [digit_of(caption) for caption in captions]
        for caption, digit in zip(captions, wanted, strict=True):
            if digit is None:
                raise UserError(f"{caption!r} names no digit, so what it asks for cannot be judged.")
        found = classify(model, params, np.stack(list(images))).argmax(axis=1)
        return {"accuracy": float(np.mean(found == np.array(wanted)))}

    return digit_scores
