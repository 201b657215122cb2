"""How to decode: every choice a person can make, checked."""

from dataclasses import dataclass
from typing import Literal

from transformer_jax.decoding.sampling import SamplingConfig
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class DecodingConfig:
    """Settings of a `Decoder` and a `Translator`. Lengths are in tokens and count EOS.

    Attributes:
      method: "beam"; "greedy" (the likeliest token at each step: a beam of one without penalties); "sample".
      beam_size: hypotheses kept at each step, for "beam".
      n_best: translations given for each line (for "sample", how many are drawn, unless reranked); for "beam" at
        most beam_size.
      length_penalty: alpha of Wu et al. 2016, eq. 14; 0 ranks by log-probability, larger values favour
        length.
      coverage_penalty: beta of the same equation; 0 is off.
      patience: a sentence's beam search ends with patience · beam_size finished hypotheses (Kasai et al. 2022); 0: when
        no unfinished one can win any more, which is exact and slower.
      min_length: fewest tokens of an output.
      max_length_factor, max_length_offset: an output has at most factor · (source tokens) + offset tokens,
      max_target_length: and never more than this.
      max_source_length: a longer line is split or refused, as ``long_lines`` says.
      long_lines: "split" at sentence ends, else at clauses, words, characters; or "refuse", naming the line.
      batch_size: sentences decoded at a time, over all devices.
      seed: of samples, together with the sentence's number and nothing else: not its neighbours in the batch.
      sampling: for method "sample".
      rerank: minimum-Bayes-risk decoding: the n_best translations are those with the highest expected utility, "chrf"
        or "bleu", among the candidates that the method finds; "none" gives what the method ranks highest.
      candidates: for ``rerank``, how many the method finds; for "beam" at most beam_size.
    """

    method: Literal["beam", "greedy", "sample"]
    beam_size: int
    n_best: int
    length_penalty: float
    coverage_penalty: float
    patience: float
    min_length: int
    max_length_factor: float
    max_length_offset: int
    max_target_length: int
    max_source_length: int
    long_lines: Literal["split", "refuse"]
    batch_size: int
    seed: int
    sampling: SamplingConfig
    rerank: Literal["none", "chrf", "bleu"] = "none"
    candidates: int = 1

    def __post_init__(self) -> None:
        def need(condition: bool, name: str, allowed: str) -> None:
            if not condition:
                raise UserError(f"decoding.{name} is {getattr(self, name)!r}; it must be {allowed}.")

        need(self.method in ("beam", "greedy", "sample"), "method", "'beam', 'greedy' or 'sample'")
        need(self.long_lines in ("split", "refuse"), "long_lines", "'split' or 'refuse'")
        for name in ("beam_size", "n_best", "batch_size", "max_target_length", "min_length"):
            need(getattr(self, name) >= 1, name, "at least 1")
        need(self.max_source_length >= 2, "max_source_length", "at least 2: one token and its end")
        # Negative values would break the bound by which the search stops.
        need(self.length_penalty >= 0, "length_penalty", "at least 0")
        need(self.coverage_penalty >= 0, "coverage_penalty", "at least 0")
        need(self.patience >= 0, "patience", "at least 0")
        need(self.max_length_factor >= 0, "max_length_factor", "at least 0")
        need(self.min_length <= self.max_target_length, "min_length", f"at most {self.max_target_length}")
        need(self.rerank in ("none", "chrf", "bleu"), "rerank", "'none', 'chrf' or 'bleu'")
        if self.rerank == "none":
            need(self.candidates == 1, "candidates", "1 without decoding.rerank; set that to 'chrf' or 'bleu'")
        else:
            need(self.candidates >= max(2, self.n_best), "candidates", f"{max(2, self.n_best)} or more to choose from")
        most = "n_best" if self.rerank == "none" else "candidates"
        if self.method == "beam":
            need(self.num_hypotheses <= self.beam_size, most, f"at most beam_size, {self.beam_size}")
        if self.method == "greedy":
            need(self.num_hypotheses == 1, most, "1 when method is 'greedy'; use 'beam' or 'sample' for more")

    @property
    def num_hypotheses(self) -> int:
        """How many the search is to find for each sentence."""
        return self.n_best if self.rerank == "none" else self.candidates

    def output_limit(self, source_length: int) -> int:
        """Most tokens of the output for a source of so many tokens, both with EOS."""
        limit = int(self.max_length_factor * source_length) + self.max_length_offset
        return max(1, min(self.max_target_length, max(limit, self.min_length)))
