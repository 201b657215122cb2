"""A language-model run, opened for use: its model, tokenizer, continuations and scores."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax.analysis.capture import Inputs, unpadded
from transformer_jax.analysis.run import Run, decoding_mesh, listed
from transformer_jax.analysis.scores import begin_record, finish_record
from transformer_jax.data.packing import encode_documents, evaluation_batches
from transformer_jax.data.text import documents_of_files, load_text
from transformer_jax.data.text_tokenizers import TextTokenizer, load_text_tokenizer
from transformer_jax.decoding.batching import Hypothesis, pad_tokens
from transformer_jax.decoding.generation import GenerationConfig, Generator
from transformer_jax.decoding.scoring import ContinuationScorer
from transformer_jax.decoding.tracing import Trace
from transformer_jax.errors import UserError
from transformer_jax.families.language_model import LanguageModelRunConfig, model_config
from transformer_jax.models.language_model import IncrementalLanguageModel, LanguageModel
from transformer_jax.models.transformer import Params, plain
from transformer_jax.training.evaluators import sums_on_all_devices
from transformer_jax.training.language_modeling import LanguageModelTask, bits_per_byte

REPLACEMENT = "\ufffd"


class LanguageModelRun(Run):
    """What `load_run` gives for the family "language_model"."""

    config: LanguageModelRunConfig

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return load_text_tokenizer(self.directory.tokenizer)

    @cached_property
    def model(self) -> LanguageModel:
        """The unrolled model, whichever way it was trained; `params` fits it."""
        config = model_config(self.config, self.tokenizer.vocab_size)
        return LanguageModel(plain(config))

    def inputs(self, *texts: Sequence[str]) -> Inputs:
        """What the model reads, int32[B, T]: position t is where token t + 1 is predicted."""
        (lines,) = texts
        return self._padded(self.tokenizer.encode(listed(lines)))

    def _padded(self, rows: Sequence[list[int]]) -> Inputs:
        rows = [self.config.decoding.first_tokens(row) for row in rows]
        return (pad_tokens(rows, len(rows), max(map(len, rows), default=1)),)

    def predicted(self, inputs: Inputs) -> np.ndarray:
        return np.pad(inputs[0][:, 1:], ((0, 0), (0, 1)))

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        return [self.tokenizer.pieces(unpadded(side[row])) for side in inputs]

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        return self.tokenizer.pieces(tokens)

    def sides(self, name: str) -> tuple[int | None, int | None]:
        return 0, 0 if name.endswith("/weights") else None

    def search(self, lines: Sequence[str], **overrides: Any) -> list[list[Hypothesis]]:
        return self.generator(**overrides).generate(self.params, self.tokenizer.encode(listed(lines)))

    def trace(self, line: str, **overrides: Any) -> Trace:
        (prompt,) = self.tokenizer.encode([line])
        return self.generator(**overrides).trace(self.params, prompt)

    def hypothesis_inputs(self, line: str, outputs: Sequence[list[int]]) -> Inputs:
        (prompt,) = self.tokenizer.encode([line])
        return self._padded([[*prompt, *output] for output in outputs])

    def decode(self, outputs: Sequence[list[int]]) -> list[str]:
        return self.tokenizer.decode(outputs)

    def generator(self, **overrides: Any) -> Generator:
        """With the run's decoding settings, changed by keyword: ``max_tokens=100``, ``method="greedy"`` …"""
        fields = {field.name for field in dataclasses.fields(GenerationConfig)}
        if unknown := sorted(set(overrides) - fields):
            raise UserError(f"decoding has no setting {unknown[0]!r}; known: {sorted(fields)}.")
        config = dataclasses.replace(self.config.decoding, **overrides)
        model = IncrementalLanguageModel(self.model)
        return Generator(model, config, self.model.config.max_length, decoding_mesh())

    def generate(self, prompts: Sequence[str], **overrides: Any) -> list[list[str]]:
        """The n best continuations of each prompt, without the prompt; settings as for `generator`."""
        found = self.generator(**overrides).generate(self.params, self.tokenizer.encode(listed(prompts)))
        return [self.tokenizer.decode([hypothesis.tokens for hypothesis in best]) for best in found]

    def stream(self, prompt: str, **overrides: Any) -> Iterator[str]:
        """One continuation in pieces of text, each as soon as it is known; of any length."""
        (read,) = self.tokenizer.encode([prompt])
        written: list[int] = []
        shown = ""
        for token in self.generator(**overrides).stream(self.params, read):
            written.append(token)
            # A character may take several tokens, and white space belong to the next one.
            (text,) = self.tokenizer.decode([written])
            if not text.endswith(REPLACEMENT):
                yield text[len(shown) :]
                shown = text
        (text,) = self.tokenizer.decode([written])
        yield text[len(shown) :]

    @cached_property
    def _scorer(self) -> ContinuationScorer:
        def logits(params: Params, inputs: Any) -> Any:
            return self.model.apply({"params": params}, inputs)

        return ContinuationScorer(logits, self.config.decoding.batch_size, self.model.config.max_length)

    def token_log_probs(
        self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Natural log-probabilities float32[len(continuation)] of the tokens of each continuation of its context."""
        first = self.config.decoding.first_tokens
        return self._scorer.score(self.params, [first(context) for context in contexts], continuations)

    def score(self, contexts: Sequence[str], continuations: Sequence[str]) -> np.ndarray:
        """Natural log-probability float32[n] of each continuation of its context, without an end.

        The two are tokenised together, so that the cut between them falls where the tokens of the context alone end.
        """
        contexts, continuations = listed(contexts), listed(continuations)
        if len(contexts) != len(continuations):
            raise UserError(
                f"{len(contexts)} contexts and {len(continuations)} continuations; give one continuation a context."
            )
        apart = self.tokenizer.encode(contexts)
        whole = self.tokenizer.encode([a + b for a, b in zip(contexts, continuations, strict=True)])
        cut = [_common(a, b) for a, b in zip(apart, whole, strict=True)]
        pairs = [(tokens[:n], tokens[n:]) for tokens, n in zip(whole, cut, strict=True)]
        scores = self.token_log_probs([a for a, _ in pairs], [b for _, b in pairs])
        return np.asarray([tokens.sum() for tokens in scores], np.float32)

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """As `Run.evaluate`: loss, perplexity and bits per byte in sliding windows. Files: "A.txt,B.txt.gz".

        Args:
          settings: ``stride``, by how many tokens the windows advance.
        """
        if unknown := sorted(set(settings) - {"stride"}):
            raise UserError(f"--{unknown[0]} does not concern the evaluation of a language model; --stride does.")
        config = self.config
        stride = settings.get("stride", config.evaluation.stride)
        if files is not None:
            documents = documents_of_files([Path(file) for file in files.split(",")], config.dataset)
            data: dict[str, Any] = {"split": "files", "files": files}
        else:
            splits = load_text(config.dataset).splits
            if split not in splits:
                raise UserError(f"--split={split}: {config.dataset.name} has only {', '.join(splits)}.")
            documents = list(splits[split])
            data = {"split": split, "dataset": config.dataset.name}
        stream = encode_documents(documents, self.tokenizer)
        digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
        data |= {"documents": len(documents), "bytes": stream.num_bytes, "sha256": digest}
        windows = {"length": config.batching.length, "stride": stride}
        name, record = begin_record(self, data, {"windows": windows})
        task = LanguageModelTask(self.model, config.task)
        batches = list(evaluation_batches(stream, config.batching, stride))
        sums = sums_on_all_devices(task, self.params, batches)
        scores = task.summarise(sums) | {
            "bits_per_byte": bits_per_byte(sums["nll"], stream.num_bytes),
            "tokens": sums["tokens"],
        }
        record = finish_record(self, name, {**record, "scores": scores})
        return record, _format(record)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists begin with in common, at most all but the last of the second."""
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return min(next(differing, min(len(a), len(b))), len(b) - 1)


def _format(record: dict[str, Any]) -> str:
    data, scores, windows = record["data"], record["scores"], record["windows"]
    return "\n".join(
        [
            f"{data['documents']:,} documents of {data['split']}, {data['bytes']:,} bytes, {scores['tokens']:,.0f} "
            f"tokens, checkpoint {record['checkpoint']['choice']} (steps {record['checkpoint']['steps']}), windows of "
            f"{windows['length']} tokens that advance by {windows['stride']}",
            f"loss           {scores['nll']:8.4f}   nats a token",
            f"perplexity     {scores['perplexity']:8.3f}",
            f"bits per byte  {scores['bits_per_byte']:8.4f}",
        ]
    )
