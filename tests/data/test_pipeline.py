"""Pipeline: batches are a pure function of their position, and hold every example once."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_pairs import MadePairs, dataset_of, made_dataset, made_pairs, multi30k

from transformer_jax.data import encoded
from transformer_jax.data.bucketing import BatchingConfig, Shape
from transformer_jax.data.pipeline import Pipeline, format_report, validation_batches
from transformer_jax.data.tokenizers import BOS, EOS, PAD, TokenizerConfig, TokenizerPair, train_tokenizers
from transformer_jax.errors import UserError

TOKENIZER = TokenizerConfig(kind="bpe", vocab_size=400, joint=True, character_coverage=1.0, sampling=0.0)
BATCHING = BatchingConfig(tokens_per_batch=1024, num_shapes=5, max_length=120, overlong="drop", rows_multiple=4)
DATA = made_dataset()
SAMPLING = pytest.mark.parametrize("sampling", [0.0, 0.1], ids=["plain", "sampled"])


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def tokenizers(sampling: float = 0.0) -> TokenizerPair:
    return train_tokenizers(DATA, replace(TOKENIZER, sampling=sampling))


def pipeline(sampling: float = 0.0, seed: int = 0, **batching) -> Pipeline:
    return Pipeline(DATA, tokenizers(sampling), replace(BATCHING, **batching), seed)


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


def digest(batches: list) -> str:
    return hashlib.sha256(b"".join(b[k].tobytes() for b in batches for k in ("source", "target"))).hexdigest()


def rows_of(batches: list, pair: TokenizerPair) -> list[tuple[str, str]]:
    """The text pairs of all rows that are not padding, sorted."""
    pairs = []
    for batch in batches:
        real = (batch["source"] != PAD).any(axis=1)
        assert ((batch["target"] != PAD).any(axis=1) == real).all()
        pairs += zip(pair.source.decode(batch["source"][real]), pair.target.decode(batch["target"][real]), strict=True)
    return sorted(pairs)


@SAMPLING
def test_an_epoch_holds_every_example_once(sampling):
    made = pipeline(sampling)
    everything = sorted(DATA.splits["train"][i] for i in range(len(DATA.splits["train"])))
    iterator = made.iterator()
    for epoch in range(2):
        assert iterator.position == {"epoch": epoch, "batch": 0}
        batches = take(iterator, len(made.epoch(epoch)))
        assert made.epoch(epoch).dropped == 0
        assert rows_of(batches, tokenizers()) == everything


@SAMPLING
def test_rows_end_in_eos_and_are_padded_on_the_right(sampling):
    made = pipeline(sampling)
    for batch in take(made.iterator(), len(made.epoch(0))):
        for side in batch.values():
            assert side.dtype == np.int32
            assert BOS not in side
            ends = (side == EOS).argmax(axis=1)
            real = (side != PAD).any(axis=1)
            assert ((side == EOS).sum(axis=1) == real).all()
            assert ((side != PAD).sum(axis=1) == np.where(real, ends + 1, 0)).all()


@SAMPLING
def test_shapes_are_bounded_and_all_occurring_ones_are_listed(sampling):
    made = pipeline(sampling)
    assert len(made.shapes) <= 5
    seen = set()
    for epoch in range(4):
        seen |= {batch.shape for batch in made.epoch(epoch).plan}
    batch = next(made.iterator())
    assert Shape(*batch["source"].shape, batch["target"].shape[1]) in seen <= set(made.shapes)


@SAMPLING
def test_any_position_resumes_exactly(sampling):
    made = pipeline(sampling)
    count = len(made.epoch(0)) + 3
    iterator, positions, batches = made.iterator(), [], []
    for _ in range(count):
        positions.append(iterator.position)
        batches.append(next(iterator))
    assert positions[-3] == {"epoch": 1, "batch": 0}
    for start in (0, 1, count - 4, count - 3, count - 1):
        fresh = pipeline(sampling).iterator(positions[start])
        assert fresh.position == positions[start]
        assert digest(take(fresh, count - start)) == digest(batches[start:])
    past_the_end = made.iterator({"epoch": 0, "batch": len(made.epoch(0))})
    assert past_the_end.position == {"epoch": 1, "batch": 0}
    assert digest(take(past_the_end, 2)) == digest(batches[-3:-1])


@SAMPLING
def test_batches_are_the_same_in_another_process(sampling):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_pipeline as t; "
        f"print(t.digest(t.take(t.pipeline({sampling}).iterator(), 80)))"
    )
    root = str(Path(encoded.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == digest(take(pipeline(sampling).iterator(), 80))


def test_seeds_and_epochs_differ():
    first = pipeline().iterator()
    epoch = take(first, len(pipeline().epoch(0)))
    assert digest(take(first, len(epoch))) != digest(epoch)
    assert digest(take(pipeline(seed=1).iterator(), len(epoch))) != digest(epoch)
    segmented = [pipeline(0.1).epoch(index).pairs.source.ids for index in (0, 1)]
    assert not np.array_equal(*segmented)


@SAMPLING
def test_blocks_of_rows_make_up_the_global_batch(sampling):
    made = pipeline(sampling)
    whole = take(made.iterator(), 6)
    for count in (2, 4):
        blocks = [take(made.iterator(blocks=[i], count=count), 6) for i in range(count)]
        for index, batch in enumerate(whole):
            for side in batch:
                joined = np.concatenate([block[index][side] for block in blocks])
                np.testing.assert_array_equal(joined, batch[side])
    apart = take(made.iterator(blocks=[0, 2], count=4), 6)
    for batch, own in zip(whole, apart, strict=True):
        for side in batch:
            quarters = np.split(batch[side], 4)
            np.testing.assert_array_equal(own[side], np.concatenate([quarters[0], quarters[2]]))
    with pytest.raises(UserError, match="rows_multiple"):
        made.iterator(blocks=[0], count=3)


@SAMPLING
def test_overlong_examples_are_dropped_or_cut_and_counted(sampling):
    dropping, cutting = (pipeline(sampling, max_length=30, overlong=how) for how in ("drop", "truncate"))
    report, cut = dropping.report(), cutting.report()
    assert 0 < report["dropped_overlong"] < 1000
    assert report["examples"] + report["dropped_overlong"] == 1000
    assert report["truncated"] == 0
    assert (cut["examples"], cut["dropped_overlong"], cut["truncated"]) == (
        1000,
        0,
        report["dropped_overlong"],
    )
    batches = take(cutting.iterator(), cut["batches"])
    for side in ("source", "target"):
        assert sum((batch[side] == EOS).sum() for batch in batches) == 1000
        assert sum((batch[side] != PAD).sum() for batch in batches) == cut[f"{side}_tokens"]
        assert max(batch[side].shape[1] for batch in batches) <= 30


def test_report_counts_what_the_batches_hold():
    made = pipeline()
    report = made.report()
    batches = take(made.iterator(), report["batches"])
    cells = {side: sum(batch[side].size for batch in batches) for side in ("source", "target")}
    for side, size in cells.items():
        assert report["padding"][side] == pytest.approx(1 - report[f"{side}_tokens"] / size)
    tokens = report["source_tokens"] + report["target_tokens"]
    assert report["padding"]["both"] == pytest.approx(1 - tokens / sum(cells.values()))
    assert sum(shape["batches"] for shape in report["shapes"]) == report["batches"]
    assert report["filters"]["train"] == {"pairs": 1000, "dropped": 0}
    text = format_report(report)
    for expected in ("1,000", f"{report['target_tokens']:,}", f"{report['padding']['both']:.1%}"):
        assert expected in text


@SAMPLING
def test_packed_batches_hold_every_pair_once_and_say_which_tokens_are_whose(sampling):
    made = pipeline(sampling, packed_length=64, num_shapes=3)
    assert [shape.packed for shape in made.shapes] == [True] + [False] * (len(made.shapes) - 1)
    batches, pair, found = take(made.iterator(), len(made.epoch(0))), tokenizers(), []
    for batch in batches:
        kinds = {name: (array.shape, str(array.dtype)) for name, array in batch.items()}
        assert kinds in [{name: tuple(spec) for name, spec in one.items()} for one in made.specs]
        if "source_segments" not in batch:
            found += rows_of([batch], pair)
            continue
        for name in ("source", "target"):
            assert ((batch[f"{name}_segments"] == 0) == (batch[name] == PAD)).all()
        for row in range(len(batch["source"])):
            segments = [batch[f"{name}_segments"][row] for name in ("source", "target")]
            assert segments[0].max() == segments[1].max()
            for number in range(1, segments[0].max() + 1):
                texts = [batch[name][row][s == number] for name, s in zip(("source", "target"), segments, strict=True)]
                assert [list(text == EOS) for text in texts] == [[False] * (len(t) - 1) + [True] for t in texts]
                found.append((pair.source.decode([texts[0]])[0], pair.target.decode([texts[1]])[0]))
    assert sorted(found) == sorted(DATA.splits["train"][i] for i in range(len(DATA.splits["train"])))
    assert any(batch["source_segments"].max() > 1 for batch in batches if "source_segments" in batch)
    quarters = [take(made.iterator(blocks=[i], count=4), len(batches)) for i in range(4)]
    for index, batch in enumerate(batches):
        for name, whole in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[index][name] for part in quarters]), whole)


def test_unknown_tokens_are_reported():
    pair = train_tokenizers(DATA, TOKENIZER)
    strange = dataset_of(train=MadePairs(["☃ ba"] * 20, ["ba"] * 20))
    report = Pipeline(strange, pair, BATCHING, 0).report()
    assert report["unknown"]["source"] > 0.2
    assert report["unknown"]["target"] == 0


def test_encoding_is_done_once_and_depends_on_the_tokenizer(monkeypatch):
    before = digest(take(pipeline().iterator(), 10))
    with monkeypatch.context() as patch:
        patch.setattr(encoded, "encode_pairs", None)
        assert digest(take(pipeline().iterator(), 10)) == before
        with pytest.raises(TypeError):
            Pipeline(DATA, train_tokenizers(DATA, replace(TOKENIZER, vocab_size=401)), BATCHING, 0)


def test_texts_are_encoded_alike_in_one_piece_or_many(monkeypatch):
    texts, pair = DATA.splits["validation"].texts(), tokenizers()
    whole = encoded.encode_pairs(texts, pair)
    monkeypatch.setattr(encoded, "CHUNK", 7)
    pieces = encoded.encode_pairs(texts, pair)
    np.testing.assert_array_equal(whole.source.ids, pieces.source.ids)
    np.testing.assert_array_equal(whole.target.offsets, pieces.target.offsets)


def test_validation_batches_hold_every_example_once_in_known_shapes():
    made, split = pipeline(), made_pairs(150)  # the first of the training pairs, so the shapes hold them
    batches, left_out = validation_batches(split, tokenizers(), made.shapes, BATCHING, 10_000)
    assert left_out == 0
    seen = {}
    for batch, examples in batches:
        assert Shape(*batch["source"].shape, batch["target"].shape[1]) in made.shapes
        sources, targets = (tokenizers().source.decode(batch[side]) for side in ("source", "target"))
        for row, example in enumerate(examples):
            if example >= 0:
                assert example not in seen
                seen[example] = (sources[row], targets[row])
            else:
                assert not batch["source"][row].any()
                assert not batch["target"][row].any()
    assert [seen[i] for i in range(len(split))] == [split[i] for i in range(len(split))]


def test_validation_examples_longer_than_any_shape_are_kept_whole():
    texts, made = made_pairs(20, most_words=200).texts(), pipeline()
    split = MadePairs([*texts[0], ""], [*texts[1], ""])
    batches, left_out = validation_batches(split, tokenizers(), made.shapes, BATCHING, 10_000)
    assert left_out == 0
    decoded = {
        example: tokenizers().source.decode([row])[0]
        for batch, examples in batches
        for row, example in zip(batch["source"], examples, strict=True)
        if example >= 0
    }
    assert [decoded[i] for i in range(21)] == [*texts[0], ""]
    assert len({batch["source"].shape for batch, _ in batches} - {s[:2] for s in made.shapes}) <= 4


def test_validation_examples_longer_than_the_model_takes_are_left_out_and_counted():
    """No shape is longer than it takes, though the last one that was doubled would be."""
    split, made = made_pairs(60, most_words=200), pipeline()
    lengths = encoded.encode_pairs(split.texts(), tokenizers()).lengths.max(axis=1)
    longest = int(np.sort(lengths)[-4])
    assert longest > max(made.shapes[-1][1:])
    batches, left_out = validation_batches(split, tokenizers(), made.shapes, BATCHING, longest)
    assert left_out == (lengths > longest).sum() > 0
    seen = [example for _, examples in batches for example in examples if example >= 0]
    assert sorted(seen) == np.flatnonzero(lengths <= longest).tolist()
    assert max(side.shape[1] for batch, _ in batches for side in batch.values()) == longest


def test_nothing_to_train_on_is_refused():
    pair = tokenizers()
    for data in (dataset_of(validation=made_pairs(3)), dataset_of(train=MadePairs([], []))):
        with pytest.raises(UserError, match="training split is empty"):
            Pipeline(data, pair, BATCHING, 0)
    with pytest.raises(UserError, match="max_length = 2"):
        pipeline(max_length=2)
    with pytest.raises(UserError, match="seed is -1"):
        pipeline(seed=-1)


@pytest.mark.parametrize("position", [{"epoch": 0, "batch": 10**6}, {"epoch": -1, "batch": 0}, {"step": 3}], ids=str)
def test_foreign_positions_are_refused(position):
    with pytest.raises(UserError, match="data position"):
        pipeline().iterator(position)


def test_padding_on_multi30k(shared_data):
    """With 8 shapes and every pair in a row of its own, padding on both sides together cannot be less than 12 % here;
    on the target side, where most of the work is, it is under 10 %. Pairs that share rows need two shapes for less."""
    data = multi30k(shared_data / "multi30k")
    pair = train_tokenizers(data, replace(TOKENIZER, vocab_size=10_000))
    batching = BatchingConfig(4096, 8, 128, "drop", 8)
    report = Pipeline(data, pair, batching, 0).report()
    assert len(report["shapes"]) <= 8
    assert report["examples"] == 29_000
    assert report["padding"]["target"] < 0.10
    assert report["padding"]["both"] < 0.14
    padded_targets = [shape["rows"] * shape["target_length"] for shape in report["shapes"]]
    assert min(padded_targets) > 0.85 * 4096
    packed = Pipeline(data, pair, replace(batching, num_shapes=2, packed_length=32), 0).report()
    assert packed["examples"] == 29_000
    assert packed["padding"]["both"] < 0.08
    _, targets = data.splits["validation"].texts()
    assert pair.target.decode(pair.target.encode(targets)) == [" ".join(text.split()) for text in targets]
