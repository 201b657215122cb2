"""Packing: every token of every document exactly once, whole pieces in rows, windows that predict each token once."""

import numpy as np
import pytest

from transformer_jax.data.packing import (
    PackedEpoch,
    PackingConfig,
    Stream,
    cut_documents,
    encode_documents,
    evaluation_batches,
    pack,
    packed_epoch,
    sliding_windows,
)
from transformer_jax.data.text_tokenizers import ExactByteTokenizer
from transformer_jax.data.tokenizers import BOS, EOS, PAD
from transformer_jax.errors import UserError


def made_stream(seed: int = 0, count: int = 60, longest: int = 90) -> Stream:
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, longest))) for _ in range(count)]
    return encode_documents(texts, ExactByteTokenizer())


def documents(stream: Stream) -> list[tuple[int, ...]]:
    return [tuple(stream.ids[a:b].tolist()) for a, b in zip(stream.offsets[:-1], stream.offsets[1:], strict=True)]


def epoch_batches(epoch: PackedEpoch) -> list[dict[str, np.ndarray]]:
    return [epoch.batch(i, [0], 1) for i in range(len(epoch))]


def segments_of(batch: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inputs and targets of every segment of every row."""
    found = []
    for inputs, targets, segments in zip(batch["inputs"], batch["targets"], batch["segments"], strict=True):
        for number in range(1, segments.max() + 1):
            (places,) = np.nonzero(segments == number)
            assert (np.diff(places) == 1).all()
            found.append((inputs[places], targets[places]))
    return found


@pytest.mark.parametrize("length", [16, 40, 128])
def test_an_epoch_holds_every_token_once_after_what_comes_before_it(length):
    stream = made_stream()
    epoch = packed_epoch(stream, PackingConfig(rows=4, length=length), np.random.default_rng(1))
    pairs, whole = [], set(documents(stream))
    for batch in epoch_batches(epoch):
        assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
            name: ((4, length), np.dtype(np.int32)) for name in ("inputs", "targets", "segments")
        }
        assert ((batch["segments"] == 0) == (batch["targets"] == PAD)).all()
        for inputs, targets in segments_of(batch):
            # What a position reads is what it came after: the target before it, or the document's past.
            assert (inputs[1:] == targets[:-1]).all()
            assert EOS not in targets[:-1]
            pairs += zip(inputs.tolist(), targets.tolist(), strict=True)
            if length == 128:
                assert (inputs[0], targets[-1]) == (BOS, EOS)
                assert tuple(targets) in whole
    wanted = [pair for document in documents(stream) for pair in zip((BOS, *document), document, strict=False)]
    assert sorted(pairs) == sorted(wanted)


@pytest.mark.parametrize("longest", [12, 90])
def test_rows_are_filled_as_well_as_best_fit_fills_them(longest):
    """The sum of pieces is a lower bound, which short pieces nearly reach."""
    offsets = made_stream(count=2000, longest=longest).offsets
    pieces = cut_documents(offsets[:-1], np.diff(offsets), 64, np.random.default_rng(0))
    rows = pack(pieces, 64, np.random.default_rng(0))
    assert sorted(rows.order) == list(range(len(pieces.length)))
    used = np.add.reduceat(pieces.length[rows.order], rows.bounds[:-1])
    assert used.max() <= 64
    if longest == 12:
        assert len(rows) <= 1.01 * pieces.length.sum() / 64
    # One pass of best fit, piece by piece, needs as many rows.
    rooms: list[int] = []
    for size in sorted(pieces.length.tolist(), reverse=True):
        best = min((room for room in rooms if room >= size), default=None)
        if best is not None:
            rooms.remove(best)
        rooms.append((64 if best is None else best) - size)
    assert len(rows) <= len(rooms) + 1


def test_epochs_differ_and_are_repeatable():
    stream, config = made_stream(), PackingConfig(rows=4, length=32)
    make = lambda seed: epoch_batches(packed_epoch(stream, config, np.random.default_rng(seed)))
    one, again, other = make(3), make(3), make(4)
    assert all((a["targets"] == b["targets"]).all() for a, b in zip(one, again, strict=True))
    assert any((a["targets"] != b["targets"]).any() for a, b in zip(one, other, strict=False))


def test_shards_side_by_side_are_the_whole_batch():
    epoch = packed_epoch(made_stream(), PackingConfig(rows=6, length=32), np.random.default_rng(0))
    for index in (0, len(epoch) - 1):
        parts = [epoch.batch(index, [i], 3) for i in range(3)]
        for name, whole in epoch.batch(index, [0], 1).items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole)


@pytest.mark.parametrize("stride", [1, 7, 16])
def test_windows_predict_every_token_once_with_enough_context(stride):
    stream, length = made_stream(count=20), 16
    pairs = []
    for batch, examples in evaluation_batches(stream, PackingConfig(rows=4, length=length), stride):
        assert ((examples >= 0) == (batch["segments"] != 0).any(axis=1)).all()
        for inputs, targets in segments_of(batch):
            predicted = np.flatnonzero(targets != PAD)
            assert len(predicted)
            assert (inputs[0] == BOS) == (predicted[0] == 0) or stride == length
            if inputs[0] != BOS:
                assert predicted[0] >= length - stride
            pairs += [(int(inputs[i]), int(targets[i])) for i in predicted]
    wanted = [pair for document in documents(stream) for pair in zip((BOS, *document), document, strict=False)]
    assert sorted(pairs) == sorted(wanted)


def test_a_stride_that_skips_or_stands_still_is_refused():
    for stride in (0, 17):
        with pytest.raises(UserError, match=f"stride is {stride}"):
            list(evaluation_batches(made_stream(), PackingConfig(rows=4, length=16), stride))


def test_windows_of_long_documents_overlap_by_what_is_not_predicted():
    windows = sliding_windows(np.array([0, 50]), 16, 5)
    assert windows.start.tolist() == [0, 5, 10, 15, 20, 25, 30, 35]
    assert windows.context.tolist() == [0] + 7 * [11]
    assert (windows.length - windows.context).sum() == 50
