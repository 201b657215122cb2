"""The recurrent encoder-decoder that the Transformer replaced: LSTMs, without attention or with Bahdanau's or Luong's.

Without attention it is Sutskever et al. 2014 with a bidirectional encoder: the decoder starts from the encoder's last
states and sees nothing else of the source.

Notation: B batch, T target length, S source length, D d_model, V vocabulary, K beams, Q queries a row: 1 in teacher
forcing, K in decoding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from transformer_jax.models.attention import MASKED
from transformer_jax.models.layers import Seeds, Weights, at_use, dropout, fold_in, need
from transformer_jax.models.recurrence import Lstm, LstmWeights, Product, Run, direct, lstm, run_side_by_side, scan
from transformer_jax.models.seq2seq import Segments, Seq2Seq, Tying, check_tying, shifted
from transformer_jax.models.taps import COLLECTION, edit_step, tap, tapped
from transformer_jax.models.tokens import PAD_ID

Cache = dict[str, Any]
Params = Any
Points = dict[str, Array]
Edit = Callable[[str, Array], Array]
State = tuple[Array, Array]
"""Output and cell of an LSTM, [B, D] or, of beams, [B, K, D]."""


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Hyperparameters. A dropout mask is drawn once a sequence and used at all its steps (Gal and Ghahramani 2016).

    Raises: UserError for an impossible combination, naming the values and what would do.
    """

    architecture: Literal["lstm"] = "lstm"
    source_vocab_size: int
    target_vocab_size: int
    d_model: int = 512  # of embeddings, memory and decoder; each direction of the encoder has half
    num_layers: int = 2  # of the encoder, and as many of the decoder
    attention: Literal["none", "bahdanau", "luong"] = "luong"
    tie_embeddings: Tying = "all"
    output_bias: bool = False  # a bias on each logit
    max_length: int = 1024
    dropout_rate: float = 0.2  # of what layers give
    embedding_dropout_rate: float = 0.2
    recurrent_dropout_rate: float = 0.0  # of the output that goes from step to step
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("source_vocab_size", "target_vocab_size", "d_model", "num_layers", "max_length"):
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1.")
        need(self.d_model % 2 == 0, f"d_model is {self.d_model}; it must be even, for the encoder's two directions.")
        check_tying(self)
        for name in ("dropout_rate", "embedding_dropout_rate", "recurrent_dropout_rate"):
            rate = getattr(self, name)
            need(0.0 <= rate < 1.0, f"{name} is {rate}; it must be at least 0 and below 1.")

    @property
    def product_dtype(self) -> str:
        """Of the operands of products with weights."""
        return self.dtype


def sequence_dropout(x: Array, seeds: Seeds, site: str, rate: float) -> Array:
    """Dropout of x[B, T, D] with one mask [B, 1, D] for all T."""
    return x if seeds is None or not rate else x * dropout(jnp.ones_like(x[:, :1]), seeds, site, rate)


def recurrent_mask(seeds: Seeds, site: str, rate: float, like: Array) -> Array | None:
    """A mask [B, H] for the states [B, H] that go from step to step; None where nothing is dropped."""
    return None if seeds is None or not rate else dropout(jnp.ones_like(like), seeds, site, rate)


def gathering(layer: Any, module: nn.Module) -> Any:
    """The layer's class, which under fsdp gathers its own parameters when its turn comes."""
    if module.is_initializing():
        return layer
    dtype = module.config.dtype  # type: ignore[attr-defined]
    return nn.map_variables(layer, "params", lambda parts: at_use(parts, dtype))


class EncoderLayer(nn.Module):
    """An LSTM of D/2 units in each direction. Point: ``output`` [B, S, D]."""

    config: RecurrentConfig

    def setup(self) -> None:
        units = self.config.d_model // 2
        self.forward, self.backward = Lstm(self.config.d_model, units), Lstm(self.config.d_model, units)

    def __call__(self, x: Array, real: Array, seeds: Seeds) -> tuple[Array, State]:
        """x[B, S, D], real bool[B, S] -> outputs [B, S, D], and the last state [B, D] of both directions.

        The states stand still at padding, so the backward direction begins at each row's last token.
        """
        zeros = jnp.zeros((x.shape[0], self.config.d_model // 2), x.dtype)
        runs = {}
        for name, way in (("forward", 1), ("backward", -1)):
            weights: LstmWeights = getattr(self, name)()
            gates = jnp.einsum("bsi,igh->sbgh", x, weights.input.astype(x.dtype)) + weights.bias.astype(x.dtype)
            mask = recurrent_mask(seeds, name, self.config.recurrent_dropout_rate, zeros)
            runs[name] = Run(gates[::way], weights.recurrent.astype(x.dtype), mask, (zeros, zeros), real.T[::way])
        found = run_side_by_side(runs)
        (ahead, last_ahead), (back, last_back) = found["forward"], found["backward"]
        y = tap(self, "output", jnp.concatenate([ahead, back[::-1]], axis=-1).swapaxes(0, 1))
        h, cell = (jnp.concatenate(pair, axis=-1) for pair in zip(last_ahead, last_back, strict=True))
        return sequence_dropout(y, seeds, "output", self.config.dropout_rate), (h, cell)


class Encoder(nn.Module):
    """The encoder's layers. Point: ``output`` [B, S, D]."""

    config: RecurrentConfig

    def setup(self) -> None:
        for i in range(self.config.num_layers):
            setattr(self, f"layer_{i}", gathering(EncoderLayer, self)(self.config))

    def __call__(self, x: Array, real: Array, seeds: Seeds) -> tuple[Array, list[State]]:
        """x[B, S, D] -> memory [B, S, D], and the last state [B, D] of every layer."""
        states = []
        for i in range(self.config.num_layers):
            x, state = getattr(self, f"layer_{i}")(x, real, fold_in(seeds, i))
            states.append(state)
        return tap(self, "output", x), states


class CrossAttention(nn.Module):
    """The weights of attention to the memory, and of the layer that joins what it finds to the decoder's state.

    Bahdanau et al. 2015 (appendix A.1.2): scores v·tanh(W_q s + W_k m) of the top state s before the step, whose input
    the context joins. Luong et al. 2015: scores s·W_k m ("general", eq. 8) of the top state after the step; the joined
    output is part of the next step's input (input feeding, section 3.3). Both join by tanh(W [context; s]) (eq. 5).

    Points: ``weights`` float32[B, 1, T, S], ``context`` [B, T, D].
    """

    config: RecurrentConfig

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        D = self.config.d_model
        shapes = {"key": (D, D), "join": (2 * D, D)}
        if self.config.attention == "bahdanau":
            shapes |= {"query": (D, D), "score": (D, 1)}
        return {name: Weights(shape, ("embed", "units"), name=name)()[0] for name, shape in shapes.items()}


class DecoderLayer(nn.Module):
    """The weights of one decoder layer, the last one's attention included. Point: ``output`` [B, T, D]."""

    config: RecurrentConfig
    num_inputs: int
    attends: bool

    def setup(self) -> None:
        self.cell = Lstm(self.num_inputs, self.config.d_model)
        if self.attends:
            self.cross_attention = CrossAttention(self.config)

    def __call__(self) -> tuple[LstmWeights, dict[str, Array]]:
        return self.cell(), self.cross_attention() if self.attends else {}


class Decoder(nn.Module):
    """The decoder's layers. Point: ``output`` [B, T, D], after attention if there is any.

    An edit of what a layer gives changes what is made of it above, not the state that the layer itself goes on from.
    """

    config: RecurrentConfig

    def setup(self) -> None:
        c, attends = self.config, self.config.attention != "none"
        for i in range(c.num_layers):
            num_inputs = 2 * c.d_model if attends and i == 0 else c.d_model  # the context or the last output comes in
            layer = gathering(DecoderLayer, self)(c, num_inputs, attends and i == c.num_layers - 1)
            setattr(self, f"layer_{i}", layer)

    def weights(self, dtype: Any) -> dict[str, Array]:
        """All weights by the names that `cell` has for them; ``input_0`` is what the embeddings are multiplied by."""
        found: Points = {}
        D = self.config.d_model
        for i in range(self.config.num_layers):
            part, attention = getattr(self, f"layer_{i}")()
            found |= {f"input_{i}": part.input[:D], f"recurrent_{i}": part.recurrent, f"bias_{i}": part.bias}
            if len(part.input) > D:
                found["fed"] = part.input[D:]
            found |= attention
        return {name: weight.astype(dtype) for name, weight in found.items()}

    def masks(self, seeds: Seeds, like: Array) -> Points:
        """Dropout masks [B, 1, D] for all steps, by the names of what they are multiplied with."""
        if seeds is None:
            return {}
        c, ones, rates = self.config, jnp.ones((len(like), 1, self.config.d_model), like.dtype), {}
        for i in range(c.num_layers):
            rates[f"h_{i}"] = c.recurrent_dropout_rate
            rates[f"layer_{i}"] = c.dropout_rate if i < c.num_layers - 1 else 0.0
        rates["output"] = c.dropout_rate
        return {name: dropout(ones, seeds, name, rate) for name, rate in rates.items() if rate}

    def remember(self, weights: Points, memory: Array, bias: Array) -> Points:
        """What attention asks besides its weights, of memory [B, S, D] and bias float32[B, 1, S]."""
        if self.config.attention == "none":
            return {}
        return {"memory": memory, "keys": memory @ weights["key"], "bias": bias}

    def cell(self, product: Product, given: Points, edit: Edit, state: Points, gates: Array) -> tuple[Points, Points]:
        """One step of all layers.

        Args:
          product: multiplies with weights and, for attention, with ``keys`` and ``memory``.
          given: what is the same at all steps: biases, masks, what else attention asks.
          edit: ``edit(point, value)``, by which everything passes that has a name.
          state: of each layer ``h_i`` and ``c_i`` [B, Q, D]; with input feeding ``fed`` [B, Q, D].
          gates: [B, Q, 4, D], the embeddings' part of the first layer's gates.
        Returns: the state after the step, and what passed, by name, with ``output`` [B, Q, D].
        """
        c, state, points, last = self.config, dict(state), {}, self.config.num_layers - 1

        def passing(point: str, value: Array) -> Array:
            points[point] = edit(point, value)
            return points[point]

        def masked(name: str, x: Array) -> Array:
            return x * jax.lax.stop_gradient(given[f"mask_{name}"]) if f"mask_{name}" in given else x

        def attend(query: Array) -> Array:
            if c.attention == "luong":
                scores = product("keys", "bqd,bsd->bqs", query)
            else:
                query = product("query", "bqi,id->bqd", query)
                scores = jnp.tanh(query[:, :, None] + given["keys"][:, None]) @ given["score"][:, 0]
            weights = jax.nn.softmax(scores.astype(jnp.float32) + jax.lax.stop_gradient(given["bias"]), axis=-1)
            weights = passing(f"layer_{last}/cross_attention/weights", weights[:, None])[:, 0]
            context = product("memory", "bqs,bsd->bqd", weights.astype(query.dtype))
            return passing(f"layer_{last}/cross_attention/context", context)

        if c.attention == "bahdanau":
            context = fed = attend(state[f"h_{last}"])
        if c.attention == "luong":
            fed = state["fed"]
        if c.attention != "none":
            gates = gates + product("fed", "bqi,igd->bqgd", fed)
        for i in range(c.num_layers):
            gates = gates + product(f"recurrent_{i}", "bqi,igd->bqgd", masked(f"h_{i}", state[f"h_{i}"]))
            state[f"h_{i}"], state[f"c_{i}"] = lstm(gates, state[f"c_{i}"])
            y = masked(f"layer_{i}", passing(f"layer_{i}/output", state[f"h_{i}"]))
            if i < last:
                gates = product(f"input_{i + 1}", "bqi,igd->bqgd", y) + given[f"bias_{i + 1}"]
        if c.attention == "luong":
            context = attend(y)
        if c.attention != "none":
            y = jnp.tanh(product("join", "bqi,id->bqd", jnp.concatenate([context, y], axis=-1)))
        y = passing("output", masked("output", y))
        if c.attention == "luong":
            state["fed"] = y
        return state, points

    def __call__(self, x: Array, memory: Array, bias: Array, states: list[State], seeds: Seeds) -> Array:
        """x[B, T, D] -> [B, T, D], from memory [B, S, D], its bias float32[B, 1, S] and the encoder's last states."""
        weights, masks = self.weights(x.dtype), self.masks(seeds, x)
        gates = jnp.einsum("bti,igd->tbgd", x, weights["input_0"]) + weights["bias_0"]
        if self.config.attention == "none":
            return self._layer_by_layer(gates, weights, masks, states)
        steps, named = x.shape[1], tapped(self)
        remembered = self.remember(weights, memory, bias)
        given = remembered | {f"mask_{name}": mask for name, mask in masks.items()}
        given |= {name: weight for name, weight in weights.items() if name.startswith(("bias", "score"))}
        names = [name for name in weights if name not in ("key", "input_0", *given)]
        used = {name: weights[name] for name in names} | {"memory": memory}
        if self.config.attention == "luong":
            used["keys"] = given.pop("keys")

        def step(product: Product, given: Points, state: Points, now: tuple[Array, Array]) -> tuple[Points, Points]:
            edit = lambda point, value: edit_step(self, point, value, now[1], steps)
            state, points = self.cell(product, given, edit, state, now[0])
            return state, points if named else {"output": points["output"]}

        first = self.first_state(states, 1)
        _, found = scan(step, used, given, first, (gates[:, :, None], jnp.arange(steps)))
        found = {name: jnp.moveaxis(value[..., 0, :], 0, -2) for name, value in found.items()}
        if named:
            self._keep(found)
        return found["output"]

    def _layer_by_layer(self, gates: Array, weights: Points, masks: Points, states: list[State]) -> Array:
        """Without attention no layer waits for the one above, so all steps of each are one product and one scan."""
        for i, state in enumerate(states):
            mask = masks[f"h_{i}"][:, 0] if f"h_{i}" in masks else None
            (y, _) = run_side_by_side({"": Run(gates, weights[f"recurrent_{i}"], mask, state, None)})[""]
            y = tap(getattr(self, f"layer_{i}"), "output", y.swapaxes(0, 1)).swapaxes(0, 1)
            y = y * masks[f"layer_{i}"][:, 0] if f"layer_{i}" in masks else y
            if i + 1 < len(states):
                gates = jnp.einsum("tbi,igd->tbgd", y, weights[f"input_{i + 1}"]) + weights[f"bias_{i + 1}"]
        y = y * masks["output"][:, 0] if "output" in masks else y
        return tap(self, "output", y.swapaxes(0, 1))

    def _keep(self, points: Points) -> None:
        """Sows what has passed `cell`, edited as it is."""
        for name, value in points.items():
            *path, point = name.split("/")
            module: nn.Module = self
            for part in path:
                module = getattr(module, part)
            module.sow(COLLECTION, point, value)

    def first_state(self, states: list[State], width: int) -> Points:
        """The state before the first step, for so many queries a row."""
        spread = lambda x: jnp.repeat(x[:, None], width, axis=1)
        state: Points = {}
        for i, (h, cell) in enumerate(states):
            state |= {f"h_{i}": spread(h), f"c_{i}": spread(cell)}
        if self.config.attention == "luong":
            state["fed"] = jnp.zeros_like(state["h_0"])
        return state

    def step(self, x: Array, state: Points, remembered: Points) -> tuple[Array, Points]:
        """One step of K beams, x[B, K, D] -> [B, K, D] and the state after it."""
        weights = self.weights(x.dtype)
        gates = jnp.einsum("bki,igd->bkgd", x, weights["input_0"]) + weights["bias_0"]
        edit = lambda point, value: edit_step(self, point, value, 0, value.shape[-2])
        state, points = self.cell(direct(weights | remembered), weights | remembered, edit, state, gates)
        if tapped(self):
            self._keep(points)
        return points["output"], state


class RecurrentEncoderDecoder(Seq2Seq):
    """LSTMs in the place of the Transformer's layers; called, trained and decoded as it is.

    Points: ``source_embeddings`` [B, S, D], ``target_embeddings`` [B, T, D].
    """

    config: RecurrentConfig

    def setup(self) -> None:
        self.setup_tables()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    @nn.nowrap
    def incremental(self) -> "RecurrentDecoder":
        return (RecurrentDecoder if self.config.attention == "none" else AttendingRecurrentDecoder)(self)

    def _embed(self, side: str, tokens: Array, seeds: Seeds = None, cut: float = 0.0) -> Array:
        x = tap(self, f"{side}_embeddings", self.look_up(side, tokens, seeds, cut).astype(self.config.dtype))
        return sequence_dropout(x, seeds, f"{side}_embedding", self.config.embedding_dropout_rate)

    def encode(self, source: Array, seeds: Seeds = None, cut: float = 0.0) -> tuple[Array, Array, list[State]]:
        """source int32[B, S] -> memory [B, S, D], its mask as a bias float32[B, 1, S], and each layer's last state."""
        seeds, real = fold_in(seeds, "encoder"), source != PAD_ID
        memory, states = self.encoder(self._embed("source", source, seeds, cut), real, seeds)
        return memory, jnp.where(real, 0.0, MASKED)[:, None], states

    def hidden(
        self, source: Array, target: Array, seeds: Seeds = None, cut: float = 0.0, segments: Segments | None = None
    ) -> Array:
        need(segments is None, "recurrent networks read a row as one sentence; set batching.packed_length to 0.")
        for side, tokens in (("source", source), ("target", target)):
            self.check_length(f"a {side} of", tokens.shape[1], "split it, or raise it.")
        encoded = self.encode(source, seeds, cut)
        seeds = fold_in(seeds, "decoder")
        return self.decoder(self._embed("target", shifted(target), seeds, cut), *encoded, seeds)

    def start(self, source: Array, beam_size: int, max_length: int) -> Cache:
        """The cache before the first token of K beams. Every leaf has the leading axis B."""
        self.check_length("decoding up to", max_length, "lower the first, or raise the second.")
        memory, bias, states = self.encode(source)
        weights = self.decoder.weights(memory.dtype)
        return {
            "state": self.decoder.first_state(states, beam_size),
            "remembered": self.decoder.remember(weights, memory, bias),
        }

    def step(self, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        """Feeds tokens int32[B, K]; returns logits float32[B, K, V] and the new cache."""
        x, state = self.decoder.step(self._embed("target", tokens), cache["state"], cache["remembered"])
        return self.logits(x), {**cache, "state": state}


@dataclass(frozen=True)
class RecurrentDecoder:
    """The decode interface (start, step, reorder) of a `RecurrentEncoderDecoder`, as pure functions of its
    parameters."""

    model: RecurrentEncoderDecoder

    def start(self, params: Params, source: Array, beam_size: int, max_length: int) -> Cache:
        return self.model.apply({"params": params}, source, beam_size, max_length, method="start")

    def step(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache]:
        return self.model.apply({"params": params}, cache, tokens, method="step")

    def reorder(self, cache: Cache, parents: Array) -> Cache:
        """Beam k goes on from beam parents[b, k]: the states move; what is remembered of the source is every beam's."""
        move = lambda leaf: jnp.take_along_axis(leaf, parents[:, :, None], axis=1)
        return {**cache, "state": jax.tree.map(move, cache["state"])}


class AttendingRecurrentDecoder(RecurrentDecoder):
    """As `RecurrentDecoder`, of a model with attention."""

    def step_with_attention(self, params: Params, cache: Cache, tokens: Array) -> tuple[Array, Cache, Array]:
        """As `step`, with the attention float32[B, K, S]."""
        (logits, cache), kept = self.model.apply({"params": params}, cache, tokens, method="step", mutable=[COLLECTION])
        last = f"layer_{self.model.config.num_layers - 1}"
        return logits, cache, kept[COLLECTION]["decoder"][last]["cross_attention"]["weights"][0][:, 0]
