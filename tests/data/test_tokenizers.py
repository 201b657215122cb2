"""Tokenizers: text survives the round trip, training is reproducible, sampling is a pure function."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_pairs import MadePairs, dataset_of, made_dataset, made_pairs

from transformer_jax.data import tokenizers as module
from transformer_jax.data.tokenizers import (
    BOS,
    EOS,
    PAD,
    UNK,
    TokenizerConfig,
    TokenizerPair,
    load_tokenizers,
    normalize,
    train_tokenizers,
)
from transformer_jax.errors import UserError

BPE = TokenizerConfig(kind="bpe", vocab_size=400, joint=True, character_coverage=1.0, sampling=0.1)
UNIGRAM = replace(BPE, kind="unigram", vocab_size=300, sampling=0.2)
BYTE = replace(BPE, kind="byte", vocab_size=260, sampling=0.0)
KINDS = [BPE, UNIGRAM, BYTE]
DATA = made_dataset(400)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def ids(pair: TokenizerPair, texts: list[str]) -> list[list[int]]:
    return pair.source.encode(texts)


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_text_survives_the_round_trip(config):
    pair = train_tokenizers(DATA, config)
    sources, targets = DATA.splits["validation"].texts()
    for tokenizer, texts in ((pair.source, sources), (pair.target, targets)):
        assert tokenizer.decode(tokenizer.encode(texts)) == texts
        assert tokenizer.decode(tokenizer.sample(texts, seed=3)) == texts


def test_words_are_ids_of_their_own_and_the_rarest_are_unknown():
    data = dataset_of(train=MadePairs(["a b b c c c"] * 20, ["d d d d"] * 20))
    whole = train_tokenizers(data, replace(BPE, kind="word", vocab_size=8, sampling=0.0)).source
    assert whole.pieces(range(4, 8)) == ["▁d", "▁c", "▁b", "▁a"]
    assert whole.decode(whole.encode(["c a  d"])) == ["c a d"]
    few = train_tokenizers(data, replace(BPE, kind="word", vocab_size=6, sampling=0.0)).source
    assert few.encode(["c a d bb"]) == [[5, UNK, 4, UNK]]


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_decode_stops_at_eos_and_leaves_out_padding(config):
    tokenizer = train_tokenizers(DATA, config).target
    [plain] = tokenizer.encode(["Dada."])
    assert min(plain) > BOS
    assert tokenizer.decode([[BOS, *plain, EOS, *plain], [*plain, PAD, PAD], [EOS], []]) == ["Dada."] * 2 + [""] * 2
    assert tokenizer.decode([]) == []
    assert tokenizer.encode(["", " \n"]) == [[], []]
    assert tokenizer.pieces([PAD, EOS, UNK, BOS]) == ["<pad>", "</s>", "<unk>", "<s>"]


def test_characters_keep_their_form_and_white_space_becomes_single_spaces():
    texts = ["½ Liter… 25 m² ﬁn", "\tDas ist\u00a0 ein  Satz.\n", "cafe\u0301"]
    assert [normalize(text) for text in texts] == ["½ Liter… 25 m² ﬁn", "Das ist ein Satz.", "café"]
    data = dataset_of(train=MadePairs(texts * 9, texts * 9))
    pair = train_tokenizers(data, replace(BPE, vocab_size=50, sampling=0.0))
    assert pair.source.decode(pair.source.encode(texts)) == [normalize(text) for text in texts]


def test_unseen_characters_are_unknown_and_stay_visible():
    pair = train_tokenizers(DATA, BPE)
    [tokens] = pair.source.encode(["ba ☃ ba"])
    assert UNK in tokens
    assert pair.source.decode([tokens]) == ["ba ⁇ ba"]
    byte = train_tokenizers(DATA, BYTE).source
    assert byte.encode(["A☃"]) == [[0x41 + 4, 0xE2 + 4, 0x98 + 4, 0x83 + 4]]
    assert byte.pieces([0x41 + 4, 0xE2 + 4]) == ["A", "<0xE2>"]
    assert byte.decode([[0xE2 + 4, 0x41 + 4]]) == ["\ufffdA"]


def test_separate_vocabularies_know_their_own_language_only():
    texts = made_pairs(300).texts()
    data = dataset_of(train=MadePairs([text.replace("b", "x") for text in texts[0]], texts[1]))
    pair = train_tokenizers(data, replace(BPE, joint=False))
    assert pair.source is not pair.target
    assert UNK in pair.target.encode(["x"])[0]
    assert UNK not in pair.source.encode(["x"])[0]
    joint = train_tokenizers(data, BPE)
    assert joint.source is joint.target


def test_training_uses_the_training_split_only():
    other = dataset_of(train=DATA.splits["train"], validation=made_pairs(10, seed=9))
    assert train_tokenizers(DATA, BPE).digest == train_tokenizers(other, BPE).digest
    assert train_tokenizers(dataset_of(train=made_pairs(400, seed=9)), BPE).digest != train_tokenizers(DATA, BPE).digest


@pytest.mark.parametrize("config", [BPE, UNIGRAM], ids=lambda config: config.kind)
def test_training_is_cached_and_reproducible(config, monkeypatch, tmp_path):
    first = train_tokenizers(DATA, config)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_train", None)  # what is cached is not trained again, whatever its sampling
        assert train_tokenizers(DATA, replace(config, sampling=0.0)).digest == first.digest
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path))
    assert train_tokenizers(DATA, config).digest == first.digest


@pytest.mark.parametrize("config", [*KINDS, replace(BPE, joint=False)], ids=lambda c: f"{c.kind}-{c.joint}")
def test_a_saved_pair_is_the_same_pair(config, tmp_path):
    pair = train_tokenizers(DATA, config)
    pair.save(tmp_path / "tokenizer")
    loaded = load_tokenizers(tmp_path / "tokenizer")
    assert (loaded.config, loaded.digest) == (pair.config, pair.digest)
    assert (loaded.source is loaded.target) == config.joint
    texts = DATA.splits["validation"].texts()[0]
    assert loaded.source.sample(texts, 5) == pair.source.sample(texts, 5)
    assert pickle.loads(pickle.dumps(pair)).source.encode(texts) == pair.source.encode(texts)


@pytest.mark.parametrize("config", [BPE, UNIGRAM], ids=lambda config: config.kind)
def test_sampling_is_a_pure_function_of_text_and_seed(config, tmp_path):
    pair = train_tokenizers(DATA, config)
    texts = DATA.splits["train"].texts()[0]
    drawn = pair.source.sample(texts, 7)
    assert drawn == pair.source.sample(texts, 7)
    other = pair.source.sample(texts, 8)
    assert sum(a != b for a, b in zip(drawn, other, strict=True)) > len(texts) / 2
    assert drawn != pair.source.encode(texts)
    pair.save(tmp_path)
    program = (
        "import json, sys; from transformer_jax.data.tokenizers import load_tokenizers; "
        "print(json.dumps(load_tokenizers(sys.argv[1]).source.sample(json.load(sys.stdin), 7)))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        input=json.dumps(texts),
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(elsewhere.stdout) == drawn


def test_stronger_dropout_makes_more_pieces():
    texts = DATA.splits["train"].texts()[0]
    total = lambda p: sum(map(len, train_tokenizers(DATA, replace(BPE, sampling=p)).source.sample(texts, 1)))
    plain, some, many = total(0.0), total(0.1), total(0.5)
    assert 1.02 * plain < some < many


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "syllable"}, "tokenizer.kind"),
        ({"vocab_size": 4}, "tokenizer.vocab_size"),
        ({"kind": "byte"}, "260"),
        ({"kind": "byte", "vocab_size": 260}, "tokenizer.sampling"),
        ({"character_coverage": 0.0}, "tokenizer.character_coverage"),
        ({"sampling": -0.1}, "tokenizer.sampling"),
    ],
)
def test_impossible_values_are_named(change, named):
    with pytest.raises(UserError, match=named):
        replace(BPE, **change)


@pytest.mark.parametrize("config", [BPE, UNIGRAM], ids=lambda config: config.kind)
def test_a_vocabulary_too_large_is_refused_with_the_largest_that_works(config):
    data = dataset_of(train=made_pairs(50))
    with pytest.raises(UserError, match="at most") as error:
        train_tokenizers(data, replace(config, vocab_size=50_000))
    largest = int(str(error.value).rpartition(" ")[2])
    assert train_tokenizers(data, replace(config, vocab_size=largest)).source.vocab_size == largest
    with pytest.raises(UserError, match="at most"):
        train_tokenizers(data, replace(config, vocab_size=largest + 1))


def test_a_vocabulary_too_small_or_no_text_is_refused():
    with pytest.raises(UserError, match="character_coverage"):
        train_tokenizers(DATA, replace(BPE, vocab_size=10))
    for data in (dataset_of(validation=made_pairs(5)), dataset_of(train=MadePairs([], []))):
        with pytest.raises(UserError, match="training split is empty"):
            train_tokenizers(data, BPE)
    with pytest.raises(UserError, match="no text"):
        train_tokenizers(dataset_of(train=MadePairs([" "], [""])), BPE)


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_tokenizers(tmp_path)
    train_tokenizers(DATA, BPE).save(tmp_path)
    model = tmp_path / "joint.model"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_tokenizers(tmp_path)
    model.unlink()
    with pytest.raises(UserError, match="missing"):
        load_tokenizers(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizers(tmp_path)
