"""The encoder-decoder Transformer: configuration, layer, stack, model, and its incremental decoder.

Notation: B batch, T target length, S source length, D d_model, H heads, F d_ff, V vocabulary, K beams.
The paper's own choices (Vaswani et al. 2017) are the defaults.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.models.attention import MASKED, MultiHeadAttention, own_segment
from transformer_jax.models.layers import Embedding, Norm, Seeds, Weights, at_use, dropout, fold_in, need, product
from transformer_jax.models.positions import RelativeBias, alibi, positions_in, sinusoidal
from transformer_jax.models.seq2seq import Segments, Seq2Seq, Tying, check_tying, shifted
from transformer_jax.models.slots import Slots, write
from transformer_jax.models.taps import COLLECTION, tap, tapped
from transformer_jax.models.tokens import BOS_ID, PAD_ID

Params = Any
Cache = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Hyperparameters of the layers, which all families share; switches are orthogonal.

    Raises: UserError for an impossible combination, naming the values and what would do.
    """

    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    num_kv_heads: int | None = None  # None: as many as num_heads; 1: multi-query; between: grouped
    max_length: int = 1024
    norm_placement: Literal["pre", "post"] = "post"
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    norm_epsilon: float = 1e-6
    positions: Literal["sinusoidal", "learned", "rotary", "relative", "alibi", "none"] = "sinusoidal"
    activation: Literal["relu", "gelu", "gelu_exact", "silu", "reglu", "geglu", "swiglu"] = "relu"  # ACTIVATIONS
    attention_bias: bool = False
    attention_implementation: Literal["plain", "xla", "cudnn"] = "plain"  # ours, or one of jax.nn's; cudnn is fused
    feed_forward_bias: bool = True
    dropout_rate: float = 0.1  # after each sublayer
    embedding_dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    dtype: Literal["float32", "bfloat16_products", "bfloat16"] = "float32"  # activations', but see product_dtype
    remat: Literal["none", "weights", "dots", "full"] = "none"  # what is computed anew backwards: REMAT_POLICIES
    scan_layers: bool = False

    def __post_init__(self) -> None:
        for name in [field.name for field in dataclasses.fields(self)]:
            counted = name.endswith("vocab_size") or (name.startswith("num_") and name.endswith("layers"))
            if counted or name in ("d_model", "d_ff", "num_heads", "max_length"):
                need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1.")
        divisors = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
        need(
            self.d_model % self.num_heads == 0,
            f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}; "
            f"num_heads may be one of {divisors}.",
        )
        need(
            self.kv_heads >= 1 and self.num_heads % self.kv_heads == 0,
            f"num_heads={self.num_heads} is not divisible by num_kv_heads={self.num_kv_heads}; "
            f"num_kv_heads may be one of {[n for n in divisors if self.num_heads % n == 0]}.",
        )
        need(
            self.positions != "rotary" or self.head_dim % 2 == 0,
            f"rotary positions need an even head size; d_model={self.d_model} / num_heads={self.num_heads} is "
            f"{self.head_dim}.",
        )
        need(
            self.positions != "sinusoidal" or self.d_model % 2 == 0,
            f"sinusoidal positions need an even d_model; it is {self.d_model}.",
        )
        need(
            self.attention_implementation == "plain" or self.attention_dropout_rate == 0.0,
            f"attention_implementation={self.attention_implementation!r} has no dropout of attention weights; set "
            f"attention_dropout_rate={self.attention_dropout_rate} to 0, or use 'plain'.",
        )
        need(
            self.attention_implementation != "cudnn" or (self.dtype == "bfloat16" and self.head_dim % 8 == 0),
            "attention_implementation='cudnn' needs dtype='bfloat16' and a head size that is a multiple of 8; they are "
            f"{self.dtype!r} and {self.head_dim}.",
        )
        for field in dataclasses.fields(self):
            if field.name.endswith("dropout_rate"):
                rate = getattr(self, field.name)
                need(0.0 <= rate < 1.0, f"{field.name} is {rate}; it must be at least 0 and below 1.")

    @property
    def activation_dtype(self) -> str:
        return "bfloat16" if self.dtype == "bfloat16" else "float32"

    @property
    def product_dtype(self) -> str:
        """What the operands of products with weights are rounded to; parameters and the sums are float32 always."""
        return "float32" if self.dtype == "float32" else "bfloat16"

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(BlockConfig):
    """Hyperparameters of one encoder-decoder."""

    architecture: Literal["transformer"] = "transformer"
    source_vocab_size: int
    target_vocab_size: int
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    tie_embeddings: Tying = "all"
    output_bias: bool = False  # a bias on each logit

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tying(self)


AnyBlocks = TypeVar("AnyBlocks", bound=BlockConfig)


def plain(config: AnyBlocks) -> AnyBlocks:
    """The same model as it runs anywhere and can be looked into: unrolled, nothing computed anew, no fused kernel.

    Parameters fit it after `unroll`.
    """
    return dataclasses.replace(config, scan_layers=False, remat="none", attention_implementation="plain")


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,  # by its tanh approximation, as GPT-2's
    "gelu_exact": partial(nn.gelu, approximate=False),  # by the error function, as BERT's
    "silu": nn.silu,
    "reglu": nn.relu,
    "geglu": nn.gelu,
    "swiglu": nn.silu,
}


class FeedForward(nn.Module):
    """max(0, x·W1 + b1)·W2 + b2 (section 3.3), or another activation, or a gated unit (Shazeer 2020).

    Point: ``neurons`` [B, T, F], after the activation and the gate.
    """

    config: BlockConfig

    @nn.compact
    def __call__(self, x: Array, seeds: Seeds) -> Array:
        c = self.config
        gated = c.activation.endswith("glu")
        act = ACTIVATIONS[c.activation]
        shape, axes = (
            ((c.d_model, 2, c.d_ff), ("embed", "gate", "mlp")) if gated else ((c.d_model, c.d_ff), ("embed", "mlp"))
        )
        kernel, bias = Weights(shape, axes, use_bias=c.feed_forward_bias, name="input")()

        def activate(hidden: Array, bias: Array | None) -> Array:
            hidden = hidden if bias is None else hidden + bias.astype(hidden.dtype)
            return act(hidden[..., 0, :]) * hidden[..., 1, :] if gated else act(hidden)

        if c.activation != "relu":  # which is known backwards from its output; of others the product alone is kept
            activate = jax.checkpoint(activate)
        hidden = tap(self, "neurons", activate(product(x, kernel, c.product_dtype), bias))
        hidden = dropout(hidden, seeds, "activation", c.activation_dropout_rate)
        kernel, bias = Weights((c.d_ff, c.d_model), ("mlp", "embed"), use_bias=c.feed_forward_bias, name="output")()
        y = product(hidden, kernel, c.product_dtype)
        return y if bias is None else y + bias.astype(x.dtype)


class Layer(nn.Module):
    """One layer of either stack: self-attention, cross-attention if there is a memory, feed-forward.

    Points [B, T, D]: the residual stream as ``residual_before`` and ``residual_after`` the layer, and between sublayers
    as ``residual_after_self_attention`` …; what each sublayer gives, before dropout, as ``self_attention_output`` ….
    """

    config: BlockConfig
    causal: bool
    has_memory: bool

    def setup(self) -> None:
        c = self.config
        attention: dict[str, Any] = dict(
            d_model=c.d_model,
            num_heads=c.num_heads,
            num_kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            use_bias=c.attention_bias,
            dropout_rate=c.attention_dropout_rate,
            product_dtype=c.product_dtype,
            implementation=c.attention_implementation,
        )
        self.self_attention = MultiHeadAttention(**attention)
        self.self_attention_norm = Norm(c.norm, c.norm_epsilon)
        if self.has_memory:
            self.cross_attention = MultiHeadAttention(**attention)
            self.cross_attention_norm = Norm(c.norm, c.norm_epsilon)
        self.feed_forward = FeedForward(c)
        self.feed_forward_norm = Norm(c.norm, c.norm_epsilon)

    def _residual(self, x: Array, sublayer: str, apply: Any, seeds: Seeds) -> Array:
        """x + dropout(f(norm(x))) or norm(x + dropout(f(x))) (section 5.4; Xiong et al. 2020 for pre-norm)."""
        norm = getattr(self, f"{sublayer}_norm")
        pre = self.config.norm_placement == "pre"
        x = tap(self, "residual_before", x) if sublayer == "self_attention" else x
        y = tap(self, f"{sublayer}_output", apply(norm(x) if pre else x))
        x = x + dropout(y, seeds, sublayer, self.config.dropout_rate)
        after = "residual_after" if sublayer == "feed_forward" else f"residual_after_{sublayer}"
        return tap(self, after, x if pre else norm(x))

    def __call__(
        self,
        x: Array,
        index: Array,
        self_bias: Array,
        memory: Array | None,
        cross_bias: Array | None,
        positions: Array | None,
        seeds: Seeds,
    ) -> tuple[Array, None]:
        """x[B, T, D] -> [B, T, D]; ``index`` is the layer's number, which its dropout masks depend on."""
        seeds = fold_in(seeds, index)
        self_seeds, cross_seeds = fold_in(seeds, "self"), fold_in(seeds, "cross")
        x = self._residual(
            x,
            "self_attention",
            lambda h: self.self_attention(h, h, self_bias, positions, self_seeds, self.causal),
            seeds,
        )
        if memory is not None:
            x = self._residual(
                x,
                "cross_attention",
                lambda h: self.cross_attention(h, memory, cross_bias, None, cross_seeds),
                seeds,
            )
        return self._residual(x, "feed_forward", lambda h: self.feed_forward(h, seeds), seeds), None

    def prefill(self, x: Array, self_bias: Array, positions: Array | None) -> tuple[Array, Array, Array]:
        """As a layer without memory and dropout, and its keys and values [B, G, T, K] for a cache."""
        kept: dict[str, Array] = {}

        def self_attention(h: Array) -> Array:
            q, kept["key"], kept["value"] = self.self_attention.project(h, positions)
            return self.self_attention.attend(q, kept["key"], kept["value"], self_bias, causal=self.causal)

        x = self._residual(x, "self_attention", self_attention, None)
        return self._residual(x, "feed_forward", lambda h: self.feed_forward(h, None), None), kept["key"], kept["value"]

    def step(
        self, x: Array, cache: Cache, chosen: Array, positions: Array, self_bias: Array, cross_bias: Array | None
    ) -> tuple[Array, Cache]:
        """One position of K beams x[B, K, D], whose keys and values are written to the slots ``chosen`` int32[B, K].

        ``positions`` int32[B]: where each row stands. Cross-attention where the cache has keys for it.
        """
        c, cache = self.config, dict(cache)

        def self_attention(h: Array) -> Array:
            rotations = positions[:, None, None] if c.positions == "rotary" else None
            q, key, value = self.self_attention.project(h, rotations)
            cache["key"], cache["value"] = write(cache["key"], cache["value"], chosen, key, value)
            return self.self_attention.attend(q, jnp.swapaxes(cache["key"], 2, 3), cache["value"], self_bias)

        def cross_attention(h: Array) -> Array:
            q = self.cross_attention.query(h)
            return self.cross_attention.attend(q, cache["cross_key"].swapaxes(2, 3), cache["cross_value"], cross_bias)

        x = self._residual(x, "self_attention", self_attention, None)
        if self.has_memory:
            x = self._residual(x, "cross_attention", cross_attention, None)
        return self._residual(x, "feed_forward", lambda h: self.feed_forward(h, None), None), cache


# Gathering is a custom_vjp; the others only arrange anew what was gathered.
_OF_WEIGHTS = {"custom_vjp_call", "broadcast_in_dim", "concatenate", "reshape", "stack", "transpose"}
REMAT_POLICIES = {
    "weights": lambda primitive, *_, **__: primitive.name not in _OF_WEIGHTS,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": None,
}
"""What a layer keeps for its backward pass: all but the weights gathered over fsdp, which are gathered again, and
norms; the products with weights; its input alone. With "none", no policy: everything, gathered weights too."""


@cache
def layer_class(c: BlockConfig, initializing: bool, watched: bool) -> Any:
    """`Layer` as a stack of this config makes it; the same class every time, as what is traced is kept by class."""
    layer: Any = Layer
    if not initializing:
        # Under fsdp each layer gathers its own parameters, once more on the way back if they are not kept.
        layer = nn.map_variables(layer, "params", lambda parts: at_use(parts, c.activation_dtype))
    if c.remat != "none":
        layer = nn.remat(layer, policy=REMAT_POLICIES[c.remat], prevent_cse=not c.scan_layers)
    if not (initializing or watched or c.scan_layers):
        layer = nn.jit(layer)  # all layers are traced and lowered once; XLA inlines them
    return layer


class Stack(nn.Module):
    """A stack of layers, unrolled (``layer_0``, ``layer_1`` …) or scanned (``layers``, parameters stacked).

    With ``own_bias`` the bias that it is called with has a leading axis of layers, each of which is given its own.

    Point: ``output`` [B, T, D], after the last norm.
    """

    config: BlockConfig
    num_layers: int
    causal: bool
    has_memory: bool
    own_bias: bool = False

    def setup(self) -> None:
        c = self.config
        layer = layer_class(c, self.is_initializing(), tapped(self))
        if c.scan_layers:
            broadcast = (nn.broadcast,) * 4
            self.layers = nn.scan(
                layer,
                variable_axes={"params": 0, COLLECTION: 0},
                split_rngs={"params": True},
                in_axes=(0, 0 if self.own_bias else nn.broadcast, *broadcast),
                length=self.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c, self.causal, self.has_memory)
        else:
            for i in range(self.num_layers):
                setattr(self, f"layer_{i}", layer(c, self.causal, self.has_memory))
        if c.positions == "relative":
            self.relative_bias = RelativeBias(c.num_heads, bidirectional=not self.causal)
        if c.norm_placement == "pre":
            self.final_norm = Norm(c.norm, c.norm_epsilon)

    def unrolled(self) -> list[Layer]:
        return [getattr(self, f"layer_{i}") for i in range(self.num_layers)]

    def position_bias(self, distance: Array) -> Array | None:
        """Bias float32[..., H, T, S] from the distances key - query int32[..., T, S], or None."""
        if self.config.positions == "relative":
            return jnp.moveaxis(self.relative_bias(distance), 0, -3)
        return alibi(distance, self.config.num_heads) if self.config.positions == "alibi" else None

    def __call__(
        self, x: Array, bias: Array | None, memory: Array | None, cross_bias: Array | None, seeds: Seeds
    ) -> Array:
        """x[B, T, D] -> [B, T, D]. ``bias`` masks keys; the causal mask and position biases are added here."""
        c = self.config
        positions = jnp.arange(x.shape[1])
        distance = positions[None, :] - positions[:, None]
        terms = [bias, self.position_bias(distance)]
        if self.causal:
            terms.append(jnp.where(distance <= 0, 0.0, MASKED))
        self_bias: Any = sum(term for term in terms if term is not None)
        rotations = positions if c.positions == "rotary" else None
        shared = (memory, cross_bias, rotations, seeds)
        if c.scan_layers:
            x, _ = self.layers(x, jnp.arange(self.num_layers, dtype=jnp.uint32), self_bias, *shared)
        else:
            for i, layer in enumerate(self.unrolled()):
                x, _ = layer(x, jnp.uint32(i), self_bias[i] if self.own_bias else self_bias, *shared)
        return self.finish(x)

    def finish(self, x: Array) -> Array:
        """What the layers give, as the stack gives it."""
        return tap(self, "output", self.final_norm(x) if self.config.norm_placement == "pre" else x)


class EncoderDecoder(Seq2Seq):
    """The Transformer of Vaswani et al. 2017.

    Points: ``source_embeddings`` [B, S, D], ``target_embeddings`` [B, T, D].
    """

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        self.setup_tables()
        if c.positions == "learned":
            self.source_positions = Embedding(c.max_length, c.d_model, ("positions", "embed"))
            self.target_positions = Embedding(c.max_length, c.d_model, ("positions", "embed"))
        self.encoder = Stack(c, c.num_encoder_layers, causal=False, has_memory=False)
        self.decoder = Stack(c, c.num_decoder_layers, causal=True, has_memory=True)

    @nn.nowrap
    def plain(self) -> "EncoderDecoder":
        return self.clone(config=plain(self.config))

    @nn.nowrap
    def incremental(self) -> "IncrementalDecoder":
        return IncrementalDecoder(self)

    def _embed(self, side: str, tokens: Array, first: Array | int, seeds: Seeds, cut: float = 0.0) -> Array:
        """√D · E[token] + position (section 3.4 and 3.5), for positions first, first + 1, … or for positions as many
        and as arranged as the tokens."""
        c = self.config
        length = tokens.shape[1]
        if isinstance(first, int):
            self.check_length(f"a {side} of", length, "split it, or raise it.")
        x = self.look_up(side, tokens, seeds, cut)
        if c.positions in ("sinusoidal", "learned"):
            learned = c.positions == "learned"
            table = (
                getattr(self, f"{side}_positions")() if learned else jnp.asarray(sinusoidal(c.max_length, c.d_model))
            )
            x = x + (table[first : first + length] if isinstance(first, int) else table[first])
        x = tap(self, f"{side}_embeddings", x.astype(c.activation_dtype))
        return dropout(x, seeds, f"{side}_embedding", c.embedding_dropout_rate)

    def encode(
        self, source: Array, seeds: Seeds = None, cut: float = 0.0, segments: Array | None = None
    ) -> tuple[Array, Array]:
        """source int32[B, S] -> memory [B, S, D] and its mask as a bias float32[B, 1, 1, S], or [B, 1, S, S] if several
        sources share a row (``segments`` int32[B, S])."""
        bias = jnp.where(source == PAD_ID, MASKED, 0.0)[:, None, None, :]
        first: Array | int = 0
        if segments is not None:
            bias, first = own_segment(segments, segments), positions_in(segments)
        seeds = fold_in(seeds, "encoder")
        x = self._embed("source", source, first, seeds, cut)
        return self.encoder(x, bias, None, None, seeds), bias

    def hidden(
        self, source: Array, target: Array, seeds: Seeds = None, cut: float = 0.0, segments: Segments | None = None
    ) -> Array:
        memory, cross_bias = self.encode(source, seeds, cut, segments.source if segments else None)
        inputs, own = shifted(target), None
        first: Array | int = 0
        if segments is not None:
            first = positions_in(segments.target)
            inputs = jnp.where(first == 0, BOS_ID, inputs)
            own = own_segment(segments.target, segments.target)
            cross_bias = own_segment(segments.target, segments.source)
        seeds = fold_in(seeds, "decoder")
        return self.decoder(self._embed("target", inputs, first, seeds, cut), own, memory, cross_bias, seeds)

    def start(self, source: Array, beam_size: int, max_length: int, num_slots: int | None = None) -> Cache:
        """The cache before the first token: cross-attention keys and values of source int32[B, S], and empty slots that
        the K beams share (`Slots`): as many as are given, or K · max_length, which suffice for any search. Every leaf
        has the leading axis B."""
        c = self.config
        self.check_length("decoding up to", max_length, "lower the first, or raise the second.")
        memory, cross_bias = self.encode(source)
        B, M = source.shape[0], num_slots or beam_size * max_length
        values = jnp.zeros((B, c.kv_heads, M, c.head_dim), c.activation_dtype)
        keys = jnp.swapaxes(values, 2, 3)
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            key, value = layer.cross_attention.keys_values(memory)
            # Keys as [B, G, head_dim, S]: the scores' product reads them row by row.
            layers[f"layer_{i}"] = {"key": keys, "value": values, "cross_key": key.swapaxes(2, 3), "cross_value": value}
        index = jnp.zeros(B, jnp.int32)
        return {
            "index": index,
            "slots": Slots.after(index, beam_size, M),
            "cross_bias": cross_bias,
            "layers": layers,
        }

    def step(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """Feeds tokens int32[B, K] at each row's position; returns logits float32[B, K, V] and the new cache."""
        index = cache["index"]
        slots, chosen = cache["slots"].take(index)
        self_bias = jnp.where(slots.seen, 0.0, MASKED)[:, None]
        position_bias = self.decoder.position_bias((slots.position - index[:, None])[:, None, :])
        self_bias = self_bias if position_bias is None else self_bias + position_bias
        # A row that waits to be refilled steps beyond the last position; what it computes is not used.
        positions = jnp.broadcast_to(jnp.minimum(index, self.config.max_length - 1)[:, None], tokens.shape)
        x = self._embed("target", tokens, positions, None)
        layers = {}
        for i, layer in enumerate(self.decoder.unrolled()):
            name = f"layer_{i}"
            x, layers[name] = layer.step(x, cache["layers"][name], chosen, index, self_bias, cache["cross_bias"])
        return self.logits(self.decoder.finish(x)), {**cache, "index": index + 1, "slots": slots, "layers": layers}


def unroll(params: Params) -> Params:
    """Parameters of a scanned model under the names of the unrolled one; unrolled parameters come back as they are.

    A part of the tree will do, if what there is of a stack has all its layers.
    """
    unrolled = dict(params)
    for name, stack in params.items():
        if isinstance(stack, Mapping) and "layers" in stack:
            rest = {key: value for key, value in stack.items() if key != "layers"}
            count = jax.tree.leaves(stack["layers"])[0].shape[0]
            each = {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stack["layers"]) for i in range(count)}
            unrolled[name] = rest | each
    return unrolled


@dataclass(frozen=True)
class IncrementalDecoder:
    """The decode interface (start, step, reorder, has_room) of an `EncoderDecoder`, as pure functions of parameters."""

    model: EncoderDecoder

    def _apply(self, params: Params, *args: Any, method: str, **kwargs: Any) -> Any:
        model = self.model.plain()
        return model.apply({"params": unroll(params)}, *args, method=method, **kwargs)

    def start(
        self, params: Params, source: Array, beam_size: int, max_length: int, num_slots: int | None = None
    ) -> Cache:
        return self._apply(params, source, beam_size, max_length, num_slots, method="start")

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        return self._apply(params, cache, tokens, method="step")

    def step_with_attention(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache, Array]:
        """As `step`, with the last layer's cross-attention float32[B, K, S], averaged over heads."""
        (logits, cache), state = self._apply(params, cache, tokens, method="step", mutable=[COLLECTION])
        last = f"layer_{self.model.config.num_decoder_layers - 1}"
        weights = state[COLLECTION]["decoder"][last]["cross_attention"]["weights"][0]
        return logits, cache, weights.mean(axis=1)

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        return {**cache, "slots": cache["slots"].reorder(parents)}

    def has_room(self, cache: Cache) -> Array:
        return cache["slots"].has_room()
