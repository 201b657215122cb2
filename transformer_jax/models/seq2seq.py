"""What all encoder-decoders have in common: the tables of tokens, tied or not, and the logits of the last states."""

from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.models.layers import Embedding, OutputBias, Seeds, dropout, linear_logits, need
from transformer_jax.models.taps import Network, tap
from transformer_jax.models.tokens import BOS_ID

Tying = Literal["none", "source_target", "target_output", "all"]
"""Which of the tables of source tokens, target tokens and the output are one."""


class Segments(NamedTuple):
    """Which pair of its row each token belongs to, where several share one: int32[B, S] and int32[B, T], from 1 and in
    order; 0 is padding. A pair is then as in a row of its own."""

    source: Array
    target: Array


def check_tying(config: Any) -> None:
    """Raises: UserError where two vocabularies of different sizes are to share a table."""
    need(
        config.tie_embeddings not in ("source_target", "all") or config.source_vocab_size == config.target_vocab_size,
        f"tie_embeddings={config.tie_embeddings!r} shares one table between the languages, but their vocabularies "
        f"have {config.source_vocab_size} and {config.target_vocab_size} entries; use tokenizer.joint=True, "
        "or tie_embeddings='target_output' or 'none'.",
    )


class Seq2Seq(Network):
    """An encoder-decoder of any architecture, which is a subclass.

    ``model.apply({"params": params}, source, target)`` gives logits float32[B, T, V], where position t predicts
    ``target[:, t]`` from the source and ``target[:, :t]``: the shift to the right happens inside. Training asks for
    `hidden` and `output_table`, translation for `incremental`, analysis for `plain`.

    Point: ``logits`` float32[B, T, V].
    """

    config: Any
    num_inputs: ClassVar[int] = 2

    def setup_tables(self) -> None:
        c = self.config
        if c.tie_embeddings in ("source_target", "all"):
            self.shared_embedding = Embedding(c.target_vocab_size, c.d_model)
        else:
            self.source_embedding = Embedding(c.source_vocab_size, c.d_model)
            self.target_embedding = Embedding(c.target_vocab_size, c.d_model)
        if c.tie_embeddings in ("none", "source_target"):
            self.output_embedding = Embedding(c.target_vocab_size, c.d_model)
        if c.output_bias:
            self.output_bias = OutputBias(c.target_vocab_size)

    def _table(self, side: str) -> Array:
        return getattr(self, f"{side}_embedding" if hasattr(self, f"{side}_embedding") else "shared_embedding")()

    def look_up(self, side: str, tokens: Array, seeds: Seeds, cut: float) -> Array:
        """√D · E[token] (Vaswani et al. 2017, section 3.4), [B, T, D]; of a share ``cut`` of the tokens, zeros instead
        (token cutoff, Shen et al. 2020)."""
        x = self._table(side)[tokens] * self.config.d_model**0.5
        if cut:
            x = jnp.where(dropout(jnp.ones(tokens.shape), seeds, f"{side}_cutoff", cut)[..., None] > 0, x, 0.0)
        return x

    def check_length(self, what: str, length: int, advice: str) -> None:
        """Raises: UserError for more tokens than max_length."""
        limit = self.config.max_length
        need(length <= limit, f"{what} {length} tokens exceeds max_length={limit}; {advice}")

    def hidden(
        self, source: Array, target: Array, seeds: Seeds = None, cut: float = 0.0, segments: Segments | None = None
    ) -> Array:
        """The decoder's last states [B, T, D] under teacher forcing; `logits` of them predict ``target``."""
        raise NotImplementedError

    @nn.nowrap
    def plain(self) -> Self:
        """The same model as it runs anywhere and can be looked into."""
        return self

    @nn.nowrap
    def incremental(self) -> Any:
        """Its decode interface: what `decoding.interface` calls a `Decodable`."""
        raise NotImplementedError

    def output_table(self) -> Array:
        """The last linear layer, tied or its own: float32[V, D], or [V, D + 1] where the last column is its bias."""
        untied = self.config.tie_embeddings in ("none", "source_target")
        table = self.output_embedding() if untied else self._table("target")
        return jnp.concatenate([table, self.output_bias()[:, None]], axis=1) if self.config.output_bias else table

    def logits(self, hidden: Array) -> Array:
        """[B, T, D] -> float32[B, T, V]."""
        return tap(self, "logits", linear_logits(hidden, self.output_table(), self.config.product_dtype))

    def __call__(self, source: Array, target: Array, seeds: Seeds = None) -> Array:
        return self.logits(self.hidden(source, target, seeds))


def shifted(target: Array) -> Array:
    """What the decoder reads to predict target int32[B, T]: BOS, then all but the last token."""
    return jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS_ID)
