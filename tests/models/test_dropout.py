"""Dropout masks come from a hash: they must be as good as coin tosses, and follow from the row's seed alone.

Every statistic is a z score, of order one for fair coins. Chance passes the bounds of 4 to 6.5 (more where$
more are looked at) less than once in a thousand. Seeds are fixed: nothing here changes from run to run.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.tiny import random_parameters, tiny_config, token_batch
from transformer_jax.models import attention, seq2seq, transformer
from transformer_jax.models.layers import dropout, fold_in, row_seeds

ROWS, LENGTH = 256, 4096


@jax.jit
def uniform_rows(seeds):
    """Whether the coins at rate 1/2 fall on keep, bool[ROWS, LENGTH]."""
    return dropout(jnp.ones((ROWS, LENGTH)), seeds, "site", 0.5) > 0


def seeds_of(seed: int = 0, step: int = 0, first: int = 0) -> jax.Array:
    return row_seeds(seed, step, jnp.arange(first, first + ROWS))


@pytest.fixture(scope="module")
def coins() -> np.ndarray:
    return np.asarray(uniform_rows(seeds_of()))


def signs(coins: np.ndarray) -> np.ndarray:
    return np.where(coins, 1.0, -1.0).astype(np.float32)


def chi_square_z(observed: np.ndarray, expected: np.ndarray | float) -> float:
    """Chi-square of counts as a z score: large for uneven counts, and very negative for counts too even."""
    freedom = observed.size - 1
    return float((np.sum((observed - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_the_kept_share_is_right_over_all_in_rows_and_in_columns(rate: float) -> None:
    kept = np.asarray(dropout(jnp.ones((ROWS, LENGTH)), seeds_of(step=3), "site", rate)) > 0
    spread = np.sqrt(rate * (1 - rate))
    assert abs(kept.mean() - (1 - rate)) < 4 * spread / np.sqrt(kept.size)
    for axis in (0, 1):
        z = (kept.mean(axis) - (1 - rate)) / spread * np.sqrt(kept.shape[axis])
        assert np.abs(z).max() < 5.5
        # Neither more alike nor more different than chance makes them.
        assert abs(np.mean(z**2) - 1) * np.sqrt(z.size / 2) < 4.5


def test_neighbours_and_distant_elements_of_a_row_are_independent(coins: np.ndarray) -> None:
    x = signs(coins)
    for lag in [*range(1, 33), 64, 100, 128, 256, 512, 1000, 1024, 2048, 3072]:
        products = x[:, lag:] * x[:, :-lag]
        assert abs(products.sum()) / np.sqrt(products.size) < 5, f"lag {lag}"
    # Triples catch what pairs cannot: in a linear generator two settle the third.
    for one, two in itertools.combinations([1, 2, 3, 4, 8, 16, 64, 256], 2):
        products = x[:, two:] * x[:, two - one : -one] * x[:, :-two]
        assert abs(products.sum()) / np.sqrt(products.size) < 5, f"lags {one}, {two}"


def test_no_single_row_repeats_itself(coins: np.ndarray) -> None:
    """Every row has a multiplier of its own, and none may be bad: correlation with itself at all lags."""
    padded = np.pad(signs(coins), ((0, 0), (0, LENGTH)))
    products = np.fft.irfft(np.abs(np.fft.rfft(padded, axis=1)) ** 2, axis=1)[:, 1 : LENGTH - 64]
    z = products / np.sqrt(LENGTH - np.arange(1, LENGTH - 64))
    assert np.abs(z).max() < 6.5
    assert abs(np.mean(z**2) - 1) * np.sqrt(z.size / 2) < 5


def test_bytes_and_runs_have_the_distribution_of_coin_tosses(coins: np.ndarray) -> None:
    counts = np.bincount(np.packbits(coins, axis=1).ravel(), minlength=256)
    assert abs(chi_square_z(counts, counts.sum() / 256)) < 5
    strided = np.packbits(coins.reshape(ROWS, 8, -1).swapaxes(1, 2), axis=-1)  # eight that lie LENGTH/8 apart
    counts = np.bincount(strided.ravel(), minlength=256)
    assert abs(chi_square_z(counts, counts.sum() / 256)) < 5
    changes = np.flatnonzero(np.diff(coins.ravel()))
    lengths = np.bincount(np.minimum(np.diff(changes), 12))[1:]
    expected = lengths.sum() * np.array([*(0.5 ** np.arange(1, 12)), 0.5**11])
    assert abs(chi_square_z(lengths, expected)) < 5


def test_low_bits_count_too() -> None:
    """A small rate looks deeper into the word than its first bit: the gaps between drops are geometric."""
    rate = 1 / 64
    kept = np.asarray(dropout(jnp.ones((ROWS, LENGTH)), seeds_of(step=5), "site", rate)) > 0
    gaps = np.minimum(np.diff(np.flatnonzero(~kept.ravel())), 256)
    edges = np.array([0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 255])
    observed, _ = np.histogram(gaps, [*(edges + 0.5), 300])
    below = 1 - (1 - rate) ** edges
    expected = gaps.size * np.diff([*below, 1.0])
    assert abs(chi_square_z(observed, expected)) < 5


def test_rows_are_independent_also_when_shifted_against_each_other(coins: np.ndarray) -> None:
    x = signs(coins)
    correlations = x @ x.T / np.sqrt(LENGTH)
    pairs = correlations[np.triu_indices(ROWS, 1)]
    assert np.abs(pairs).max() < 6
    assert abs(np.mean(pairs**2) - 1) * np.sqrt(pairs.size / 2) < 5
    spectrum = np.fft.rfft(x, axis=1)
    for gap in (1, 2, 7, 64, 128):
        shifted = np.fft.irfft(spectrum[gap:] * spectrum[:-gap].conj(), axis=1) / np.sqrt(LENGTH)
        assert np.abs(shifted).max() < 6.5, f"rows {gap} apart"


def test_sites_layers_steps_seeds_and_batches_are_independent(coins: np.ndarray) -> None:
    seeds = seeds_of()
    others = {
        **{f"layer {i}": uniform_rows(fold_in(seeds, i)) for i in range(4)},
        "self": uniform_rows(fold_in(seeds, "self")),
        "cross": uniform_rows(fold_in(seeds, "cross")),
        "nested": uniform_rows(fold_in(fold_in(seeds, 0), "self")),
        "nested the other way": uniform_rows(fold_in(fold_in(seeds, "self"), 0)),
        "site": dropout(jnp.ones((ROWS, LENGTH)), seeds, "other site", 0.5) > 0,
        **{f"step {step}": uniform_rows(seeds_of(step=step)) for step in (1, 2, 1000)},
        **{f"seed {seed}": uniform_rows(seeds_of(seed=seed)) for seed in (1, 2, 1000)},
        "next rows": uniform_rows(seeds_of(first=ROWS)),
    }
    masks = {"these": signs(coins), **{name: signs(np.asarray(mask)) for name, mask in others.items()}}
    for one, other in itertools.combinations(masks, 2):
        products = masks[one] * masks[other]
        assert abs(products.sum()) / np.sqrt(products.size) < 5, f"{one} and {other}"
        assert np.abs(products.sum(axis=1)).max() / np.sqrt(LENGTH) < 6, f"{one} and {other}"
        # Step s, row r must not be step s + 1, row r - 1, nor any other.
        assert np.abs(masks[one][:64] @ masks[other][:64].T).max() / np.sqrt(LENGTH) < 6.5, f"{one} and {other}"


def test_seeds_rarely_collide() -> None:
    """Among n = 2^20 seeds of 32 bits chance makes n²/2^33 = 128 collisions."""
    seeds = np.asarray(jax.vmap(lambda step: row_seeds(7, step, jnp.arange(1024)))(jnp.arange(1024)))
    assert seeds.size - np.unique(seeds).size == pytest.approx(128, abs=60)


def test_no_two_dropout_sites_of_a_model_share_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def recording(x, seeds, site, rate):
        if rate:  # at run time, as layers alike are traced once
            jax.debug.callback(lambda folded: seen.append(np.asarray(folded)), fold_in(seeds, site))
        return dropout(x, seeds, site, rate)

    for module in (attention, seq2seq, transformer):
        monkeypatch.setattr(module, "dropout", recording)
    config = tiny_config(
        dropout_rate=0.1, embedding_dropout_rate=0.1, attention_dropout_rate=0.1, activation_dropout_rate=0.1
    )
    params, (source, target) = random_parameters(config), token_batch()

    @jax.jit
    def forward(seeds):
        model = transformer.EncoderDecoder(config)
        return model.apply({"params": params}, source, target, seeds, 0.1, method="hidden")

    forward(row_seeds(0, 0, jnp.arange(3)))
    jax.effects_barrier()
    folded = np.stack(seen)
    # Two encoder layers with 4 sites, two decoder layers with 6; embeddings and the cut of token embeddings.
    assert len(seen) == 2 * 4 + 2 * 6 + 4
    assert np.unique(folded).size == folded.size


def test_a_rows_mask_depends_on_its_seed_alone() -> None:
    seeds, x = row_seeds(3, 4, jnp.arange(8)), jnp.ones((8, 5, 6))
    mask = np.asarray(dropout(x, seeds, "site", 0.4))
    some = np.array([6, 1, 3])
    np.testing.assert_array_equal(dropout(x[:3], seeds[some], "site", 0.4), mask[some])
    np.testing.assert_array_equal(dropout(x[:1], seeds[5:6], "site", 0.4), mask[5:6])
    assert len({row.tobytes() for row in mask}) == 8
    np.testing.assert_array_equal(row_seeds(3, 4, [6, 1, 3]), seeds[some])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_expectation_is_the_input(dtype: str) -> None:
    x = jnp.linspace(-2.0, 3.0, 50, dtype=dtype)
    y = dropout(jnp.broadcast_to(x, (4000, 50)), row_seeds(0, 0, jnp.arange(4000)), "site", 0.3)
    assert y.dtype == x.dtype
    error = np.asarray(y, np.float32).mean(axis=0) - np.asarray(x, np.float32)
    assert np.abs(error).max() < 4.5 * 3.0 * np.sqrt(0.3 / 0.7 / 4000)
    kept = np.asarray(y, np.float32)[np.asarray(y, np.float32) != 0]
    assert kept.max() == pytest.approx(3.0 / 0.7, rel=1e-6 if dtype == "float32" else 1e-2)


def test_without_a_rate_or_seeds_nothing_happens() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    assert dropout(x, row_seeds(0, 0, [0, 1]), "site", 0.0) is x
    assert dropout(x, None, "site", 0.5) is x
    assert fold_in(None, "name") is None
