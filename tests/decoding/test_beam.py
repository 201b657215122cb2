"""Beam search: equal to exhaustive search when wide enough; its rules one by one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.decoding.table_model import (
    AttendingTableModel,
    TableModel,
    enumerate_all,
    make_params,
)
from transformer_jax.decoding.beam import BeamSearch, best_continuations, search
from transformer_jax.decoding.interface import Requests
from transformer_jax.errors import UserError

VOCAB = 7
TOKENS = (4, 5, 6)
SOURCE = np.array([[9, 8, 1, 0], [5, 1, 0, 0], [7, 7, 6, 1], [12, 30, 1, 0]], np.int32)


@cache
def compiled(searcher):
    return jax.jit(partial(search, searcher), static_argnums=2)


def run(
    params, limits, *, model=None, beam=40, n=4, alpha=0.6, beta=0.0, minimum=1, patience=0.0, prefix=None, length=5
):
    rows = len(SOURCE)
    requests = Requests(
        jnp.asarray(SOURCE),
        jnp.broadcast_to(jnp.asarray(limits, jnp.int32), rows),
        jnp.zeros((rows, 0), jnp.int32) if prefix is None else jnp.asarray(prefix, jnp.int32),
        jnp.zeros((rows, 2), jnp.int32),
    )
    searcher = BeamSearch(model or TableModel(), beam, n, alpha, beta, minimum, patience)
    return jax.device_get(compiled(searcher)(params, requests, length))


def check(found, row, expected):
    """The hypotheses of a row are the first of ``expected``: same tokens, scores and log-probabilities, in
    order.
    """
    count = min(found.scores.shape[1], len(expected))
    for j, (score, log_prob, body) in enumerate(expected[:count]):
        tokens = [*body, 1] + [0] * (found.tokens.shape[-1] - len(body) - 1)
        assert found.tokens[row, j].tolist() == tokens
        np.testing.assert_allclose(found.scores[row, j], score, rtol=1e-4)
        np.testing.assert_allclose(found.log_probs[row, j], log_prob, rtol=1e-4)
    assert np.all(found.scores[row, count:] == -np.inf)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_equals_exhaustive_search(alpha, seed):
    """n best included, with a length rule of its own for each row. 3 tokens, length 4 with EOS: 40
    outputs.
    """
    params = make_params(seed, VOCAB)
    limits = [4, 3, 4, 2]
    found = run(params, limits, alpha=alpha, n=6)
    for row, limit in enumerate(limits):
        check(found, row, enumerate_all(params, SOURCE[row], TOKENS, limit, alpha=alpha))


@pytest.mark.parametrize("alpha", [0.6, 2.5])
def test_stops_no_earlier_than_is_certain(alpha):
    """One best of many tables: with length favoured, it is often longer than the first that finished."""
    longer = 0
    for seed in range(20):
        params = make_params(seed, VOCAB)
        found = run(params, 4, alpha=alpha, n=1)
        for row in range(len(SOURCE)):
            expected = enumerate_all(params, SOURCE[row], TOKENS, 4, alpha=alpha)
            check(found, row, expected)
            longer += len(expected[0][2]) > 1
    assert longer > 10


def test_n_best_is_complete_and_sorted():
    """More asked for than exist: all of them, then nothing."""
    params = make_params(3, VOCAB)
    found = run(params, 3, beam=16, n=16, length=3)
    for row in range(len(SOURCE)):
        expected = enumerate_all(params, SOURCE[row], TOKENS, 3, alpha=0.6)
        assert len(expected) == 13
        check(found, row, expected)
        assert np.all(np.diff(found.scores[row, :13]) <= 0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_minimum_length(alpha):
    params = make_params(4, VOCAB)
    found = run(params, 4, minimum=3, alpha=alpha)
    for row in range(len(SOURCE)):
        check(found, row, enumerate_all(params, SOURCE[row], TOKENS, 4, alpha=alpha, min_length=3))


def test_forced_prefix():
    """Prefixes of different lengths, none among them; their probability counts."""
    params = make_params(5, VOCAB)
    prefix = np.array([[6, 0], [0, 0], [4, 5], [5, 5]])
    found = run(params, 4, prefix=prefix)
    for row in range(len(SOURCE)):
        forced = [t for t in prefix[row].tolist() if t]
        check(found, row, enumerate_all(params, SOURCE[row], TOKENS, 4, alpha=0.6, prefix=forced))


@pytest.mark.parametrize("beta", [0.2, 3.0])
def test_coverage(beta):
    params = make_params(6, VOCAB)
    found = run(params, 4, model=AttendingTableModel(), beta=beta)
    for row in range(len(SOURCE)):
        check(found, row, enumerate_all(params, SOURCE[row], TOKENS, 4, alpha=0.6, beta=beta))


def test_coverage_changes_the_choice():
    params = make_params(6, VOCAB)
    plain = run(params, 4, model=AttendingTableModel())
    covering = run(params, 4, model=AttendingTableModel(), beta=3.0)
    assert np.any(plain.tokens[:, 0] != covering.tokens[:, 0])


def test_coverage_needs_attention():
    with pytest.raises(UserError, match="step_with_attention"):
        BeamSearch(TableModel(), 4, 1, 0.6, 0.2, 1, 0.0)


def test_a_beam_of_one_without_penalty_is_greedy():
    params = make_params(7, 300)
    found = run(params, 12, beam=1, n=1, alpha=0.0, length=12)
    table = np.asarray(params["logits"])
    for row in range(len(SOURCE)):
        history = [3]
        while history[-1] != 1:
            key = (int(SOURCE[row].sum()) * 131 + sum((t + 1) * (i * 37 + 11) for i, t in enumerate(history))) % len(
                table
            )
            allowed = table[key].copy()
            allowed[[0, 2, 3]] = -np.inf
            history.append(1 if len(history) == 12 else int(allowed.argmax()))
        assert found.tokens[row, 0, : len(history) - 1].tolist() == history[1:]


def test_special_tokens_are_never_generated():
    params = make_params(8, VOCAB)
    params["logits"] = params["logits"].at[:, jnp.array([0, 2, 3])].add(20.0)
    found = run(params, 5, beam=8, n=8)
    for tokens in found.tokens.reshape(-1, found.tokens.shape[-1]).tolist():
        assert not {2, 3} & set(tokens)
        assert 0 not in tokens[: tokens.index(1)]


def test_stops_as_soon_as_the_answer_is_certain():
    """Where every output ends at once, the loop takes two steps, not one for each position up to the
    limit.
    """
    params = make_params(9, VOCAB)
    params["logits"] = params["logits"].at[:, 1].add(50.0)
    searcher = BeamSearch(TableModel(), 4, 1, 0.6, 0.0, 1, 0.0)
    requests = Requests(
        jnp.asarray(SOURCE),
        jnp.full(4, 100, jnp.int32),
        jnp.zeros((4, 0), jnp.int32),
        jnp.zeros((4, 2), jnp.int32),
    )
    state = searcher.step(params, searcher.start(params, requests, 100))
    assert not searcher.active(state).any()
    assert searcher.result(state).tokens[:, 0, 0].tolist() == [1] * 4


@pytest.mark.parametrize("patience", [0.5, 1.0, 2.0])
def test_patience_ends_a_search_with_so_many_finished_hypotheses(patience):
    """The answer is what the exact search has at that step; more patience looks at least as far."""
    params = make_params(10, VOCAB)
    limits = jnp.full(len(SOURCE), 12, jnp.int32)
    requests = Requests(jnp.asarray(SOURCE), limits, jnp.zeros((4, 0), jnp.int32), jnp.zeros((4, 2), jnp.int32))
    exact = BeamSearch(TableModel(), 4, 2, 2.5, 0.0, 1, 0.0)
    state, expected, steps = exact.start(params, requests, 12), {}, 0
    while exact.active(state).any():
        state, steps = exact.step(params, state), steps + 1
        for row in np.flatnonzero(np.asarray(state.finished) >= max(4 * patience, 2)):
            expected.setdefault(row, (steps, state.done_tokens[row].tolist()))
    assert any(end < steps for end, _ in expected.values()), "patience ends none of these searches"
    found = run(params, 12, beam=4, n=2, alpha=2.5, patience=patience, length=12)
    for row in range(len(SOURCE)):
        end, tokens = expected.get(row, (steps, state.done_tokens[row].tolist()))
        assert found.tokens[row].tolist() == tokens, (row, end)


@pytest.mark.parametrize("vocab_size", [7, 250, 1000, 1009])
def test_best_continuations_equal_a_full_sort(vocab_size):
    """Vocabularies that blocks do and do not divide; beams that are not there yet."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, vocab_size)).astype(np.float32) * 4
    before = np.array([[0, -1, -2, -3], [0, -np.inf, -np.inf, -np.inf], [-5, -1, -9, -np.inf]], np.float32)
    ends, scores, parents, tokens = best_continuations(jnp.asarray(logits), jnp.asarray(before))
    full = before[..., None] + np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_allclose(ends, full[..., 1], rtol=1e-5)
    full[..., :4] = -np.inf
    for row in range(3):
        order = np.argsort(-full[row].ravel(), kind="stable")[:4]
        real = full[row].ravel()[order] > -np.inf
        np.testing.assert_allclose(scores[row], full[row].ravel()[order], rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(parents[row])[real], (order // vocab_size)[real])
        np.testing.assert_array_equal(np.asarray(tokens[row])[real], (order % vocab_size)[real])
