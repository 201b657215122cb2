"""The Transformer over captions and image tokens of Ramesh et al. 2021 (DALL-E): configuration, model, and its
incremental decoder.

Notation: B batch, S text length, G side of the grid of image tokens, N = G² of them, D d_model, V image codes, K beams.
The sequence is a start token, S text tokens and N image tokens, each predicted from those before it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from transformer_jax.models.attention import MASKED
from transformer_jax.models.layers import Embedding, Seeds, dropout
from transformer_jax.models.transformer import BOS_ID, BlockConfig, Cache, Params, Stack, need, unroll

SPECIAL = 4
"""In decoding, image code v is the token v + 4, beside the special ones of every vocabulary."""
EOS_ID = 1


@dataclass(frozen=True, kw_only=True)
class TextToImageConfig(BlockConfig):
    """Hyperparameters of one model.

    Attributes:
      text_vocab_size: of the captions' tokenizer.
      text_length: S. A shorter caption is padded with tokens that each position has of its own (section 2.2).
      image_vocab_size: V.
      grid: G.
      num_layers: how many.
      image_attention: what image tokens see of earlier image tokens; all see the whole text. "sparse": their row in
        most layers, their column in layers 2, 6, 10 …, their neighbourhood in the last (section 2.2, figure 11).
      kernel: side of that neighbourhood, odd.
    """

    text_vocab_size: int
    text_length: int
    image_vocab_size: int
    grid: int
    num_layers: int
    image_attention: Literal["sparse", "full"]
    kernel: int

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.text_length >= 1, f"text_length is {self.text_length}; it must be at least 1.")
        length = self.text_length + self.image_length
        need(
            length <= self.max_length,
            f"text and image have {length} tokens, max_length is {self.max_length}; raise it.",
        )
        need(self.kernel % 2 == 1, f"kernel is {self.kernel}; it must be odd.")
        need(
            self.positions == "learned",
            f"positions is {self.positions!r}; those of text, rows and columns are 'learned' (section 2.2).",
        )

    @property
    def image_length(self) -> int:
        """N."""
        return self.grid**2

    @property
    def no_caption(self) -> np.ndarray:
        """int32[S]: the text of an image without one, all padding, of which position s has text_vocab_size + s."""
        return self.text_vocab_size + np.arange(self.text_length, dtype=np.int32)

    @property
    def kinds(self) -> tuple[str, ...]:
        """How image tokens see each other in each layer: "row", "column", "convolution" or "full"."""
        if self.image_attention == "full":
            return ("full",) * self.num_layers
        kinds = ["column" if (number - 2) % 4 == 0 else "row" for number in range(1, self.num_layers + 1)]
        return (*kinds[:-1], "convolution")


def image_mask(kind: str, grid: int, kernel: int) -> np.ndarray:
    """bool[N, N]: whether image token q sees image token k (figure 11), in raster order, no later ones.

    "row": the token itself and the G before it, back to the one above it. "column": those above it. "convolution": a
    window of kernel x kernel tokens around it that, like rows, wraps at the edges. "full": all.
    """
    q, k = np.arange(grid**2)[:, None], np.arange(grid**2)[None, :]
    if kind == "row":
        seen = q - k <= grid
    elif kind == "column":
        seen = (q - k) % grid == 0
    elif kind == "convolution":
        half = kernel // 2
        rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
        seen = np.isin(k - q, rows * grid + columns)
    else:
        seen = np.ones((grid**2, grid**2), bool)
    return seen & (k <= q)


def attention_masks(config: TextToImageConfig) -> np.ndarray:
    """bool[L, S + N, S + N]: what each position of the input (start, text, all image tokens but the last) sees."""
    first, length = config.text_length + 1, config.text_length + config.image_length
    masks = np.tile(np.tri(length, dtype=bool), (config.num_layers, 1, 1))
    for mask, kind in zip(masks, config.kinds, strict=True):
        mask[first:, first:] = image_mask(kind, config.grid, config.kernel)[:-1, :-1]
    return masks


class TextToImage(nn.Module):
    """``model.apply({"params": params}, text, codes)`` gives logits: of the text float32[B, S, text table], and of the
    image float32[B, N, V].

    Text is int32[B, S] padded as `no_caption` is, codes int32[B, N] in raster order.
    """

    config: TextToImageConfig

    def setup(self) -> None:
        c = self.config
        self.text_embedding = Embedding(c.text_vocab_size + c.text_length, c.d_model)
        self.text_positions = Embedding(c.text_length + 1, c.d_model, ("positions", "embed"))
        self.image_embedding = Embedding(c.image_vocab_size, c.d_model)
        self.row_positions = Embedding(c.grid, c.d_model, ("positions", "embed"))
        self.column_positions = Embedding(c.grid, c.d_model, ("positions", "embed"))
        self.text_output = Embedding(c.text_vocab_size + c.text_length, c.d_model)
        self.image_output = Embedding(c.image_vocab_size, c.d_model)
        self.decoder = Stack(c, c.num_layers, causal=False, has_memory=False, own_bias=True)

    def _text(self, tokens: Array, first: int = 0) -> Array:
        """Tokens int32[B, T] at positions first, first + 1 … -> [B, T, D]; position 0 is the start token's."""
        return self.text_embedding()[tokens] + self.text_positions()[first : first + tokens.shape[1]]

    def _image(self, codes: Array, places: Array) -> Array:
        """Codes int32[B, T] at places in the grid int32[T] -> [B, T, D]."""
        row, column = places // self.config.grid, places % self.config.grid
        return self.image_embedding()[codes] + self.row_positions()[row] + self.column_positions()[column]

    def hidden(self, text: Array, codes: Array, seeds: Seeds = None) -> tuple[Array, Array]:
        """The last states that predict the text [B, S, D] and the image [B, N, D]."""
        c = self.config
        start = jnp.full_like(text[:, :1], BOS_ID)
        image = self._image(codes[:, :-1], jnp.arange(c.image_length - 1))
        x = jnp.concatenate([self._text(jnp.concatenate([start, text], axis=1)), image], axis=1)
        x = dropout(x.astype(c.dtype), seeds, "embedding", c.embedding_dropout_rate)
        bias = jnp.where(attention_masks(c), 0.0, MASKED)[:, None, None]
        states = self.decoder(x, bias, None, None, seeds)
        return states[:, : c.text_length], states[:, c.text_length :]

    def output_tables(self) -> tuple[Array, Array]:
        """The matrices of the last linear layer: of text tokens and of image codes, float32[…, D]."""
        return self.text_output(), self.image_output()

    def __call__(self, text: Array, codes: Array, seeds: Seeds = None) -> tuple[Array, Array]:
        states, tables = self.hidden(text, codes, seeds), self.output_tables()
        text_logits, image_logits = map(_logits, states, tables)
        return text_logits, image_logits

    def log_probs(self, text: Array, codes: Array) -> Array:
        """Natural log-probability float32[B] of the image after its text."""
        logits = self(text, codes)[1]
        each = jnp.take_along_axis(jax.nn.log_softmax(logits), codes[..., None], axis=-1)
        return jnp.sum(each, axis=(1, 2))

    def start(self, source: Array, beam_size: int, max_length: int) -> Cache:
        """The cache after all of each caption but its last token, with room for max_length tokens of K beams.

        Args: source: int32[B, ≥ S], a caption's S tokens and then whatever decoding adds.
        Returns: a tree whose every leaf has the leading axis B. A caption lies once in the cache, whatever K.
        """
        c, B = self.config, source.shape[0]
        text = jnp.concatenate([jnp.full((B, 1), BOS_ID, source.dtype), source[:, : c.text_length - 1]], axis=1)
        x = self._text(text).astype(c.dtype)
        bias = jnp.where(np.tri(c.text_length, dtype=bool), 0.0, MASKED)
        room = jnp.zeros((B, c.kv_heads, max_length * beam_size, c.head_dim), c.dtype)
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            x, key, value = layer.prefill(x, bias, None)
            keys = jnp.swapaxes(jnp.concatenate([key, room], axis=2), 2, 3)
            layers[f"layer_{i}"] = {"key": keys, "value": jnp.concatenate([value, room], axis=2)}
        return {
            "index": jnp.zeros(B, jnp.int32),
            "ancestry": jnp.zeros((B, beam_size, max_length), jnp.int32),
            "pending": source[:, c.text_length - 1],
            "layers": layers,
        }

    def step(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """Feeds tokens int32[B, K] at the cache's position; returns logits float32[B, K, 4 + V] and the new cache.

        What is fed first is ignored for the last token of the caption. After N tokens only the end can follow. Beams
        never move: ``ancestry[b, k, t]`` names the beam under which slot t of beam k's history was written.
        """
        c, index = self.config, cache["index"][0]
        B, K, T = cache["ancestry"].shape
        S, N = c.text_length, c.image_length
        own = jnp.broadcast_to(jnp.arange(K)[:, None], (B, K, 1))
        ancestry = jax.lax.dynamic_update_slice(cache["ancestry"], own, (0, 0, index))
        last_of_text = self._text(jnp.broadcast_to(cache["pending"][:, None], (B, 1)), S)
        codes = jnp.clip(tokens - SPECIAL, 0, c.image_vocab_size - 1)
        place = jnp.clip(index - 1, 0, N - 1)
        x = jnp.where(index == 0, last_of_text, self._image(codes, place[None])).astype(c.dtype)
        # Slot t holds what stands at position S + t; beyond the last position nothing that is computed is used.
        masks = np.pad(attention_masks(c), ((0, 0), (0, 0), (0, max(T - N, 0))))[:, S:]
        seen = jnp.asarray(masks)[:, jnp.minimum(index, N - 1)]
        beams = ancestry[..., None] == jnp.arange(K)
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            name = f"layer_{i}"
            slots = (seen[i, S : S + T, None] & beams).reshape(B, K, T * K)
            everything = jnp.concatenate([jnp.ones((B, K, S), bool), slots], axis=2)
            bias = jnp.where(everything, 0.0, MASKED)[:, None]
            x, layers[name] = layer.step(x, cache["layers"][name], S + index * K, cache["index"], bias, None)
        if c.norm_placement == "pre":
            x = self.decoder.final_norm(x)
        special = jnp.full((B, K, SPECIAL), MASKED)
        logits = jnp.concatenate([special, _logits(x, self.image_output())], axis=-1)
        only_end = jnp.where(jnp.arange(logits.shape[-1]) == EOS_ID, 0.0, MASKED)
        new = {"index": cache["index"] + 1, "ancestry": ancestry, "layers": layers}
        return jnp.where(index < N, logits, only_end), {**cache, **new}


def _logits(states: Array, table: Array) -> Array:
    return jnp.einsum("btd,vd->btv", states, table.astype(states.dtype), preferred_element_type=jnp.float32)


@dataclass(frozen=True)
class IncrementalTextToImage:
    """The decode interface of a `TextToImage`, as pure functions of its parameters: the source is the caption."""

    model: TextToImage

    def _apply(self, params: Params, *args: Any, method: str) -> Any:
        model = TextToImage(dataclasses.replace(self.model.config, scan_layers=False, remat="none"))
        return model.apply({"params": unroll(params)}, *args, method=method)

    def start(self, params: Params, source: Array, beam_size: int, max_length: int) -> Cache:
        return self._apply(params, source, beam_size, max_length, method="start")

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        return self._apply(params, cache, tokens, method="step")

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        """Beam k goes on from beam parents[b, k]: only the ancestry table changes."""
        return {**cache, "ancestry": jnp.take_along_axis(cache["ancestry"], parents[:, :, None], axis=1)}
