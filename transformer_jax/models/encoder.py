"""The encoder alone (Devlin et al. 2019): its configuration, and the models that stand on it, which fill in masked
tokens or classify sentences and tokens.

Notation: B batch, T length, D d_model, V vocabulary, C labels. The parameters of the encoder have the same paths in all
models, so that one can start from another's.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from transformer_jax.models.attention import own_segment
from transformer_jax.models.layers import (
    Embedding,
    Norm,
    OutputBias,
    Seeds,
    Weights,
    draw_normal,
    dropout,
    linear_logits,
    need,
    product,
)
from transformer_jax.models.positions import positions_in, sinusoidal
from transformer_jax.models.taps import Network, tap
from transformer_jax.models.transformer import ACTIVATIONS, BlockConfig, Stack


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(BlockConfig):
    """Hyperparameters of one encoder.

    Attributes:
      num_types: rows of the table that tells a first text from a second one (BERT: 2); 0: there is no such table.
      embedding_norm: a norm over the sum of the embeddings, before its dropout, as in BERT.
      scale_embeddings: token embeddings times √D (Vaswani et al. 2017, section 3.4); BERT does not.
      pooler: a layer tanh(W·x + b) over the state of the first token, which sentence classification reads. Masked
        tokens do not train it: it is for weights that come with one.
      initializer: "bert" draws every matrix and table from N(0, 0.02²); "xavier" is the encoder-decoder's.
    """

    vocab_size: int
    num_layers: int
    num_types: int
    embedding_norm: bool
    scale_embeddings: bool
    pooler: bool
    initializer: Literal["xavier", "bert"]

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.num_types >= 0, f"num_types is {self.num_types}; it must be at least 0 (no types).")


class Encoder(Network):
    """Tokens to states that each see all the others of their segment.

    Points: ``embeddings`` [B, T, D], and ``logits`` of the models that stand on it.
    """

    num_inputs = 2
    last_stack = "encoder"
    config: EncoderConfig

    def setup(self) -> None:
        c = self.config
        self.embedding = Embedding(c.vocab_size, c.d_model)
        if c.positions == "learned":
            self.positions = Embedding(c.max_length, c.d_model, ("positions", "embed"))
        if c.num_types:
            self.types = Embedding(c.num_types, c.d_model, ("types", "embed"))
        if c.embedding_norm:
            self.embedding_norm = Norm(c.norm, c.norm_epsilon)
        self.encoder = Stack(c, c.num_layers, causal=False, has_memory=False)
        if c.pooler:
            self.pooler_weights = Weights((c.d_model, c.d_model), ("embed", None), use_bias=True, name="pooler")

    def states(self, inputs: Array, segments: Array, types: Array | None = None, seeds: Seeds = None) -> Array:
        """The last states [B, T, D].

        Args:
          inputs: int32[B, T].
          segments: int32[B, T]: positions see their own segment only, and count from its start, so that texts packed
            into a row are as in rows of their own. 0 is padding.
          types: int32[B, T], below num_types; None: all 0.
        """
        c = self.config
        need(
            inputs.shape[1] <= c.max_length,
            f"an input of {inputs.shape[1]} tokens exceeds max_length={c.max_length}; cut it, or raise it.",
        )
        x = self.embedding()[inputs]
        if c.scale_embeddings:
            x = x * c.d_model**0.5
        if c.positions in ("sinusoidal", "learned"):
            learned = c.positions == "learned"
            table = self.positions() if learned else jnp.asarray(sinusoidal(c.max_length, c.d_model))
            x = x + table[positions_in(segments)]
        if c.num_types:
            x = x + self.types()[jnp.zeros_like(inputs) if types is None else types]
        if c.embedding_norm:
            x = self.embedding_norm(x)
        x = tap(self, "embeddings", x.astype(c.activation_dtype))
        x = dropout(x, seeds, "embedding", c.embedding_dropout_rate)
        return self.encoder(x, own_segment(segments, segments), None, None, seeds)

    def pooled(self, states: Array) -> Array:
        """tanh(W·x + b) of the first token's states: [B, T, D] -> [B, D]."""
        kernel, bias = self.pooler_weights()
        assert bias is not None
        y = product(states[:, 0], kernel, self.config.product_dtype)
        return jnp.tanh(y + bias.astype(states.dtype))

    def __call__(self, inputs: Array, segments: Array, types: Array | None = None, seeds: Seeds = None) -> Array:
        x = self.states(inputs, segments, types, seeds)
        if self.is_initializing() and self.config.pooler:
            self.pooled(x)
        return x


class MaskedLanguageModel(Encoder):
    """``model.apply({"params": params}, inputs, segments)`` gives logits float32[B, T, V] of the token that belongs at
    each position.
    """

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.transform_weights = Weights((c.d_model, c.d_model), ("embed", None), use_bias=True, name="transform")
        self.transform_norm = Norm(c.norm, c.norm_epsilon)
        self.output_bias = OutputBias(c.vocab_size)

    def hidden(self, inputs: Array, segments: Array, types: Array | None = None, seeds: Seeds = None) -> Array:
        """What `output_table` and `output_bias` make logits of: [B, T, D]."""
        c = self.config
        x = Encoder.__call__(self, inputs, segments, types, seeds)
        kernel, bias = self.transform_weights()
        assert bias is not None
        x = product(x, kernel, c.product_dtype) + bias.astype(x.dtype)
        return self.transform_norm(ACTIVATIONS[c.activation](x))

    def output_table(self) -> Array:
        """The last linear layer, float32[V, D + 1]: the table of the embeddings, and its bias as the last column."""
        return jnp.concatenate([self.embedding(), self.output_bias()[:, None]], axis=1)

    def logits(self, hidden: Array) -> Array:
        """[B, T, D] -> float32[B, T, V]."""
        return tap(self, "logits", linear_logits(hidden, self.output_table(), self.config.product_dtype))

    def __call__(self, inputs: Array, segments: Array, types: Array | None = None, seeds: Seeds = None) -> Array:
        return self.logits(self.hidden(inputs, segments, types, seeds))


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(EncoderConfig):
    """Hyperparameters of an encoder that classifies.

    Attributes:
      level: what has a label: each "sentence" (or pair of them), or each "token".
      pooling: of a sentence's states, what its label follows from: "first" is the first token's, through the pooler
        if there is one, as in BERT; "mean" is their mean.
    """

    num_labels: int
    level: Literal["sentence", "token"]
    pooling: Literal["first", "mean"]

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.num_labels >= 1, f"num_labels is {self.num_labels}; it must be at least 1.")
        need(
            not self.pooler or (self.level == "sentence" and self.pooling == "first"),
            f"pooler=True reads the first state of a sentence, but level={self.level!r} and pooling={self.pooling!r}; "
            "set pooler=False.",
        )


class Classifier(Encoder):
    """``model.apply({"params": params}, inputs, segments)`` gives logits float32[B, C], or [B, T, C] of tokens."""

    config: ClassifierConfig

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.label_weights = Weights((c.d_model, c.num_labels), ("embed", None), use_bias=True, name="labels")

    def __call__(self, inputs: Array, segments: Array, types: Array | None = None, seeds: Seeds = None) -> Array:
        """Rows of one text each: ``segments`` is 1 where there is one."""
        c = self.config
        x = self.states(inputs, segments, types, seeds)
        if c.level == "sentence" and c.pooling == "mean":
            here = (segments > 0)[..., None]
            x = jnp.sum(jnp.where(here, x, 0.0), axis=1) / jnp.maximum(jnp.sum(here, axis=1), 1)
        elif c.level == "sentence":
            x = self.pooled(x) if c.pooler else x[:, 0]
        x = dropout(x.astype(jnp.float32), seeds, "classifier", c.dropout_rate)
        kernel, bias = self.label_weights()
        assert bias is not None
        return tap(self, "logits", x @ kernel + bias)


def initial_parameters(model: Encoder, rng: Array) -> Any:
    """Parameters, boxed with their logical axis names, as ``config.initializer`` says."""
    tokens = jnp.ones((1, 2), jnp.int32)
    boxed = model.init(rng, tokens, tokens)["params"]
    return boxed if model.config.initializer == "xavier" else draw_normal(boxed, rng, 0.02, output_std=0.02)
