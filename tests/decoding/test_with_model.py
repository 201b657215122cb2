"""Decoding with the real model: its cache, in bulk, gives what the whole forward pass gives."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.decoding.test_batching import config, same
from transformer_jax.decoding import beam
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.beam import BeamSearch, search
from transformer_jax.decoding.ensemble import EnsembleDecoder
from transformer_jax.decoding.interface import Requests
from transformer_jax.decoding.scoring import Scorer
from transformer_jax.errors import UserError
from transformer_jax.models.recurrent import RecurrentConfig, RecurrentEncoderDecoder
from transformer_jax.models.transformer import EncoderDecoder, TransformerConfig

BASE = TransformerConfig(
    source_vocab_size=50,
    target_vocab_size=50,
    num_encoder_layers=2,
    num_decoder_layers=2,
    d_model=32,
    d_ff=64,
    num_heads=4,
    max_length=40,
    tie_embeddings="all",
)
LSTM = RecurrentConfig(source_vocab_size=50, target_vocab_size=50, num_layers=2, d_model=32, max_length=40)
MODELS = {
    **{name: (EncoderDecoder, BASE, {"positions": name}) for name in ("sinusoidal", "rotary", "relative")},
    **{f"lstm, {name}": (RecurrentEncoderDecoder, LSTM, {"attention": name}) for name in ("none", "luong", "bahdanau")},
}
RNG = np.random.default_rng(0)
SOURCES = [RNG.integers(4, 50, RNG.integers(1, 30)).tolist() for _ in range(23)]
SETTINGS = config(batch_size=4, max_length_factor=0.5, max_length_offset=3, max_target_length=30)


def make(name="sinusoidal", **changes):
    kind, base, own = MODELS[name]
    model = kind(config=dataclasses.replace(base, **own, **changes))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(3), tokens, tokens)["params"])
    # Larger weights: outputs of an untrained model hardly depend on the source, and mistakes would not show.
    return model, jax.tree.map(lambda leaf: leaf * 2.5 if leaf.ndim > 1 else leaf, params)


@pytest.mark.parametrize("name", MODELS)
def test_cached_beams_are_scored_as_by_the_whole_forward_pass(name):
    """Beams that were reordered, rows at different positions: every log-probability is the model's."""
    model, params = make(name)
    found = Decoder(model.incremental(), SETTINGS).decode(params, SOURCES)
    scorer = Scorer(lambda p, s, t: model.apply({"params": p}, s, t), batch_size=8, max_length=40)
    for rank in (0, 1):
        outputs = [hypotheses[rank] for hypotheses in found]
        scores = scorer.score(params, SOURCES, [h.tokens for h in outputs])
        np.testing.assert_allclose([s.sum() for s in scores], [h.log_prob for h in outputs], rtol=2e-4)
    assert len({len(h[0].tokens) for h in found}) > 3
    assert len({tuple(h[0].tokens) for h in found}) > len(SOURCES) // 2


@pytest.mark.parametrize("name", ["sinusoidal", "lstm, luong"])
def test_batch_composition_does_not_change_a_translation(name):
    model, params = make(name)
    decoder = Decoder(model.incremental(), SETTINGS)
    together = decoder.decode(params, SOURCES)
    same([decoder.decode(params, [source])[0] for source in SOURCES], together)
    order = np.random.default_rng(1).permutation(len(SOURCES))
    same(decoder.decode(params, [SOURCES[i] for i in order]), [together[i] for i in order])


def test_what_has_too_few_slots_is_searched_anew(monkeypatch):
    """Some beams have little in common: their sentences are given all the room there is, and nothing changes."""
    models, params = zip(make("relative"), make("sinusoidal"), strict=True)
    model = EnsembleDecoder(tuple(one.incremental() for one in models))
    calls, original = [], Decoder._search

    def recorded(self, params, sentences, widths, length, num_slots):
        calls.append((len(sentences), length, num_slots))
        return original(self, params, sentences, widths, length, num_slots)

    monkeypatch.setattr(beam, "BRANCHES", 40)
    settings = dataclasses.replace(SETTINGS, batch_size=16)
    expected = Decoder(model, settings).decode(params, SOURCES)
    monkeypatch.setattr(Decoder, "_search", recorded)
    monkeypatch.setattr(beam, "BRANCHES", 2)
    same(Decoder(model, settings).decode(params, SOURCES), expected)
    assert all(num_slots == length + 2 * 2 for _, length, num_slots in calls[:-1])
    assert 0 < calls[-1][0] < len(SOURCES)
    assert calls[-1][2] is None


def test_a_row_that_was_once_without_room_stays_unfinished():
    """Stepped on beside others, its beams die and leave slots; but what they had to say was not kept."""
    model, params = make("sinusoidal")
    K, T, B = 3, 16, 24
    rng = np.random.default_rng(1)
    source = np.pad(rng.integers(4, 50, (B, 7)), ((0, 0), (0, 1)), constant_values=1)
    limits = jnp.full(B, T, jnp.int32)
    requests = Requests(jnp.asarray(source), limits, jnp.zeros((B, 0), jnp.int32), jnp.zeros((B, 2), jnp.int32))
    searcher = BeamSearch(model.incremental(), K, 2, 0.6, 0.0, 1, 1.0)
    has_room, step = jax.jit(model.incremental().has_room), jax.jit(searcher.step)
    full = jax.jit(lambda p, r: search(searcher, p, r, T))(params, requests)
    state, ended, again = searcher.start(params, requests, T, T + 4), np.zeros(B, bool), np.zeros(B, bool)
    for _ in range(T):
        room, running = np.asarray(has_room(state.cache)), np.asarray(state.active)
        again |= ended & room
        ended |= running & ~room
        assert not (ended & np.asarray(searcher.active(state))).any()
        state = step(params, state)
    found = searcher.result(state)
    assert again.any(), "no row comes to have room again"
    np.testing.assert_array_equal(found.finished, ~ended)
    np.testing.assert_array_equal(found.tokens[~ended], full.tokens[~ended])
    assert 0 < ended.sum() < B


@pytest.mark.parametrize("name", ["sinusoidal", "lstm, luong"])
def test_coverage_with_the_model(name):
    """The penalty, which is never positive, changes what is chosen."""
    model, params = make(name)
    covering = dataclasses.replace(SETTINGS, coverage_penalty=5.0)
    sources = [source for source in SOURCES if len(source) < 16]
    plain = Decoder(model.incremental(), SETTINGS).decode(params, sources)
    found = Decoder(model.incremental(), covering).decode(params, sources)
    assert any(a[0].tokens != b[0].tokens for a, b in zip(plain, found, strict=True))
    penalties = [h.score - h.log_prob / ((6 + len(h.tokens)) / 6) ** 0.6 for hs in found for h in hs]
    assert max(penalties) < 1e-4
    assert min(penalties) < -1


def test_no_attention_means_no_coverage():
    model, _ = make("lstm, none")
    with pytest.raises(UserError, match="RecurrentDecoder does not offer"):
        Decoder(model.incremental(), dataclasses.replace(SETTINGS, coverage_penalty=1.0))


@pytest.mark.parametrize("name", ["sinusoidal", "lstm, none", "lstm, luong", "lstm, bahdanau"])
def test_a_wide_beam_equals_exhaustive_search(name):
    """Three words, at most four tokens with the end: the best six of all 40 outputs as the forward pass has them."""
    model, params = make(name, source_vocab_size=7, target_vocab_size=7)
    words, limit = (4, 5, 6), 4
    source = np.array([[4, 6, 6, 5, 1], [5, 1, 0, 0, 0]], np.int32)
    outputs = [body for n in range(limit) for body in itertools.product(words, repeat=n)]
    scorer = Scorer(lambda p, s, t: model.apply({"params": p}, s, t), batch_size=40, max_length=8)
    searcher = BeamSearch(model.incremental(), 40, 6, 0.6, 0.0, 1, 0.0)
    nothing = jnp.zeros((2, 0), jnp.int32)
    requests = Requests(jnp.asarray(source), jnp.full(2, limit), nothing, jnp.zeros((2, 2), jnp.int32))
    found = jax.jit(lambda p, r: search(searcher, p, r, limit))(params, requests)
    for row, tokens in enumerate(([4, 6, 6, 5], [5])):
        scores = [s.sum() for s in scorer.score(params, [tokens] * len(outputs), outputs)]
        ranked = sorted(((log_p / ((6 + len(o)) / 6) ** 0.6, o) for log_p, o in zip(scores, outputs, strict=True)))[
            ::-1
        ]
        np.testing.assert_allclose(found.scores[row], [score for score, _ in ranked[:6]], rtol=2e-4)
        for tokens_found, (_, body) in zip(np.asarray(found.tokens[row]), ranked[:6], strict=True):
            assert tokens_found[: len(body) + 1].tolist() == [*body, 1]
