"""Image tokens from captions: drawn or searched for, guided, and the best of several candidates chosen."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from transformer_jax.decoding.batching import Decoder, Hypothesis
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.guidance import Guided
from transformer_jax.decoding.interface import BOS_ID, Decodable, Params
from transformer_jax.decoding.sampling import SamplingConfig
from transformer_jax.errors import UserError
from transformer_jax.models.text_to_image import IncrementalTextToImage, TextToImage
from transformer_jax.sharding import map_rows


@dataclass(frozen=True)
class ImageDecodingConfig:
    """How images are made from captions.

    Attributes:
      method, beam_size, batch_size, seed, sampling: as in `DecodingConfig`.
      n_best: images given for each caption.
      candidates: images made for each caption, of which the n_best are chosen.
      guidance: scale of classifier-free guidance; 1 is none.
      rerank: what candidates are ordered by: "none": as they come; "likelihood": log p(image | caption); "caption":
        log p(image | caption) - log p(image), by Bayes' rule the log-probability of the caption but for a constant.
    """

    method: Literal["beam", "greedy", "sample"]
    beam_size: int
    n_best: int
    candidates: int
    guidance: float
    rerank: Literal["none", "likelihood", "caption"]
    batch_size: int
    seed: int
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        if self.rerank not in ("none", "likelihood", "caption"):
            raise UserError(f"decoding.rerank is {self.rerank!r}; it must be 'none', 'likelihood' or 'caption'.")
        if self.guidance < 0:
            raise UserError(f"decoding.guidance is {self.guidance}; it must be at least 0, 1 is none.")
        if not 1 <= self.n_best <= self.candidates:
            raise UserError(
                f"decoding.n_best is {self.n_best}; it must be at least 1 and at most decoding.candidates, "
                f"{self.candidates}."
            )
        self.search(1, 1)

    def search(self, text_length: int, image_length: int) -> DecodingConfig:
        """The settings of a search for images of so many tokens."""
        shared = {name: getattr(self, name) for name in ("method", "beam_size", "batch_size", "seed", "sampling")}
        return DecodingConfig(
            **shared,
            n_best=self.candidates,
            length_penalty=0.0,
            coverage_penalty=0.0,
            patience=1.0,
            min_length=image_length + 1,
            max_length_factor=0.0,
            max_length_offset=image_length + 1,
            max_target_length=image_length + 1,
            max_source_length=text_length + 2,
            long_lines="refuse",
        )


class ImageGenerator:
    """Captions in, image tokens out, in the same order. Compiled functions outlive it."""

    def __init__(self, model: TextToImage, config: ImageDecodingConfig, mesh: Mesh | None = None) -> None:
        self._model, self.config, c = model, config, model.config
        decodable: Decodable = IncrementalTextToImage(model)
        if config.guidance != 1:
            decodable = Guided(decodable, config.guidance, (BOS_ID, *map(int, c.no_caption)))
        self._decoder = Decoder(decodable, config.search(c.text_length, c.image_length), mesh)

    def generate(
        self, params: Params, captions: np.ndarray, rows: Sequence[int] | None = None
    ) -> list[list[Hypothesis]]:
        """The n best images of each caption int32[n, S], best first, as N tokens each. Their score is what they were
        ordered by, where that is nothing the log-probability as they were drawn.

        Args: rows: numbers that samples derive their randomness from; 0, 1, 2 … when None.
        """
        sources = np.pad(captions, ((0, 0), (1, 0)), constant_values=BOS_ID)
        found = self._decoder.decode(params, sources.tolist(), rows=rows)
        if self.config.rerank != "none":
            found = self._ordered(params, captions, found)
        return [best[: self.config.n_best] for best in found]

    def _ordered(self, params: Params, captions: np.ndarray, found: list[list[Hypothesis]]) -> list[list[Hypothesis]]:
        text = np.repeat(captions, [len(best) for best in found], axis=0)
        images = np.array([hypothesis.tokens for best in found for hypothesis in best], np.int32)
        scores = log_probs(self._model, params, text, images)
        if self.config.rerank == "caption":
            nothing = np.broadcast_to(self._model.config.no_caption, text.shape)
            scores = scores - log_probs(self._model, params, nothing, images)
        each = iter(scores.tolist())
        scored = [[dataclasses.replace(hypothesis, score=next(each)) for hypothesis in best] for best in found]
        return [sorted(best, key=lambda hypothesis: -hypothesis.score) for best in scored]


def log_probs(model: TextToImage, params: Params, text: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Natural log-probability float32[n] of images int32[n, N], as tokens, after their text int32[n, S]."""
    return map_rows(_log_probs(model), params, np.concatenate([text, images], axis=1))


@lru_cache(maxsize=8)
def _log_probs(model: TextToImage) -> Any:
    return jax.jit(lambda params, rows: model.apply({"params": params}, rows, method="log_probs"))
