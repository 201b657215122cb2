"""Text from prompts: in bulk with any search, or token by token as it is drawn."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transformer_jax.decoding.batching import Decoder, Hypothesis, length_groups, pad_tokens
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.interface import BOS_ID, EOS_ID, Decodable, Params, Requests
from transformer_jax.decoding.sampling import Sampling, SamplingConfig
from transformer_jax.decoding.tracing import Trace, trace
from transformer_jax.errors import UserError


@dataclass(frozen=True)
class GenerationConfig:
    """How a language model continues prompts. Lengths are in tokens.

    Attributes:
      method, beam_size, n_best, length_penalty, patience, batch_size, seed, sampling: as in `DecodingConfig`.
      max_tokens: most tokens of an output, the end of the document among them.
      min_length: fewest.
      prompt_begins: "document": a prompt is the beginning of a document, so its first token follows the token that
        documents begin with; "anywhere": it is not. The former suits text of many documents, the latter text of few,
        where a model has hardly seen how one begins.
    """

    method: Literal["beam", "greedy", "sample"]
    beam_size: int
    n_best: int
    length_penalty: float
    patience: float
    max_tokens: int
    min_length: int
    prompt_begins: Literal["document", "anywhere"]
    batch_size: int
    seed: int
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"decoding.max_tokens is {self.max_tokens}; it must be at least 1.")
        self.search(2)

    def search(self, max_length: int) -> DecodingConfig:
        """The settings of a search by a model of ``max_length`` tokens, prompt and output together."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for own in ("max_tokens", "prompt_begins"):
            del shared[own]
        return DecodingConfig(
            **shared,
            coverage_penalty=0.0,
            max_length_factor=0.0,
            max_length_offset=self.max_tokens,
            max_target_length=self.max_tokens,
            max_source_length=max_length,
            long_lines="refuse",
        )

    def first_tokens(self, prompt: Sequence[int]) -> list[int]:
        """What the model reads before it writes; never nothing."""
        begins = self.prompt_begins == "document" or not prompt
        return [BOS_ID, *prompt] if begins else list(prompt)


class Generator:
    """Token lists in, continuations out, in the same order. Compiled functions outlive it."""

    def __init__(self, model: Decodable, config: GenerationConfig, max_length: int, mesh: Mesh | None = None) -> None:
        self._model, self.config, self._max_length = model, config, max_length
        self._decoder = Decoder(model, config.search(max_length), mesh)

    def generate(
        self, params: Params, prompts: Sequence[Sequence[int]], rows: Sequence[int] | None = None
    ) -> list[list[Hypothesis]]:
        """The n best continuations of each prompt, best first; prompts of any lengths share batches.

        Args:
          rows: numbers that samples derive their randomness from; 0, 1, 2 … when None.
        Raises: UserError for a prompt that leaves no room for ``max_tokens``.
        """
        return self._decoder.decode(params, self._read_first(prompts), rows=rows)

    def trace(self, params: Params, prompt: Sequence[int]) -> Trace:
        """A beam search watched: see `tracing.trace`. Raises: as `generate`."""
        (given,) = self._read_first([prompt])
        return trace(self._decoder.search, params, given, self._decoder.config)

    def _read_first(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        given = [self.config.first_tokens(prompt) for prompt in prompts]
        for number, prompt in enumerate(given, 1):
            if len(prompt) + self.config.max_tokens > self._max_length:
                raise UserError(
                    f"generation: prompt {number} has {len(prompt)} tokens, and decoding.max_tokens is "
                    f"{self.config.max_tokens}; together they exceed the model's {self._max_length}. Shorten it, or "
                    "ask for fewer tokens."
                )
        return given

    def stream(self, params: Params, prompt: Sequence[int]) -> Iterator[int]:
        """The tokens of one continuation, each as soon as it is drawn, without the end.

        When prompt and output have filled the model's length, the latter half of them is read again as a prompt, so
        the output may be of any length. Raises: UserError for beam search, whose first token is known last.
        """
        config = self.config
        if config.method == "beam":
            raise UserError("generation: beam search cannot be streamed; use method 'sample' or 'greedy'.")
        sampling = dataclasses.replace(config.sampling, top_k=1) if config.method == "greedy" else config.sampling
        search = Sampling(self._model, sampling, 1, 1)
        read, written = self.config.first_tokens(prompt), 0
        if len(read) >= self._max_length:
            raise UserError(
                f"generation: the prompt has {len(read)} tokens; the model reads {self._max_length - 1} and writes "
                "after them. Shorten it."
            )
        while written < config.max_tokens:
            (width,) = length_groups([len(read) + 1], self._max_length)
            room = self._max_length - len(read)
            seed = np.asarray([[config.seed, written]], np.int32)
            # One more than there is room for: at its last position a search may only end.
            request = Requests(
                jnp.asarray(pad_tokens([[*read, EOS_ID]], 1, width)),
                jnp.asarray([self._max_length + 1]),
                jnp.zeros((1, 0), jnp.int32),
                jnp.asarray(seed),
            )
            state = _start(search, self._max_length)(params, request)
            for i in range(min(room, config.max_tokens - written)):
                state = _step(search)(params, state)
                token = int(state.tokens[0, 0, i])
                if token == EOS_ID:
                    return
                yield token
                read.append(token)
                written += 1
            read = read[-(self._max_length // 2) :]


@lru_cache(maxsize=16)
def _start(search: Sampling, length: int) -> Any:
    return jax.jit(lambda params, request: search.start(params, request, length))


@lru_cache(maxsize=16)
def _step(search: Sampling) -> Any:
    return jax.jit(search.step, donate_argnums=1)
