"""Decoding in bulk: neighbours, order, queue, devices and batch size change nothing."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.decoding.table_model import TableModel, enumerate_all, make_params
from transformer_jax.decoding.batching import Decoder, length_groups
from transformer_jax.decoding.config import DecodingConfig
from transformer_jax.decoding.sampling import SamplingConfig
from transformer_jax.errors import UserError

CONFIG = DecodingConfig(
    method="beam",
    beam_size=3,
    n_best=2,
    length_penalty=0.6,
    coverage_penalty=0.0,
    patience=0.0,
    min_length=1,
    max_length_factor=1.5,
    max_length_offset=2,
    max_target_length=24,
    max_source_length=40,
    long_lines="split",
    batch_size=8,
    seed=0,
    sampling=SamplingConfig(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
)
PARAMS = make_params(0, 40)
RNG = np.random.default_rng(1)
SOURCES = [RNG.integers(4, 40, RNG.integers(1, 39)).tolist() for _ in range(150)]


def config(**changes):
    return dataclasses.replace(CONFIG, **changes)


@pytest.fixture(scope="module")
def one_by_one():
    """Each sentence alone: what every way of batching must equal."""
    decoder = Decoder(TableModel(), config(batch_size=1))
    return [decoder.decode(PARAMS, [source])[0] for source in SOURCES]


def same(found, expected):
    assert [[h.tokens for h in hs] for hs in found] == [[h.tokens for h in hs] for hs in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose([h.score for h in a], [h.score for h in b], rtol=1e-4)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_batch_composition_does_not_change_a_translation(one_by_one, batch_size):
    """More sentences than one queue holds, and fewer; rows that leave early, rows that are refilled."""
    decoder = Decoder(TableModel(), config(batch_size=batch_size))
    same(decoder.decode(PARAMS, SOURCES), one_by_one)
    order = np.random.default_rng(2).permutation(len(SOURCES))[:70]
    same(decoder.decode(PARAMS, [SOURCES[i] for i in order]), [one_by_one[i] for i in order])


def test_outputs_differ_in_length(one_by_one):
    """Or the test above would prove little about rows that leave early."""
    assert len({len(hypotheses[0].tokens) for hypotheses in one_by_one}) > 5


def test_few_shapes():
    decoder = Decoder(TableModel(), config(batch_size=16))
    for count in (150, 149, 97, 20):
        decoder.decode(PARAMS, SOURCES[:count])
    assert len(decoder.shapes) <= 6


def test_length_groups_cover_everything_once():
    lengths = [1, 15, 16, 17, 40, 33, 3]
    groups = length_groups(lengths, limit=40)
    assert sorted(i for members in groups.values() for i in members) == list(range(7))
    for length, members in groups.items():
        assert all(lengths[i] <= length for i in members)
        assert [lengths[i] for i in members] == sorted((lengths[i] for i in members), reverse=True)
    assert sorted(groups) == [16, 32, 40]


def test_length_rule_and_prefixes():
    sources = [[5] * n for n in (1, 4, 9, 15)]
    settings = config(max_length_factor=1.0, max_length_offset=0, max_target_length=12, min_length=12)
    prefixes = [[], [7], [8, 9, 10], []]
    found = Decoder(TableModel(), settings).decode(PARAMS, sources, prefixes)
    assert [len(hs[0].tokens) for hs in found] == [11, 11, 11, 11]
    settings = config(max_length_factor=1.0, max_length_offset=0, max_target_length=12)
    found = Decoder(TableModel(), settings).decode(PARAMS, sources, prefixes)
    for source, prefix, hs in zip(sources, prefixes, found, strict=True):
        limit = min(12, max(len(source) + 1, len(prefix) + 1))
        assert all(h.tokens[: len(prefix)] == prefix and len(h.tokens) < limit for h in hs)


def test_a_wide_beam_equals_exhaustive_search_through_the_queue():
    params = make_params(5, 7)
    settings = config(beam_size=32, n_best=5, max_length_factor=0.0, max_length_offset=4, batch_size=2)
    sources = [[4 + i, 30 - i] for i in range(9)]
    for source, found in zip(sources, Decoder(TableModel(), settings).decode(params, sources), strict=True):
        expected = enumerate_all(params, np.array([*source, 1]), (4, 5, 6), 4, alpha=0.6)[:5]
        assert [tuple(h.tokens) for h in found] == [body for _, _, body in expected]


def test_bad_requests_are_refused():
    decoder = Decoder(TableModel(), CONFIG)
    with pytest.raises(UserError, match="sentence 2 has 41 tokens"):
        decoder.decode(PARAMS, [[5], [5] * 40])
    with pytest.raises(UserError, match="prefix of sentence 1"):
        decoder.decode(PARAMS, [[5]], [[5, 1, 6]])
    with pytest.raises(UserError, match="prefix of sentence 1"):
        decoder.decode(PARAMS, [[5]], [[5] * 24])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_size", 0),
        ("n_best", 4),
        ("length_penalty", -0.1),
        ("coverage_penalty", -1.0),
        ("patience", -1.0),
        ("min_length", 25),
        ("method", "beams"),
        ("long_lines", "truncate"),
    ],
)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"decoding.{name}"):
        config(**{name: value})


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from tests.decoding.test_batching import *
mesh = jax.make_mesh((4, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
alone, spread = Decoder(TableModel(), CONFIG), Decoder(TableModel(), CONFIG, mesh)
assert spread.num_devices == 4
short = [source for source in SOURCES if len(source) < 16]
same(spread.decode(PARAMS, short), alone.decode(PARAMS, short))
sampling = config(method="sample")
same(Decoder(TableModel(), sampling, mesh).decode(PARAMS, short[:30]),
     Decoder(TableModel(), sampling).decode(PARAMS, short[:30]))
try:
    Decoder(TableModel(), config(batch_size=6), mesh)
except UserError as error:
    assert "multiple of 4" in str(error)
else:
    raise AssertionError
compiled = []
note = lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
jax.monitoring.register_event_duration_secs_listener(note)
parts = jax.device_put({"table": np.arange(8.0)}, NamedSharding(mesh, P("data")))
for again in range(2):
    assert spread.place(parts)["table"].is_fully_replicated
    assert len(compiled) == 1, "parameters of later evaluations are put together without compiling"
"""


def test_four_devices_equal_one():
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True, timeout=600)
