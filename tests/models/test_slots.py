"""Beams that share the slots of a cache: each sees its own history, and nothing is lost while there is room."""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.models.slots import Slots, write

B, K = 6, 4


def test_every_beam_sees_its_own_history_as_long_as_there_is_room():
    """Beams that die, split and swap places; M slots hold what is alive, wherever it was written. Against lists."""
    steps, M = 14, 21
    rng = np.random.default_rng(0)
    slots = Slots.after(jnp.zeros(B, jnp.int32), K, M)
    keys, values = jnp.zeros((B, 1, 2, M)), jnp.zeros((B, 1, M, 2))
    take = jax.jit(lambda slots, position: slots.take(position))
    histories = [[()] * K for _ in range(B)]
    ended: set[int] = set()
    reused = 0
    start = rng.integers(0, 9, B)  # rows stand at positions of their own
    for t in range(steps):
        alive = [len({node for history in row for node in history}) for row in histories]
        room = np.asarray(slots.has_room())
        for b in range(B):
            assert b in ended or room[b] == (alive[b] + K <= M)
            if not room[b]:
                ended.add(b)
        before = np.asarray(slots.seen.any(axis=1))
        slots, chosen = take(slots, jnp.asarray(start + t, jnp.int32))
        new = 1.0 + np.arange(B * K).reshape(B, 1, K, 1) + 100.0 * t + np.array([0.0, 0.25])
        keys, values = write(keys, values, chosen, jnp.asarray(new), jnp.asarray(new))
        seen, position, written = (np.asarray(array) for array in (*slots, values[:, 0]))
        np.testing.assert_array_equal(written, np.swapaxes(keys[:, 0], 1, 2))
        for b in set(range(B)) - ended:
            own = np.asarray(chosen[b])
            assert len(set(own)) == K
            assert (own < M).all()
            assert not before[b, own].any()
            reused += int((own < t * K).sum())
            histories[b] = [(*history, float(new[b, 0, k, 0])) for k, history in enumerate(histories[b])]
            for k, history in enumerate(histories[b]):
                own = np.flatnonzero(seen[b, k])
                own = own[np.argsort(position[b, own])]
                assert tuple(written[b, own, 0].tolist()) == history
                assert position[b, own].tolist() == list(range(start[b], start[b] + t + 1))
        # The first rows keep to few beams, the others to many.
        parents = np.stack([rng.integers(0, 1 + min(b, K - 1), K) for b in range(B)])
        slots = slots.reorder(jnp.asarray(parents))
        histories = [[histories[b][p] for p in parents[b]] for b in range(B)]
    assert 0 < len(ended) < B
    assert reused > 0


def test_what_has_no_slot_is_written_nowhere():
    slots, _ = Slots.after(jnp.array([0]), 3, 5).take(jnp.array([0]))
    slots, chosen = slots.reorder(jnp.array([[1, 1, 1]])).take(jnp.array([1]))
    assert chosen.tolist() == [[0, 2, 3]]
    assert slots.seen[0].astype(int).tolist() == [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 0, 1, 0]]
    assert not slots.has_room()[0]
    slots, chosen = slots.take(jnp.array([2]))
    assert chosen.tolist() == [[4, 6, 7]]
    _, values = write(jnp.zeros((1, 1, 1, 5)), jnp.zeros((1, 1, 5, 1)), chosen, *[jnp.ones((1, 1, 3, 1))] * 2)
    assert values.ravel().tolist() == [0, 0, 0, 0, 1]
