"""TFDS's own translation datasets, read from a data_dir that holds them prepared."""

import json

import pytest
import tensorflow_datasets as tfds
import tensorflow_datasets.translate.wmt14
from test_datasets import config

from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.tfds_translation import unescape
from transformer_jax.errors import UserError

SPLITS = {
    "train": [("Mr. &amp; Mrs. Smith", "Herr &#38; Frau Schmidt"), ("", "leer"), ("two", "zwei")],
    "validation": [("three", "drei")],
    "test": [("four\n", "&quot;vier&quot;")],
}


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """A small dataset under WMT14's name and version, written by TFDS as WMT14's builder would."""
    monkeypatch.setenv("TRANSFORMER_JAX_CACHE", str(tmp_path / "cache"))
    wmt14 = tensorflow_datasets.translate.wmt14.Wmt14Translate

    def examples(split):
        for key, (english, german) in enumerate(SPLITS[split]):
            yield key, {"en": english, "de": german}

    with monkeypatch.context() as patch:
        patch.setattr(wmt14, "_split_generators", lambda self, dl_manager: {s: examples(s) for s in SPLITS})
        builder = wmt14(config="de-en", data_dir=str(tmp_path), file_format="array_record")
        tfds.disable_progress_bar()
        builder.download_and_prepare()
    return tmp_path


def test_either_direction_with_entities_unescaped(data_dir):
    base = config(name="wmt14_translate/de-en", path=str(data_dir))
    dataset = load_dataset(base)
    assert sorted(dataset.splits["train"]) == [("Mr. & Mrs. Smith", "Herr & Frau Schmidt"), ("two", "zwei")]
    assert dataset.report["train"]["empty"] == 1
    assert list(dataset.splits["validation"]) == [("three", "drei")]
    assert list(dataset.splits["test"]) == [("four ", '"vier"')]
    back = load_dataset(
        config(name="wmt14_translate/de-en", path=str(data_dir), source_language="de", target_language="en")
    )
    assert list(back.splits["validation"]) == [("drei", "three")]
    assert back.digest != dataset.digest


def test_a_language_that_the_dataset_lacks(data_dir):
    with pytest.raises(UserError, match="wmt14_translate/de-en has no language 'fr': it has "):
        load_dataset(config(name="wmt14_translate/de-en", path=str(data_dir), target_language="fr"))


def test_an_unknown_config_of_a_known_dataset(data_dir):
    with pytest.raises(UserError, match=r"'wmt14_translate/xx-en'.*de-en"):
        load_dataset(config(name="wmt14_translate/xx-en", path=str(data_dir)))


def test_files_that_need_tensorflow_are_refused_with_the_way_out(data_dir):
    info = data_dir / "wmt14_translate" / "de-en" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"stored as tfrecord.*tfds convert_format"):
        load_dataset(config(name="wmt14_translate/de-en", path=str(data_dir)))


def test_a_dataset_that_is_not_translation(data_dir):
    with pytest.raises(UserError, match="'mnist', whose examples are not pairs of sentences"):
        load_dataset(config(name="mnist", path=str(data_dir)))


def test_only_whole_entities_are_unescaped():
    assert unescape("a &lt; b &#169; &#xA9; &amp;lt; AT&T ?a=1&copy=2 &nonsense; & co;") == (
        "a < b © © &lt; AT&T ?a=1&copy=2 &nonsense; & co;"
    )
    assert unescape("one&#10;line\r") == "one line "
