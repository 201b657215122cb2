"""Minimum-Bayes-risk decoding: of several candidates, the one most like what the model might say."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.decoding.batching import Decoder, Hypothesis
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.interface import Decodable, Params

Utility = Literal["chrf", "bleu"]


def expected_utilities(texts: Sequence[str], weights: np.ndarray, utility: Utility) -> np.ndarray:
    """u(h) = Σ_r w_r U(h, r) for every text h, over all texts r, itself among them (Eikema and Aziz 2020).

    Args:
      weights: float[n], how probable each is; they sum to one. Equal texts are one, with the sum of theirs.
      utility: U is sacreBLEU's score of one sentence h against r, 0 to 1: chrF2, or BLEU of the
        orders that h is long enough for.
    Returns: float64[n].
    """
    metric = CHRF() if utility == "chrf" else BLEU(effective_order=True)
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    index = [places[text] for text in texts]
    table = np.array([[metric.sentence_score(one, [other]).score / 100 for other in places] for one in places])
    return (table @ np.bincount(index, weights))[index]


def rerank(found: Sequence[Hypothesis], texts: Sequence[str], config: DecodingConfig) -> list[Hypothesis]:
    """Candidates of one sentence, each text once, by expected utility, which becomes their score; the n_best of them.

    Samples are as probable as they are frequent (Eikema and Aziz 2020); the finds of a search, as the model says,
    relative to one another (Kumar and Byrne 2004). Of equals the first comes first.
    """
    if not found:
        return []
    assert config.rerank != "none"
    log_probs = np.array([h.log_prob for h in found], np.float64)
    weights = np.ones(len(found)) if config.method == "sample" else np.exp(log_probs - log_probs.max())
    scores = expected_utilities(texts, weights / weights.sum(), config.rerank)
    order = sorted({text: i for i, text in reversed(list(enumerate(texts)))}.values(), key=lambda i: (-scores[i], i))
    return [dataclasses.replace(found[i], score=float(scores[i])) for i in order[: config.n_best]]


@dataclass(frozen=True)
class Pool:
    """Models that each find candidates, all of which are reranked together."""

    models: tuple[Decodable, ...]


class PooledDecoder:
    """As `Decoder`, with parameters for each model of a pool: the hypotheses of all, one model's after another's.

    Samples of one model owe nothing to those of another: the seeds differ.
    """

    def __init__(self, pool: Pool, config: DecodingConfig, mesh: Mesh | None = None) -> None:
        self.config = config
        self.decoders = [
            Decoder(model, dataclasses.replace(config, seed=config.seed + i), mesh)
            for i, model in enumerate(pool.models)
        ]

    def place(self, params: Params) -> Params:
        return tuple(decoder.place(own) for decoder, own in zip(self.decoders, params, strict=True))

    def decode(self, params: Params, sources: Sequence[Sequence[int]], *rest: Any) -> list[list[Hypothesis]]:
        found = [decoder.decode(own, sources, *rest) for decoder, own in zip(self.decoders, params, strict=True)]
        return [[one for part in parts for one in part] for parts in zip(*found, strict=True)]
