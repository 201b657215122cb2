"""The decoder-only model: packed rows, the cache, scanned layers, switches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.tiny import drawn_like
from transformer_jax.decoding.beam import BeamSearch, search
from transformer_jax.decoding.interface import Requests, replace_rows
from transformer_jax.models.language_model import (
    IncrementalLanguageModel,
    LanguageModel,
    LanguageModelConfig,
    initial_parameters,
)
from transformer_jax.models.positions import positions_in
from transformer_jax.models.transformer import unroll
from transformer_jax.training.language_modeling import LanguageModelTask, LanguageModelTaskConfig

POSITIONS = ["sinusoidal", "learned", "rotary", "relative", "alibi", "none"]


def config(**changes: Any) -> LanguageModelConfig:
    tiny = dict(
        vocab_size=14, num_layers=2, d_model=16, d_ff=20, num_heads=4, max_length=24, norm_placement="pre",
        tie_embeddings=False, scale_embeddings=True, initializer="gpt2",
    )  # fmt: skip
    return LanguageModelConfig(**{**tiny, **changes})


def parameters(c: LanguageModelConfig) -> Any:
    return drawn_like(jax.eval_shape(LanguageModel(c).init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"])


def logits(c: LanguageModelConfig, params: Any, *args: Any) -> np.ndarray:
    apply = jax.jit(lambda p, a: LanguageModel(c).apply({"params": p}, *a))
    return np.asarray(apply(params, args))


DOCUMENTS = [np.random.default_rng(i).integers(3, 14, n).astype(np.int32) for i, n in enumerate((7, 1, 5, 6))]


@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_documents_are_as_in_rows_of_their_own(positions: str) -> None:
    c = config(positions=positions)
    params = parameters(c)
    row = np.concatenate([*DOCUMENTS, np.zeros(3, np.int32)])[None]
    numbers = [*np.repeat([1, 2, 3, 4], [len(d) for d in DOCUMENTS]), 0, 0, 0]
    packed = logits(c, params, row, np.asarray([numbers]))
    first = 0
    for document in DOCUMENTS:
        alone = logits(c, params, document[None])
        np.testing.assert_allclose(packed[:, first : first + len(document)], alone, atol=2e-5)
        first += len(document)
    # Without segments the second document would see the first.
    assert np.abs(logits(c, params, row)[:, 8:13] - packed[:, 8:13]).max() > 1e-2


def test_positions_count_from_the_start_of_each_segment() -> None:
    found = positions_in(jnp.asarray([[1, 1, 1, 2, 3, 3, 0, 0], [1, 1, 2, 2, 2, 2, 2, 2]]))
    assert found.tolist() == [[0, 1, 2, 0, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5]]


def test_no_position_sees_what_follows_it() -> None:
    """Each position reads a row of the table of its own, so that each input has a gradient of its own."""
    c = config(vocab_size=7)
    params = parameters(c)

    def at(embedded: Any) -> Any:
        changed = {**params, "embedding": {"embedding": embedded}}
        return LanguageModel(c).apply({"params": changed}, np.arange(7)[None])[0].sum(axis=-1)

    jacobian = jax.jit(jax.jacobian(at))(params["embedding"]["embedding"])
    seen = np.abs(np.asarray(jacobian)).max(axis=2) > 1e-7
    np.testing.assert_array_equal(seen, np.tril(np.ones((7, 7), bool)))


@pytest.mark.parametrize("positions", POSITIONS)
def test_the_cache_gives_what_the_whole_pass_gives(positions: str) -> None:
    """Prompts of unequal length in one batch, grouped heads, three beams that change places."""
    c = config(positions=positions, num_kv_heads=2)
    params, decoder = parameters(c), IncrementalLanguageModel(LanguageModel(c))
    prompt = np.zeros((3, 9), np.int32)
    for row, document in zip(prompt, DOCUMENTS[:3], strict=True):
        row[: len(document)], row[len(document)] = document, 1
    K, T = 3, 6
    cache = jax.jit(decoder.start, static_argnums=(2, 3))(params, prompt, K, T)
    step = jax.jit(decoder.step)
    rng = np.random.default_rng(0)
    histories = np.zeros((3, K, 0), np.int32)
    fed = np.full((3, K), 3, np.int32)
    for _ in range(T):
        found, cache = step(params, cache, fed)
        for b, document in enumerate(DOCUMENTS[:3]):
            whole = np.concatenate([np.tile(document, (K, 1)), histories[b]], axis=1)
            padded = np.pad(whole, ((0, 0), (0, 14 - whole.shape[1])))
            expected = logits(c, params, padded)[:, whole.shape[1] - 1]
            np.testing.assert_allclose(found[b], expected, atol=3e-5)
        parents = rng.integers(0, K, (3, K))
        cache = decoder.reorder(cache, parents)
        fed = rng.integers(4, 14, (3, K)).astype(np.int32)
        histories = np.concatenate([np.take_along_axis(histories, parents[:, :, None], axis=1), fed[..., None]], axis=2)


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_a_replaced_row_starts_anew_among_older_ones(positions: str) -> None:
    """After two tokens the second prompt gives its place to a longer one."""
    c = config(positions=positions)
    params, decoder = parameters(c), IncrementalLanguageModel(LanguageModel(c))
    prompts = np.zeros((3, 9), np.int32)
    for row, document in zip(prompts, (DOCUMENTS[i] for i in (2, 1, 3)), strict=True):
        row[: len(document)], row[len(document)] = document, 1
    start = jax.jit(decoder.start, static_argnums=(2, 3))
    step = jax.jit(decoder.step)
    fed = np.random.default_rng(0).integers(4, 14, (5, 2, 1)).astype(np.int32)
    cache, found = start(params, prompts[:2], 1, 6), []
    for t in range(5):
        if t == 2:
            cache = replace_rows(cache, start(params, prompts[2:], 1, 6), jnp.array([1]))
        got, cache = step(params, cache, fed[t])
        found.append(got[:, 0])
    for b, first, document in ((0, 0, DOCUMENTS[2]), (1, 2, DOCUMENTS[3])):
        whole = np.concatenate([document, fed[first + 1 :, b, 0]])
        expected = logits(c, params, whole[None])[0, len(document) - 1 :]
        np.testing.assert_allclose([got[b] for got in found[first:]], expected, atol=3e-5)


def test_a_wide_beam_finds_the_likeliest_continuation() -> None:
    """Against all continuations of at most three tokens, for two prompts at once."""
    c = config(vocab_size=8)
    params = parameters(c)
    prompts = [[4, 5, 6], [7]]
    padded = np.asarray([[4, 5, 6, 1], [7, 1, 0, 0]], np.int32)
    model = IncrementalLanguageModel(LanguageModel(c))
    requests = Requests(padded, jnp.asarray([3, 3]), jnp.zeros((2, 0), jnp.int32), jnp.zeros((2, 2), jnp.int32))
    found = search(BeamSearch(model, 64, 3, 0.0, 0.0, 1, patience=0.0), params, requests, 3)
    words = [4, 5, 6, 7]
    endings = [[1], *([a, 1] for a in words), *([a, b, 1] for a in words for b in words)]
    for row, prompt in enumerate(prompts):
        scores = []
        for ending in endings:
            inputs = np.asarray([[*prompt, *ending[:-1], *[0] * (6 - len(prompt) - len(ending))]], np.int32)
            log_p = np.asarray(jax.nn.log_softmax(logits(c, params, inputs)))[0]
            scores.append(sum(log_p[len(prompt) - 1 + i, token] for i, token in enumerate(ending)))
        best = np.argsort(scores)[::-1][:3]
        np.testing.assert_allclose(found.log_probs[row], np.asarray(scores)[best], atol=1e-4)
        assert [t[t != 0].tolist() for t in np.asarray(found.tokens[row])] == [endings[i] for i in best]


def test_scanned_layers_compute_the_same() -> None:
    c, scanned = config(), config(scan_layers=True, remat="full")
    params = parameters(scanned)
    segments = np.ones((1, 7), np.int32)
    found = logits(scanned, params, DOCUMENTS[0][None], segments)
    np.testing.assert_allclose(found, logits(c, unroll(params), DOCUMENTS[0][None], segments), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_gpt2_initialisation(scan: bool) -> None:
    c = config(d_model=128, d_ff=256, scan_layers=scan, num_layers=3, attention_bias=True)
    params = nn.unbox(jax.jit(lambda key: initial_parameters(LanguageModel(c), key))(jax.random.key(0)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        if names[-1] in ("kernel", "embedding"):
            std = 0.02 / 6**0.5 if names[-2] == "output" else 0.02
            assert float(leaf.std()) == pytest.approx(std, rel=0.1), names
            assert abs(float(leaf.mean())) < 0.1 * std, names
        else:
            assert set(np.unique(leaf)) == {float(names[-1] == "scale")}, names


def test_documents_that_begin_with_their_end() -> None:
    """The token for beginnings is looked up as the end, and the three special tokens that remain are never likely."""
    c, plain = config(end_begins=True, tie_embeddings=True), config(tie_embeddings=True)
    params = parameters(c)
    text = [5, 9, 4, 13]
    begun, ended = np.asarray([[3, *text]]), np.asarray([[1, *text]])
    found = logits(c, params, begun)
    kept = [1, *range(4, 14)]
    np.testing.assert_allclose(found[..., kept], logits(plain, params, ended)[..., kept], atol=1e-6)
    assert (found[..., [0, 2, 3]] < -1e3).all()
    task = LanguageModelTask(LanguageModel(c), LanguageModelTaskConfig(label_smoothing=0.0, loss_chunk=4))
    batch = {"inputs": begun, "targets": np.asarray([[*text, 1]]), "segments": np.ones_like(begun)}
    _, sums = jax.jit(lambda p, b: task.loss(p, b, None))(params, batch)
    log_p = np.asarray(jax.nn.log_softmax(found))[0]
    expected = -sum(log_p[i, token] for i, token in enumerate(batch["targets"][0]))
    assert float(sums["nll"]) == pytest.approx(expected, rel=1e-4)
