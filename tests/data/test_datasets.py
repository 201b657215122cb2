"""The one door to all datasets: filters, digests, Multi30k, preparation by many processes, no TensorFlow."""

import dataclasses
import gzip
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from transformer_jax.data import multi30k
from transformer_jax.data.cache import cache_directory
from transformer_jax.data.datasets import DatasetConfig, load_dataset
from transformer_jax.errors import UserError

PAIRS = [(f"sentence number {i}", f"Satz Nummer {i}") for i in range(50)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def config(**changes) -> DatasetConfig:
    base = DatasetConfig(
        name="parallel_text",
        source_language="en",
        target_language="de",
        path="",
        train="",
        validation="",
        test="",
        max_length_ratio=9.0,
        max_characters=500,
    )
    return dataclasses.replace(base, **changes)


def write_pairs(folder: Path, name: str, pairs) -> str:
    folder.mkdir(exist_ok=True)
    for language, texts in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        (folder / f"{name}.{language}").write_bytes("".join(f"{text}\n" for text in texts).encode())
    return f"{name}.en,{name}.de"


def test_pairs_are_read_in_order_at_random_and_after_pickling(tmp_path):
    dataset = load_dataset(config(path=str(tmp_path), train=write_pairs(tmp_path, "train", PAIRS)))
    assert list(dataset.splits) == ["train"]
    train = pickle.loads(pickle.dumps(dataset.splits["train"]))
    assert len(train) == len(PAIRS)
    assert [train[i] for i in (7, 0, 49)] == [PAIRS[i] for i in (7, 0, 49)]
    assert list(zip(*train.texts(), strict=True)) == PAIRS
    assert list(train) == PAIRS
    for index in (-1, 50):
        with pytest.raises(IndexError):
            train[index]


def test_filters_drop_and_count_in_training_and_only_count_elsewhere(tmp_path):
    odd = [("", "leer"), ("\u3000", "leer"), ("a", "zehn Zeichen"), ("x" * 501, "y" * 400), ("x" * 501, "")]
    pairs = [*PAIRS[:3], *odd, *PAIRS[3:]]
    names = {split: write_pairs(tmp_path, split, pairs) for split in ("train", "validation")}
    dataset = load_dataset(config(path=str(tmp_path), **names))
    assert dataset.report == {
        "train": {"pairs": 50, "dropped": 5, "empty": 3, "length_ratio": 1, "max_characters": 1},
        "validation": {"pairs": 55, "dropped": 0, "empty": 3, "length_ratio": 1, "max_characters": 1},
    }
    train = pickle.loads(pickle.dumps(dataset.splits["train"]))
    assert list(train) == PAIRS == list(zip(*train.texts(), strict=True))
    assert train[3] == PAIRS[3]
    assert list(dataset.splits["validation"]) == pairs
    everything = load_dataset(config(path=str(tmp_path), **names, max_length_ratio=20, max_characters=501))
    assert everything.report["train"] == {
        "pairs": 52, "dropped": 3, "empty": 3, "length_ratio": 0, "max_characters": 0
    }  # fmt: skip
    assert everything.digest != dataset.digest
    with pytest.raises(UserError, match="the filters leave no training pair of 55"):
        load_dataset(config(path=str(tmp_path), **names, max_characters=1))


def test_training_pairs_can_be_there_in_both_directions(tmp_path):
    """Of training alone; filters have counted each pair once."""
    names = {split: write_pairs(tmp_path, split, [*PAIRS, ("", "leer")]) for split in ("train", "validation")}
    plain, both = (load_dataset(config(path=str(tmp_path), bidirectional=b, **names)) for b in (False, True))
    train = pickle.loads(pickle.dumps(both.splits["train"]))
    assert list(train) == [*PAIRS, *((target, source) for source, target in PAIRS)]
    assert list(zip(*train.texts(), strict=True)) == list(train)
    assert len(train) == 100
    assert train.record(57) == train.record(7) == {"source": PAIRS[7][0], "target": PAIRS[7][1]}
    for index in (-1, 100):
        with pytest.raises(IndexError):
            train[index]
    assert list(both.splits["validation"]) == list(plain.splits["validation"])
    assert both.report == {**plain.report, "train": {**plain.report["train"], "pairs": 100}}
    assert both.digest != plain.digest


@pytest.mark.parametrize("key", ["distilled", "back_translated"])
def test_training_pairs_can_be_there_with_translations_of_one_side_too(key, tmp_path):
    names = {split: write_pairs(tmp_path, split, [("", "leer"), *PAIRS]) for split in ("train", "validation")}
    lines = [f"Satz {i}" for i in range(50)]
    lines[3], lines[7] = "", "Satz " * 500
    file = tmp_path / "teacher.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    load = lambda **keys: load_dataset(config(path=str(tmp_path), **keys, **names))
    plain, more = load(), load(**{key: str(file)})
    train = pickle.loads(pickle.dumps(more.splits["train"]))
    in_order = lambda kept, line: (kept, line) if key == "distilled" else (line, kept)
    sides = zip(*PAIRS, strict=True)
    kept = dict(zip(("distilled", "back_translated"), sides, strict=True))[key]
    taught = [in_order(own, line) for own, line in zip(kept, lines, strict=True) if len(line) in range(1, 9)]
    assert list(train) == [*PAIRS, *taught] == list(zip(*train.texts(), strict=True))
    assert train.record(50 + 3) == {"source": PAIRS[4][0], "target": PAIRS[4][1]}  # the fourth line is empty
    assert list(more.splits["validation"]) == list(plain.splits["validation"])
    counts = {"pairs": 98, "dropped": 3, "empty": 2, "length_ratio": 1, "max_characters": 0}
    assert more.report == {**plain.report, "train": counts}
    both = load(**{key: str(file)}, bidirectional=True)
    assert list(both.splits["train"])[98:] == [(target, source) for source, target in train]
    other = load(**dict.fromkeys(("distilled", "back_translated"), str(file)))
    assert len(other.splits["train"]) == 50 + 2 * 48
    assert {*taught} < {*other.splits["train"]}
    digests = {plain.digest, more.digest, both.digest, other.digest}
    file.write_text(file.read_text().replace("Satz 9", "Satz 90"))
    digests.add(load(**{key: str(file)}).digest)
    assert len(digests) == 5

    file.write_text("\n" * 50)
    with pytest.raises(UserError, match=rf"dataset\.{key}: the filters leave no translation of .*teacher.txt"):
        load(**{key: str(file)})
    file.write_text("Satz\n")
    with pytest.raises(UserError, match=r"teacher.txt has 1 lines, and there are 50 training pairs"):
        load(**{key: str(file)})
    file.write_text("".join(f"{own}\n" for own in kept))
    with pytest.raises(UserError, match=r"teacher.txt has the text itself. It must have a translation of each"):
        load(**{key: str(file)})
    with pytest.raises(UserError, match=rf"dataset\.{key} names .*nothing.txt, which is not a file"):
        load(**{key: str(tmp_path / "nothing.txt")})


def test_digest_is_of_the_text_alone(tmp_path):
    train = write_pairs(tmp_path / "a", "train", PAIRS)
    digest = load_dataset(config(path=str(tmp_path / "a"), train=train)).digest
    write_pairs(tmp_path / "b", "other", PAIRS)
    for name in ("other.en", "other.de"):
        file = tmp_path / "b" / name
        file.with_name(name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
    elsewhere = config(path=str(tmp_path / "b"), train="other.en.gz,other.de.gz")
    assert load_dataset(elsewhere).digest == digest
    assert load_dataset(elsewhere).digest == digest  # from the remembered scan
    test = write_pairs(tmp_path / "a", "test", PAIRS[:2])
    assert load_dataset(config(path=str(tmp_path / "a"), train=train, test=test)).digest != digest
    write_pairs(tmp_path / "a", "train", [*PAIRS[:-1], ("sentence number 49", "Satz nummer 49")])
    assert load_dataset(config(path=str(tmp_path / "a"), train=train)).digest != digest


CHILD = """
import json, sys
from transformer_jax.data.datasets import DatasetConfig, load_dataset
dataset = load_dataset(DatasetConfig(**json.loads(sys.argv[1])))
sources, targets = dataset.splits["train"].texts()
assert "tensorflow" not in sys.modules, "TensorFlow was imported"
print(json.dumps([dataset.digest, len(sources), targets[-1], dataset.splits["train"][5]]))
"""


def test_two_processes_prepare_at_once_without_tensorflow(tmp_path, cache):
    pairs = [(f"sentence number {i}", f"Satz Nummer {i}") for i in range(5000)]
    names = write_pairs(tmp_path, "train", pairs)
    arguments = json.dumps(dataclasses.asdict(config(path=str(tmp_path), train=names)))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [child.communicate(timeout=100) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert json.loads(outputs[0][0])[1:] == [5000, "Satz Nummer 4999", list(pairs[5])]
    assert "preparing parallel_text train" in outputs[0][1] + outputs[1][1]  # progress, on stderr
    assert not list(cache.rglob("*incomplete*"))


def test_a_failed_preparation_leaves_nothing_behind(tmp_path, cache):
    names = write_pairs(tmp_path, "train", PAIRS)
    (tmp_path / "train.de").write_bytes(b"\n" * 49 + "für\n".encode("latin1"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"train\.de, line 50: byte 2 \(0xfc\) is not UTF-8"):
            load_dataset(config(path=str(tmp_path), train=names))
    assert not list(cache.rglob("*.array_record*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "dataset.name is empty"),
        ({"target_language": ""}, "dataset.target_language is empty"),
        ({"target_language": "en"}, "both 'en'"),
        ({"max_length_ratio": 1.0}, "max_length_ratio is 1.0: it must be more than 1"),
        ({"max_length_ratio": float("nan")}, "max_length_ratio is nan"),
        ({"max_characters": 0}, "max_characters is 0"),
    ],
)
def test_impossible_configs_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "multi3k"}, "'multi3k'.*Did you mean multi30k"),
        ({"name": "multi30k", "target_language": "cs"}, "multi30k has no language 'cs': it has en, de, fr"),
        ({"name": "multi30k", "path": "/nowhere"}, "'/nowhere', which lacks train.en.gz, train.de.gz"),
        (
            {"name": "multi30k", "train": "a.tsv"},
            "dataset.train is 'a.tsv', but only dataset.name=parallel_text",
        ),
        ({"name": "phrases", "path": "/nowhere"}, "phrases reads no files"),
        ({"name": "phrases", "target_language": "dee"}, "no locale 'dee': did you mean de"),
    ],
)
def test_what_cannot_be_loaded_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        load_dataset(config(**changes))


def test_cache_directory_is_private_and_can_be_moved(cache):
    assert cache_directory() == cache
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set TRANSFORMER_JAX_CACHE to a folder"):
        cache_directory()


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is writable to the superuser")
def test_a_cache_without_write_permission_is_an_error(cache):
    cache.mkdir(mode=0o500)
    with pytest.raises(UserError, match="no permission to write"):
        cache_directory()


def test_multi30k_in_any_direction_from_a_folder(shared_data):
    for source, target in (("en", "de"), ("fr", "en")):
        dataset = load_dataset(
            config(
                name="multi30k",
                path=str(shared_data / "multi30k"),
                source_language=source,
                target_language=target,
                max_length_ratio=100.0,
            )
        )
        assert {split: len(pairs) for split, pairs in dataset.splits.items()} == {
            "train": 29_000, "validation": 1_014, "test": 1_000
        }  # fmt: skip
        last = []
        for language in (source, target):
            packed = (shared_data / "multi30k" / f"test_2016_flickr.{language}.gz").read_bytes()
            last.append(gzip.decompress(packed).decode().split("\n")[-2])
        assert dataset.splits["test"][999] == tuple(last)


def test_multi30k_checksums_are_those_of_the_files(shared_data):
    for name, sha256 in multi30k.SHA256.items():
        assert multi30k.file_hash(shared_data / "multi30k" / name) == sha256


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A stand-in for the public source: a small file for every name, with its sum on record."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in multi30k.SHA256:
        (folder / name).write_bytes(gzip.compress(f"{name} one\n{name} two\n".encode()))
    sums = {name: multi30k.file_hash(folder / name) for name in multi30k.SHA256}
    monkeypatch.setattr(multi30k, "SHA256", sums)
    monkeypatch.setattr(multi30k, "URL", folder.as_uri())
    monkeypatch.setattr(multi30k.time, "sleep", lambda seconds: None)
    return folder


def test_multi30k_download_is_checked_kept_and_resumed(published, cache):
    dataset = load_dataset(config(name="multi30k"))
    assert dataset.splits["validation"][1] == ("val.en.gz two", "val.de.gz two")
    # Only what is missing or broken is fetched again.
    kept = cache / "downloads" / "multi30k"
    (kept / "train.en.gz").write_bytes(b"broken")
    for name in multi30k.SHA256:
        if name != "train.en.gz":
            (published / name).unlink()
    assert load_dataset(config(name="multi30k")).digest == dataset.digest


def test_multi30k_download_of_other_contents_is_refused(published, cache):
    (published / "val.de.gz").write_bytes(b"a login page")
    with pytest.raises(UserError, match=r"val\.de\.gz could not be downloaded .*SHA-256.*set dataset.path"):
        load_dataset(config(name="multi30k"))
    assert not (cache / "downloads" / "multi30k" / "val.de.gz").exists()


def test_multi30k_without_network_says_what_to_do(published, monkeypatch):
    monkeypatch.setattr(multi30k, "URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not be downloaded .*refused.*set dataset\.path to a folder"):
        load_dataset(config(name="multi30k"))
