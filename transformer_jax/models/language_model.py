"""The decoder-only Transformer (Radford et al. 2018, 2019): configuration, model, and its incremental decoder.

Notation: B batch, T length, S prompt length, D d_model, V vocabulary, K beams.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from transformer_jax.models.attention import MASKED, own_segment
from transformer_jax.models.layers import UNLIKELY, Embedding, Seeds, draw_normal, dropout, linear_logits, need
from transformer_jax.models.positions import positions_in, sinusoidal
from transformer_jax.models.slots import Slots
from transformer_jax.models.taps import Network, tap
from transformer_jax.models.tokens import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from transformer_jax.models.transformer import BlockConfig, Cache, Params, Stack, plain, unroll


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(BlockConfig):
    """Hyperparameters of one language model.

    Attributes:
      scale_embeddings: token embeddings times √D (Vaswani et al. 2017, section 3.4); GPT does not.
      initializer: "gpt2" draws every matrix and table from N(0, 0.02²), and those that end a residual branch from
        N(0, 0.02² / 2L) (Radford et al. 2019, section 2.3); "xavier" is the encoder-decoder's.
      end_begins: documents begin with the token that ends them, as GPT-2's do; the tokens for padding, what is unknown
        and beginnings are then never likely, and have no part in the model.
    """

    vocab_size: int
    num_layers: int
    tie_embeddings: bool
    scale_embeddings: bool
    initializer: Literal["xavier", "gpt2"]
    end_begins: bool = False


class LanguageModel(Network):
    """``model.apply({"params": params}, inputs)`` gives logits float32[B, T, V]: position t predicts what follows
    ``inputs[:, : t + 1]``. Nothing is shifted inside.

    Points: ``embeddings`` [B, T, D], ``logits`` float32[B, T, V].
    """

    config: LanguageModelConfig

    def setup(self) -> None:
        c = self.config
        self.embedding = Embedding(c.vocab_size, c.d_model)
        if not c.tie_embeddings:
            self.output_embedding = Embedding(c.vocab_size, c.d_model)
        if c.positions == "learned":
            self.positions = Embedding(c.max_length, c.d_model, ("positions", "embed"))
        self.decoder = Stack(c, c.num_layers, causal=True, has_memory=False)

    def _embed(self, tokens: Array, positions: Array, seeds: Seeds) -> Array:
        """tokens int32[B, T] at positions int32[B, T] or int32[T] -> [B, T, D]."""
        c = self.config
        x = self.embedding()[jnp.where(tokens == BOS_ID, EOS_ID, tokens) if c.end_begins else tokens]
        if c.scale_embeddings:
            x = x * c.d_model**0.5
        if c.positions in ("sinusoidal", "learned"):
            learned = c.positions == "learned"
            table = self.positions() if learned else jnp.asarray(sinusoidal(c.max_length, c.d_model))
            x = x + table[positions]
        return dropout(
            tap(self, "embeddings", x.astype(c.activation_dtype)), seeds, "embedding", c.embedding_dropout_rate
        )

    def hidden(self, inputs: Array, segments: Array | None = None, seeds: Seeds = None) -> Array:
        """The last states [B, T, D]; `logits` of them predict the next tokens.

        Args:
          inputs: int32[B, T].
          segments: int32[B, T]: positions see their own segment only, and count from its start, so that documents
            packed into a row are as in rows of their own. None: each row is one segment.
        """
        c, length = self.config, inputs.shape[1]
        need(
            length <= c.max_length,
            f"an input of {length} tokens exceeds max_length={c.max_length}; split it, or raise it.",
        )
        if segments is None:
            return self.decoder(self._embed(inputs, jnp.arange(length), seeds), None, None, None, seeds)
        bias = own_segment(segments, segments)
        return self.decoder(self._embed(inputs, positions_in(segments), seeds), bias, None, None, seeds)

    def output_table(self) -> Array:
        """The last linear layer, tied or its own: float32[V, D], or [V, D + 1] where the last column is its bias."""
        table = self.embedding() if self.config.tie_embeddings else self.output_embedding()
        if not self.config.end_begins:
            return table
        bias = jnp.zeros((len(table), 1)).at[jnp.asarray([PAD_ID, UNK_ID, BOS_ID])].set(UNLIKELY)
        return jnp.concatenate([table, bias], axis=1)

    def logits(self, hidden: Array) -> Array:
        """[B, T, D] -> float32[B, T, V]."""
        return tap(self, "logits", linear_logits(hidden, self.output_table(), self.config.product_dtype))

    def __call__(self, inputs: Array, segments: Array | None = None, seeds: Seeds = None) -> Array:
        return self.logits(self.hidden(inputs, segments, seeds))

    def start(self, prompt: Array, beam_size: int, max_length: int, num_slots: int | None = None) -> Cache:
        """The cache after all of each prompt but its last token, with room for max_length tokens of K beams, or with as
        many slots for them as are given.

        Args: prompt: int32[B, S], each of at least one token, then one token that is not read (decoding ends every
          source), then zeros.
        Returns: a tree whose every leaf has the leading axis B. A prompt lies once in the cache, whatever K: in the
          first slots. The beams share those after its end (`Slots`).
        """
        c, (B, S) = self.config, prompt.shape
        x = self._embed(prompt, jnp.arange(S), None)
        positions = jnp.arange(S)
        distance = positions[None, :] - positions[:, None]
        bias = jnp.where(distance <= 0, 0.0, MASKED)
        position_bias = self.decoder.position_bias(distance)
        bias = bias if position_bias is None else bias + position_bias
        rotations = positions if c.positions == "rotary" else None
        M = num_slots or max_length * beam_size
        room = jnp.zeros((B, c.kv_heads, M, c.head_dim), c.activation_dtype)
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            x, key, value = layer.prefill(x, bias, rotations)
            keys = jnp.swapaxes(jnp.concatenate([key, room], axis=2), 2, 3)
            layers[f"layer_{i}"] = {"key": keys, "value": jnp.concatenate([value, room], axis=2)}
        length = jnp.sum(prompt != 0, axis=1) - 1
        return {
            "position": length - 1,
            "slots": Slots.after(length - 1, beam_size, S + M),
            "pending": jnp.take_along_axis(prompt, length[:, None] - 1, axis=1)[:, 0],
            "layers": layers,
        }

    def step(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """Feeds tokens int32[B, K] at each row's position; returns logits float32[B, K, V] and the new cache.

        What is fed first is ignored for the last token of the prompt.
        """
        c, position, pending = self.config, cache["position"], cache["pending"]
        tokens = jnp.where(pending[:, None] != PAD_ID, pending[:, None], tokens)
        slots, chosen = cache["slots"].take(position)
        bias = jnp.where(slots.seen, 0.0, MASKED)[:, None]
        position_bias = self.decoder.position_bias((slots.position - position[:, None])[:, None, :])
        bias = bias if position_bias is None else bias + position_bias
        # A row that waits to be refilled steps beyond the last position; what it computes is not used.
        positions = jnp.broadcast_to(jnp.minimum(position, c.max_length - 1)[:, None], tokens.shape)
        x = self._embed(tokens, positions, None)
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            name = f"layer_{i}"
            x, layers[name] = layer.step(x, cache["layers"][name], chosen, positions[:, 0], bias, None)
        new = {"position": position + 1, "slots": slots, "pending": jnp.zeros_like(pending), "layers": layers}
        return self.logits(self.decoder.finish(x)), new


def initial_parameters(model: LanguageModel, rng: Array) -> Any:
    """Parameters, boxed with their logical axis names, as ``config.initializer`` says."""
    c = model.config
    boxed = model.init(rng, jnp.ones((1, 2), jnp.int32))["params"]
    if c.initializer == "xavier":
        return boxed
    return draw_normal(boxed, rng, 0.02, output_std=0.02 / (2 * c.num_layers) ** 0.5)


@dataclass(frozen=True)
class IncrementalLanguageModel:
    """The decode interface of a `LanguageModel`, as pure functions of its parameters: the source is the prompt."""

    model: LanguageModel

    def _apply(self, params: Params, *args: Any, method: str) -> Any:
        model = self.model.clone(config=plain(self.model.config))
        return model.apply({"params": unroll(params)}, *args, method=method)

    def start(
        self, params: Params, source: Array, beam_size: int, max_length: int, num_slots: int | None = None
    ) -> Cache:
        return self._apply(params, source, beam_size, max_length, num_slots, method="start")

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        return self._apply(params, cache, tokens, method="step")

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        return {**cache, "slots": cache["slots"].reorder(parents)}

    def has_room(self, cache: Cache) -> Array:
        return cache["slots"].has_room()
