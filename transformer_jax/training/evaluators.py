"""What is measured on the validation split while a model trains. Evaluators give (name, value) pairs."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from transformer_jax.data.bucketing import Shape
from transformer_jax.data.datasets import Dataset
from transformer_jax.data.pipeline import validation_batches
from transformer_jax.data.tokenizers import TokenizerPair
from transformer_jax.decoding.translator import Translator
from transformer_jax.evaluation.bleu import translation_scores
from transformer_jax.experiment import RunConfig, make_model
from transformer_jax.models.transformer import IncrementalDecoder
from transformer_jax.sharding import place_batch
from transformer_jax.training.step import make_evaluation_step
from transformer_jax.training.tasks import Task, summarise


def split_loss(evaluate: Any, params: Any, batches: Sequence[Any], mesh: Mesh) -> dict[str, float]:
    """Loss and perplexity over all target tokens of a split, from sums over its batches."""
    total: dict[str, float] = {}
    for sums in [evaluate(params, place_batch(mesh, batch.batch)) for batch in batches]:
        for name, value in jax.device_get(sums).items():
            total[name] = total.get(name, 0.0) + float(value)
    return summarise(total)


class TranslationEvaluator:
    """Validation loss, and BLEU of greedy or beam translations; compiled once, whatever the step."""

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        mesh: Mesh,
        dataset: Dataset,
        tokenizers: TokenizerPair,
        shapes: Sequence[Shape],
    ) -> None:
        pairs = dataset.splits["validation"]
        sources, targets = pairs.texts()
        # Two of the training shapes are enough here: padding costs less than compiling.
        chosen = [shapes[len(shapes) // 2], shapes[-1]] if len(shapes) > 1 else list(shapes)
        self._batches = validation_batches(pairs, tokenizers, chosen, config.batching)
        self._mesh, self._evaluate = mesh, make_evaluation_step(task)
        count = config.evaluation.max_sentences or len(sources)
        self._sources, self._targets = sources[:count], targets[:count]
        self._translator: Translator | None = None
        if config.evaluation.decode != "none":
            method = config.evaluation.decode
            decoding = dataclasses.replace(config.decoding, method=method, n_best=1)
            model = IncrementalDecoder(make_model(config, tokenizers))
            self._translator = Translator(model, None, tokenizers, decoding, mesh)

    def __call__(self, params: Any) -> Iterator[tuple[str, float]]:
        """Yields loss, nll, perplexity, and with translations bleu, chrf and exact_match of validation."""
        begin = time.monotonic()
        yield from split_loss(self._evaluate, params, self._batches, self._mesh).items()
        if self._translator is not None:
            self._translator.params = params
            scores = translation_scores(self._translator.translate(self._sources), self._targets)
            for name in ("bleu", "chrf", "exact_match"):
                yield name, float(scores[name])
        yield "evaluation_seconds", time.monotonic() - begin
