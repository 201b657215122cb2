"""A masked language model's run, opened for use: what it puts for [MASK], and how likely it finds text."""

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.analysis.capture import Inputs, unpadded
from transformer_jax.analysis.run import Run, listed
from transformer_jax.analysis.scores import begin_record, finish_record
from transformer_jax.data.masking import Masker, masked_evaluation_batches
from transformer_jax.data.packing import encode_documents
from transformer_jax.data.text import documents_of_files, load_text
from transformer_jax.data.text_tokenizers import TextTokenizer, ids_with_mask, load_text_tokenizer, marks_of
from transformer_jax.data.tokenizers import UNK
from transformer_jax.decoding.batching import pad_tokens
from transformer_jax.errors import UserError
from transformer_jax.families.masked_lm import MaskedRunConfig, model_config
from transformer_jax.models.encoder import MaskedLanguageModel
from transformer_jax.models.tokens import PAD_ID
from transformer_jax.models.transformer import Params, plain
from transformer_jax.training.evaluators import sums_on_all_devices
from transformer_jax.training.masked_language_modeling import MaskedLanguageModelTask

MASK = "[MASK]"


class Filling(NamedTuple):
    """What may stand for one [MASK].

    Attributes:
      token: the text of the token, with the space that it begins with, if any.
      probability: given the rest of the text.
      text: the whole text with it, and with the likeliest token for every other [MASK].
    """

    token: str
    probability: float
    text: str


class MaskedRun(Run):
    """What `load_run` gives for the family "masked_lm"."""

    config: MaskedRunConfig

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return load_text_tokenizer(self.directory.tokenizer)

    @cached_property
    def model(self) -> MaskedLanguageModel:
        """The unrolled model, whichever way it was trained; `params` fits it."""
        config = model_config(self.config, ids_with_mask(self.tokenizer))
        return MaskedLanguageModel(plain(config))

    def inputs(self, *texts: Sequence[str]) -> Inputs:
        """What the model is called with: tokens and segments int32[B, T]; "[MASK]" may stand in a text."""
        (lines,) = texts
        rows = [self.encode(line) for line in listed(lines)]
        tokens = pad_tokens(rows, len(rows), max(map(len, rows), default=1))
        return tokens, (tokens != PAD_ID).astype(np.int32)

    def pieces(self, inputs: Inputs, row: int = 0) -> list[list[str]]:
        named = self.token_names(unpadded(inputs[0][row]))
        return [named, named]

    def token_names(self, tokens: Sequence[int]) -> list[str]:
        mask = marks_of(self.tokenizer).mask
        return [MASK if token == mask else self.tokenizer.pieces([token])[0] for token in tokens]

    def sides(self, name: str) -> tuple[int | None, int | None]:
        return 0, 0 if name.endswith("/weights") else None

    def encode(self, text: str) -> list[int]:
        """[CLS], the tokens, [SEP]; every "[MASK]" in the text is one token. Raises: UserError if it is too long.

        A space before "[MASK]" is part of what it stands for.
        """
        marks = marks_of(self.tokenizer)
        parts = text.replace(f" {MASK}", MASK).split(MASK)
        ids = [marks.first]
        for i, tokens in enumerate(self.tokenizer.encode(parts)):
            ids += [marks.mask, *tokens] if i else tokens
        longest = self.model.config.max_length
        if len(ids) >= longest:
            raise UserError(
                f"{text[:60]!r} has {len(ids) - 1} tokens; the model reads at most {longest - 2} at a time."
            )
        return [*ids, marks.end]

    @cached_property
    def _apply(self) -> Any:
        @partial(jax.jit, static_argnames="method")
        def apply(params: Params, inputs: Any, method: str) -> Any:
            segments = (inputs != PAD_ID).astype(jnp.int32)
            return self.model.apply({"params": params}, inputs, segments, method=method)

        return apply

    def _on_texts(self, texts: Sequence[str], method: str) -> list[np.ndarray]:
        """What a method of the model gives of each text, float32[tokens, …], [CLS] and [SEP] included."""
        found = []
        for ids in map(self.encode, listed(texts)):
            size = 1 << (len(ids) - 1).bit_length()  # few programs
            row = pad_tokens([ids], 1, min(size, self.model.config.max_length))
            found.append(np.asarray(self._apply(self.params, row, method), np.float32)[0, : len(ids)])
        return found

    def states(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The encoder's last states of each text, float32[tokens, d_model], [CLS] first and [SEP] last."""
        return self._on_texts(texts, "states")

    def fill_mask(self, text: str, top: int = 5) -> list[list[Filling]]:
        """For each "[MASK]" in a text its likeliest tokens, best first.

        Raises: UserError for a text without "[MASK]", and one that is too long.
        """
        if MASK not in text:
            raise UserError(f"There is no {MASK} in {text[:60]!r}; write it where a token is to be found.")
        marks = marks_of(self.tokenizer)
        (logits,) = self._on_texts([text], "__call__")
        ids = np.asarray(self.encode(text))
        special = np.isin(np.arange(logits.shape[-1]), [*marks, PAD_ID, UNK])  # which are not of text
        log_probs = np.asarray(jax.nn.log_softmax(np.where(special, -np.inf, logits), axis=-1))
        places = np.flatnonzero(ids == marks.mask)
        best = np.argsort(-log_probs[places], axis=-1)[:, :top]
        found = []
        for place_, candidates in zip(places, best, strict=True):
            fillings = []
            for token in candidates:
                filled = ids.copy()
                filled[places] = best[:, 0]
                filled[place_] = token
                piece, whole = self.tokenizer.decode([[int(token)], filled.tolist()])
                fillings.append(Filling(piece, float(np.exp(log_probs[place_, token])), whole))
            found.append(fillings)
        return found

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Each text with the likeliest token for every "[MASK]" in it."""
        return [self.fill_mask(text, top=1)[0][0].text for text in listed(texts)]

    def evaluate(self, split: str, files: str | None, **settings: Any) -> tuple[dict[str, Any], str]:
        """As `Run.evaluate`: loss, perplexity and accuracy of tokens that are hidden, the same ones every time. Files:
        "A.txt,B.txt.gz"."""
        if settings:
            raise UserError(f"--{min(settings)} does not concern the evaluation of a masked language model.")
        config = self.config
        if files is not None:
            documents = documents_of_files([Path(file) for file in files.split(",")], config.dataset)
            data: dict[str, Any] = {"split": "files", "files": files}
        else:
            splits = load_text(config.dataset).splits
            if split not in splits:
                raise UserError(f"--split={split}: {config.dataset.name} has only {', '.join(splits)}.")
            documents, data = list(splits[split]), {"split": split, "dataset": config.dataset.name}
        stream = encode_documents(documents, self.tokenizer)
        digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
        data |= {"documents": len(documents), "bytes": stream.num_bytes, "sha256": digest}
        name, record = begin_record(self, data, {"masking": dataclasses.asdict(config.masking)})
        task = MaskedLanguageModelTask(self.model, config.task)
        batches = list(masked_evaluation_batches(stream, config.batching, Masker(self.tokenizer, config.masking)))
        sums = sums_on_all_devices(task, self.params, batches)
        scores = task.summarise(sums) | {"tokens": sums["tokens"]}
        record = finish_record(self, name, {**record, "scores": scores})
        return record, _format(record)


def _format(record: dict[str, Any]) -> str:
    data, scores, chosen = record["data"], record["scores"], record["checkpoint"]
    return "\n".join(
        [
            f"{data['documents']:,} documents of {data['split']}, {data['bytes']:,} bytes, {scores['tokens']:,.0f} "
            f"hidden tokens, checkpoint {chosen['choice']} (steps {chosen['steps']})",
            f"loss           {scores['nll']:8.4f}   nats a hidden token",
            f"perplexity     {scores['perplexity']:8.3f}",
            f"accuracy       {scores['accuracy']:8.4f}",
        ]
    )
