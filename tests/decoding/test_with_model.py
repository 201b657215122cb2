"""Decoding with the real model: its cache, in bulk, gives what the whole forward pass gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.decoding.test_batching import config, same
from transformer_jax.decoding.batching import Decoder
from transformer_jax.decoding.scoring import Scorer
from transformer_jax.models.transformer import EncoderDecoder, IncrementalDecoder, TransformerConfig

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
RNG = np.random.default_rng(0)
SOURCES = [RNG.integers(4, 50, RNG.integers(1, 30)).tolist() for _ in range(23)]
SETTINGS = config(batch_size=4, max_length_factor=0.5, max_length_offset=3, max_target_length=30)


def make(**changes):
    model = EncoderDecoder(dataclasses.replace(BASE, **changes))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(3), tokens, tokens)["params"])
    # Larger weights: outputs of an untrained model hardly depend on the source, and mistakes would not show.
    return model, jax.tree.map(lambda leaf: leaf * 2.5 if leaf.ndim > 1 else leaf, params)


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "relative"])
def test_cached_beams_are_scored_as_by_the_whole_forward_pass(positions):
    """Beams that were reordered, rows at different positions: every log-probability is the model's."""
    model, params = make(positions=positions)
    found = Decoder(IncrementalDecoder(model), SETTINGS).decode(params, SOURCES)
    scorer = Scorer(lambda p, s, t: model.apply({"params": p}, s, t), batch_size=8, max_length=40)
    for rank in (0, 1):
        outputs = [hypotheses[rank] for hypotheses in found]
        scores = scorer.score(params, SOURCES, [h.tokens for h in outputs])
        np.testing.assert_allclose([s.sum() for s in scores], [h.log_prob for h in outputs], rtol=2e-4)
    assert len({len(h[0].tokens) for h in found}) > 3
    assert len({tuple(h[0].tokens) for h in found}) > len(SOURCES) // 2


def test_batch_composition_does_not_change_a_translation():
    model, params = make()
    decoder = Decoder(IncrementalDecoder(model), SETTINGS)
    together = decoder.decode(params, SOURCES)
    same([decoder.decode(params, [source])[0] for source in SOURCES], together)
    order = np.random.default_rng(1).permutation(len(SOURCES))
    same(decoder.decode(params, [SOURCES[i] for i in order]), [together[i] for i in order])


def test_coverage_with_the_model():
    """The penalty, which is never positive, changes what is chosen."""
    model, params = make()
    covering = dataclasses.replace(SETTINGS, coverage_penalty=5.0)
    sources = [source for source in SOURCES if len(source) < 16]
    plain = Decoder(IncrementalDecoder(model), SETTINGS).decode(params, sources)
    found = Decoder(IncrementalDecoder(model), covering).decode(params, sources)
    assert any(a[0].tokens != b[0].tokens for a, b in zip(plain, found, strict=True))
    penalties = [h.score - h.log_prob / ((6 + len(h.tokens)) / 6) ** 0.6 for hs in found for h in hs]
    assert max(penalties) < 1e-4
    assert min(penalties) < -1
