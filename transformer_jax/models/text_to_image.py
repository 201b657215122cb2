"""The Transformer over captions and image tokens of Ramesh et al. 2021 (DALL-E): configuration, model, and its
incremental decoder.

Notation: B batch, S text length, G side of the grid of image tokens, N = G² of them, D d_model, V tokens, K beams.
Text and image tokens share one vocabulary: the captions' tokens, a padding token for each position of a caption, and
the image codes. A sequence is a start token, S text tokens and N image tokens, each predicted from those before it.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from transformer_jax.models.attention import MASKED
from transformer_jax.models.layers import Embedding, Seeds, dropout, need, operands
from transformer_jax.models.slots import Slots
from transformer_jax.models.taps import Network, tap
from transformer_jax.models.tokens import BOS_ID
from transformer_jax.models.transformer import BlockConfig, Cache, Params, Stack, plain, unroll

EOS_ID = 1


@dataclass(frozen=True, kw_only=True)
class TextToImageConfig(BlockConfig):
    """Hyperparameters of one model.

    Attributes:
      text_vocab_size: of the captions' tokenizer.
      text_length: S. A shorter caption is padded with tokens that each position has of its own (section 2.2).
      image_vocab_size: how many image codes there are.
      grid: G.
      num_layers: how many.
      image_attention: what image tokens see of earlier image tokens; all see the whole text. "sparse": their row in
        most layers, their column in layers 2, 6, 10 …, their neighbourhood in the last (section 2.2, figure 11).
      kernel: side of that neighbourhood, odd.
      max_length: 1 + S + N, which follows.
    """

    text_vocab_size: int
    text_length: int
    image_vocab_size: int
    grid: int
    num_layers: int
    image_attention: Literal["sparse", "full"]
    kernel: int
    max_length: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_length", 1 + self.text_length + self.image_length)
        super().__post_init__()
        need(self.text_length >= 1, f"text_length is {self.text_length}; it must be at least 1.")
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
    def first_code(self) -> int:
        """The token of image code 0; that of code v is v more."""
        return self.text_vocab_size + self.text_length

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
    """bool[L, 1 + S + N, 1 + S + N]: what each position of a sequence sees in each layer."""
    first = 1 + config.text_length
    masks = np.tile(np.tri(config.max_length, dtype=bool), (config.num_layers, 1, 1))
    for mask, kind in zip(masks, config.kinds, strict=True):
        mask[first:, first:] = image_mask(kind, config.grid, config.kernel)
    return masks


def possible_tokens(config: TextToImageConfig) -> np.ndarray:
    """bool[1 + S + N, V]: what may follow each position: text, then image codes, then the end."""
    position, token = np.arange(config.max_length)[:, None], np.arange(config.first_code + config.image_vocab_size)
    last = position == config.max_length - 1
    of_image = (position >= config.text_length) & ~last
    return np.where(last, token == EOS_ID, (token >= config.first_code) == of_image)


class TextToImage(Network):
    """``model.apply({"params": params}, inputs)`` gives logits float32[B, T, V]: position t predicts what follows
    ``inputs[:, : t + 1]``, a sequence or the beginning of one. Nothing is shifted inside.

    Points: ``embeddings`` [B, T, D], ``logits`` float32[B, T, V].
    """

    config: TextToImageConfig

    def setup(self) -> None:
        c = self.config
        self.text_embedding = Embedding(c.first_code, c.d_model)
        self.image_embedding = Embedding(c.image_vocab_size, c.d_model)
        self.text_positions = Embedding(1 + c.text_length, c.d_model, ("positions", "embed"))
        self.row_positions = Embedding(c.grid, c.d_model, ("positions", "embed"))
        self.column_positions = Embedding(c.grid, c.d_model, ("positions", "embed"))
        self.text_output = Embedding(c.first_code, c.d_model)
        self.image_output = Embedding(c.image_vocab_size, c.d_model)
        self.decoder = Stack(c, c.num_layers, causal=False, has_memory=False, own_bias=True)

    def _embed(self, tokens: Array, positions: Array, seeds: Seeds) -> Array:
        """tokens int32[B, T] at positions int32[T] or int32[B, T] -> [B, T, D]."""
        c = self.config
        places = (self.row_positions()[:, None] + self.column_positions()).reshape(c.image_length, c.d_model)
        table = jnp.concatenate([self.text_embedding(), self.image_embedding()])
        x = table[tokens] + jnp.concatenate([self.text_positions(), places])[positions]
        x = tap(self, "embeddings", x.astype(c.activation_dtype))
        return dropout(x, seeds, "embedding", c.embedding_dropout_rate)

    def hidden(self, inputs: Array, seeds: Seeds = None) -> Array:
        """The last states [B, T, D]; `logits` of them predict the next tokens."""
        c, T = self.config, inputs.shape[1]
        need(c.max_length >= T, f"an input of {T} tokens exceeds max_length={c.max_length}; shorten it.")
        bias = jnp.where(attention_masks(c)[:, :T, :T], 0.0, MASKED)[:, None, None]
        return self.decoder(self._embed(inputs, jnp.arange(T), seeds), bias, None, None, seeds)

    def output_tables(self) -> tuple[Array, Array]:
        """The matrices of the last linear layer: of text tokens and of image codes, float32[…, D]."""
        return self.text_output(), self.image_output()

    def logits(self, hidden: Array, positions: Array) -> Array:
        """[B, T, D] at positions int32[T] or int32[B, T] -> float32[B, T, V]; -1e9 for what cannot follow there."""
        dtype = self.config.product_dtype
        hidden, table = operands(hidden.astype(dtype), jnp.concatenate(self.output_tables()).astype(dtype))
        logits = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
        return tap(self, "logits", jnp.where(jnp.asarray(possible_tokens(self.config))[positions], logits, MASKED))

    def __call__(self, inputs: Array, seeds: Seeds = None) -> Array:
        return self.logits(self.hidden(inputs, seeds), jnp.arange(inputs.shape[1]))

    def log_probs(self, rows: Array) -> Array:
        """Natural log-probability float32[B] of the image in each row int32[B, S + N] of text and image, given the
        text.
        """
        inputs = jnp.pad(rows[:, :-1], ((0, 0), (1, 0)), constant_values=BOS_ID)
        log_probs = jax.nn.log_softmax(self(inputs))
        each = jnp.take_along_axis(log_probs, rows[..., None], axis=-1)[..., 0]
        return jnp.sum(each[:, self.config.text_length :], axis=1)

    def start(self, source: Array, beam_size: int, max_length: int) -> Cache:
        """The cache after all of each caption but its last token, with room for max_length tokens of K beams.

        Args: source: int32[B, ≥ 1 + S], start token and text, then whatever decoding adds.
        Returns: a tree whose every leaf has the leading axis B. A caption lies once in the cache, whatever K.
        """
        c, (B, S) = self.config, (source.shape[0], self.config.text_length)
        x = self._embed(source[:, :S], jnp.arange(S), None)
        bias = jnp.where(np.tri(S, dtype=bool), 0.0, MASKED)
        M = max_length * beam_size
        room = jnp.zeros((B, c.kv_heads, M, c.head_dim), c.activation_dtype)
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            x, key, value = layer.prefill(x, bias, None)
            keys = jnp.swapaxes(jnp.concatenate([key, room], axis=2), 2, 3)
            layers[f"layer_{i}"] = {"key": keys, "value": jnp.concatenate([value, room], axis=2)}
        position = jnp.full(B, S, jnp.int32)
        return {
            "position": position,
            "slots": Slots.after(position, beam_size, S + M),
            "pending": source[:, S],
            "layers": layers,
        }

    def step(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """Feeds tokens int32[B, K] at each row's position; returns logits float32[B, K, V] and the new cache.

        What is fed first is ignored for the last token of the caption.
        """
        c, index = self.config, cache["position"]
        slots, chosen = cache["slots"].take(index)
        tokens = jnp.where(index[:, None] == c.text_length, cache["pending"][:, None], tokens)
        # Beyond the last position nothing that is computed is used.
        position = jnp.minimum(index, c.max_length - 1)
        x = self._embed(tokens, jnp.broadcast_to(position[:, None], tokens.shape), None)
        masks = jnp.asarray(attention_masks(c))[:, position]  # [L, B, positions]
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            name = f"layer_{i}"
            in_sight = jnp.take_along_axis(masks[i], jnp.minimum(slots.position, c.max_length - 1), axis=1)
            bias = jnp.where(slots.seen & in_sight[:, None], 0.0, MASKED)[:, None]
            x, layers[name] = layer.step(x, cache["layers"][name], chosen, index, bias, None)
        logits = self.logits(self.decoder.finish(x), position[:, None])
        return logits, {**cache, "position": index + 1, "slots": slots, "layers": layers}


@dataclass(frozen=True)
class IncrementalTextToImage:
    """The decode interface of a `TextToImage`, as pure functions of its parameters: the source is the caption."""

    model: TextToImage

    def _apply(self, params: Params, *args: Any, method: str) -> Any:
        model = self.model.clone(config=plain(self.model.config))
        return model.apply({"params": unroll(params)}, *args, method=method)

    def start(self, params: Params, source: Array, beam_size: int, max_length: int) -> Cache:
        return self._apply(params, source, beam_size, max_length, method="start")

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        return self._apply(params, cache, tokens, method="step")

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        return {**cache, "slots": cache["slots"].reorder(parents)}
