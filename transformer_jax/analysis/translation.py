"""A translation run, opened for use: its model, tokenizers, translations and scores."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.analysis.capture import Inputs, unpadded
from transformer_jax.analysis.run import Run, decoding_mesh, listed
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.tokenizers import BOS, EOS, Tokenizer, TokenizerPair, load_tokenizers
from transformer_jax.decoding.batching import Hypothesis, pad_tokens
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.scoring import Scorer
from transformer_jax.decoding.tracing import Trace, trace
from transformer_jax.decoding.translator import Translator
from transformer_jax.errors import UserError
from transformer_jax.families.translation import TranslationConfig, make_model
from transformer_jax.models.seq2seq import Seq2Seq

SEARCH_ALONE = {"rerank": "none", "candidates": 1}


class TranslationRun(Run):
    """What `load_run` gives for the family "translation"."""

    config: TranslationConfig

    @cached_property
    def tokenizers(self) -> TokenizerPair:
        return load_tokenizers(self.directory.tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The one tokenizer of a joint vocabulary. Raises: UserError for a run that has two."""
        if not self.config.tokenizer.joint:
            raise UserError(
                f"{self.directory.path} has two vocabularies: use run.tokenizers.source or run.tokenizers.target."
            )
        return self.tokenizers.source

    @cached_property
    def model(self) -> Seq2Seq:
        """The unrolled model, whichever way it was trained; `params` fits it."""
        return make_model(self.config, self.tokenizers).plain()

    def decoding(self, **overrides: Any) -> DecodingConfig:
        """The run's decoding settings, changed by keyword: ``beam_size=1``, ``n_best=5`` …"""
        fields = {f.name for f in dataclasses.fields(self.config.decoding)}
        if unknown := sorted(set(overrides) - fields):
            raise UserError(f"decoding has no setting {unknown[0]!r}; known: {sorted(fields)}.")
        return dataclasses.replace(self.config.decoding, **overrides)

    def translator(self, **overrides: Any) -> Translator:
        """A translator with the run's decoding settings, changed by keyword as for `decoding`."""
        settings = self.decoding(**overrides)
        return Translator(self.model.incremental(), self.params, self.tokenizers, settings, decoding_mesh())

    def inputs(self, *texts: Sequence[str]) -> Inputs:
        """Sources int32[B, S] and targets int32[B, T], each with its end; position t is where target t is predicted."""
        sources, targets = map(listed, texts)
        if len(sources) != len(targets):
            raise UserError(f"{len(sources)} sources and {len(targets)} targets; give one target a source.")
        return _ended(self.tokenizers.source.encode(sources), self.tokenizers.target.encode(targets))

    def predicted(self, inputs: Inputs) -> np.ndarray:
        return inputs[1]

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        tokenizers = (self.tokenizers.source, self.tokenizers.target)
        return [tokenizer.pieces(unpadded(side[row])) for tokenizer, side in zip(tokenizers, inputs, strict=True)]

    def read_pieces(self, name: str, inputs: Inputs) -> list[str]:
        source, target = self.pieces(inputs)
        return source if name == "source_embeddings" else [*self.token_names([BOS]), *target[:-1]]

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        return self.tokenizers.target.pieces(tokens)

    def sides(self, name: str) -> tuple[int | None, int | None]:
        of_source = name.startswith(("source_", "encoder/"))
        memory = name.endswith(("/cross_attention/keys", "/cross_attention/values"))
        columns = (0 if of_source or "/cross_attention/" in name else 1) if name.endswith("/weights") else None
        return 0 if of_source or memory else 1, columns

    def search(self, lines: Sequence[str], **overrides: Any) -> list[list[Hypothesis]]:
        """As `Run.search`; the search's own ranking, whatever decoding.rerank makes of it in `translator`."""
        translator = self.translator(**{**SEARCH_ALONE, **overrides})
        return translator.decoder.decode(self.params, self.tokenizers.source.encode(listed(lines)))

    def trace(self, line: str, **overrides: Any) -> Trace:
        decoder, (source,) = (
            self.translator(**{**SEARCH_ALONE, **overrides}).decoder,
            self.tokenizers.source.encode([line]),
        )
        return trace(decoder.search, self.params, source, decoder.config)

    def hypothesis_inputs(self, line: str, outputs: Sequence[list[int]]) -> Inputs:
        return _ended(self.tokenizers.source.encode([line]) * len(outputs), outputs)

    def decode(self, outputs: Sequence[list[int]]) -> list[str]:
        return self.tokenizers.target.decode(outputs)

    @cached_property
    def _translator(self) -> Translator:
        return self.translator()

    def translate(self, lines: Sequence[str]) -> list[str]:
        """The best translation of each line."""
        return self._translator.translate(listed(lines))

    @cached_property
    def _scorer(self) -> Scorer:
        def logits(params: Any, source: Any, target: Any) -> Any:
            return self.model.apply({"params": params}, source, target)

        decoding = self.config.decoding
        return Scorer(logits, decoding.batch_size, decoding.max_source_length, decoding_mesh())

    def token_log_probs(self, sources: Sequence[list[int]], targets: Sequence[list[int]]) -> list[np.ndarray]:
        """Natural log-probabilities float32[len(target) + 1] of the tokens of each target, then of its end."""
        return self._scorer.score(self.params, sources, targets)

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
        """Natural log-probability float32[n] of each target given its source, end of sentence included."""
        encoded = self.tokenizers.source.encode(listed(sources)), self.tokenizers.target.encode(listed(targets))
        return np.asarray([tokens.sum() for tokens in self.token_log_probs(*encoded)], np.float32)

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """As `Run.evaluate`: BLEU and its companions. Files: "SOURCE,REFERENCE" or "PAIRS.tsv"."""
        from transformer_jax.analysis.scores import evaluate_run, format_record
        from transformer_jax.data.parallel_text import read_pairs

        if files is not None:
            pairs = list(read_pairs([Path(file) for file in files.split(",")]))
            sources, references = [pair["source"] for pair in pairs], [pair["target"] for pair in pairs]
            data = {"split": "files", "files": files}
        else:
            splits = load_dataset(self.config.dataset.each_once()).splits
            if split not in splits:
                raise UserError(f"--split={split}: {self.config.dataset.name} has only {', '.join(splits)}.")
            sources, references = splits[split].texts()
            data = {"split": split, "dataset": self.config.dataset.name}
        record = evaluate_run(self, sources, references, data, **settings)
        return record, format_record(record)


def _ended(*sides: Sequence[list[int]]) -> Inputs:
    """Token lists as arrays, each list with its end."""
    ended = [[[*row, EOS] for row in rows] for rows in sides]
    return tuple(pad_tokens(rows, len(rows), max(map(len, rows), default=1)) for rows in ended)
