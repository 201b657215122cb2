"""Runs to folders of other toolkits and back: the same run, bit for bit; and what a person is told."""

import json
import shutil
import struct

import numpy as np
import pytest

from experiments.command_line import default_config
from tests.conversion.checkpoints import assert_same_arrays, text_run, translation_run
from tests.experiments.commands import command
from transformer_jax.analysis.run import load_run
from transformer_jax.conversion.runs import export_run, import_folder
from transformer_jax.conversion.tensors import read_tensors
from transformer_jax.errors import UserError

pytestmark = pytest.mark.xdist_group("convert")
POST = dict(model__norm_placement="post", model__attention_bias=False, model__activation="silu")


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    return translation_run(tmp_path_factory.mktemp("marian"), **POST)


@pytest.fixture(scope="module")
def pegasus(tmp_path_factory):
    return translation_run(tmp_path_factory.mktemp("pegasus"), tokenizer__kind="unigram", tokenizer__vocab_size=48)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return text_run(tmp_path_factory.mktemp("gpt2"))


def no_default(family: str) -> None:
    raise AssertionError(f"the folder says all of {family}")


@pytest.mark.parametrize("name", ["marian", "pegasus", "gpt2"])
def test_a_run_comes_back_as_it_was(name, request, tmp_path):
    run = load_run(request.getfixturevalue(name))
    written = export_run(run, tmp_path / "there")
    assert written.format == name
    assert sorted(written.files) == sorted(
        str(f.relative_to(tmp_path / "there")) for f in tmp_path.rglob("there/**/*") if f.is_file()
    )
    assert import_folder(tmp_path / "there", tmp_path / "back", no_default) == run.config.family
    back = load_run(tmp_path / "back")
    assert back.config == run.config
    assert_same_arrays(back.params, run.params)
    export_run(back, tmp_path / "again")
    for file in written.files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "there" / file).read_bytes(), file


def test_without_what_export_leaves_beside_it_marian_is_the_same_model(marian, tmp_path):
    """As where another toolkit has saved the folder anew."""
    run = load_run(marian)
    export_run(run, tmp_path / "there")
    for file in sorted((tmp_path / "there" / "transformer_jax").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (tmp_path / "there" / "transformer_jax").rmdir()
    import_folder(tmp_path / "there", tmp_path / "back", default_config)
    back = load_run(tmp_path / "back")
    lines = ["one two three", "eleven", "twelve ten nine"]
    assert back.tokenizer.encode(lines) == run.tokenizer.encode(lines)
    for name in ("source_language", "target_language"):
        assert getattr(back.config.dataset, name) == getattr(run.config.dataset, name)
    pairs = run.tokenizer.encode(lines), run.tokenizer.encode(["eins", "zwei drei", "elf"])
    for one, other in zip(run.token_log_probs(*pairs), back.token_log_probs(*pairs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_gpt2s_own_tokenizer_and_weights_are_a_run_by_themselves(tmp_path):
    """As a published checkpoint is: ids without the three special tokens that GPT-2 lacks."""
    changes = dict(model__end_begins=True, tokenizer__kind="byte_bpe", tokenizer__vocab_size=280)
    run = load_run(text_run(tmp_path / "made", **changes))
    export_run(run, tmp_path / "there")
    shutil.rmtree(tmp_path / "there" / "transformer_jax")
    assert import_folder(tmp_path / "there", tmp_path / "back", default_config) == "language_model"
    back = load_run(tmp_path / "back")
    assert back.tokenizer.encode(["one two."]) == run.tokenizer.encode(["one two."])
    np.testing.assert_allclose(
        back.score(["one", ""], [" two.", "six"]), run.score(["one", ""], [" two.", "six"]), rtol=1e-5
    )


def test_ctranslate2s_file_holds_the_run(pegasus, tmp_path):
    run = load_run(pegasus)
    export_run(run, tmp_path / "there", "ctranslate2")
    content = (tmp_path / "there" / "model.bin").read_bytes()
    place = 0

    def take(form: str):
        nonlocal place
        values = struct.unpack_from(f"={form}", content, place)
        place += struct.calcsize(f"={form}")
        return values if len(values) > 1 else values[0]

    def text() -> str:
        return take(f"{take('H')}s")[:-1].decode()

    assert take("I") == 6
    assert text() == "TransformerSpec"
    _, count = take("II")
    variables = {}
    for _ in range(count):
        name, rank = text(), take("B")
        shape = [take("I") for _ in range(rank)]
        dtype = [np.float32, np.int8, np.int16][take("B")]
        raw = take(f"{take('I')}s")
        variables[name] = np.frombuffer(raw, dtype).reshape(shape)
    aliases = [(text(), text()) for _ in range(take("I"))]
    assert place == len(content)
    variables |= {alias: variables[name] for alias, name in aliases}
    table = np.asarray(run.params["shared_embedding"]["embedding"])
    for name in ("encoder/embeddings_0/weight", "decoder/embeddings/weight", "decoder/projection/weight"):
        np.testing.assert_array_equal(variables[name], table)
    layer = run.params["decoder"]["layer_0"]["cross_attention"]
    kernels = [np.asarray(layer[part]["kernel"]).reshape(16, 16).T for part in ("key", "value")]
    np.testing.assert_array_equal(variables["decoder/layer_0/attention/linear_1/weight"], np.concatenate(kernels))
    assert variables["decoder/pre_norm"] == 1
    vocabulary = json.loads((tmp_path / "there" / "shared_vocabulary.json").read_text())
    assert vocabulary == run.tokenizer.pieces(range(len(table)))
    settings = json.loads((tmp_path / "there" / "config.json").read_text())
    assert settings["layer_norm_epsilon"] == run.model.config.norm_epsilon
    assert settings["decoder_start_token"] == "<s>"


def test_what_a_format_cannot_express_is_said_before_anything_is_written(marian, pegasus, gpt2, tmp_path):
    for run, name, message in (
        (marian, "pegasus", "model.norm_placement is 'post'; pegasus can only express 'pre'. Use --format=marian"),
        (pegasus, "marian", "model.norm_placement is 'pre'; marian can only express 'post'"),
        (pegasus, "gpt2", "--format=gpt2: the family translation has no such format. Known: ctranslate2, marian"),
        (gpt2, "gtp2", "Did you mean gpt2?"),
    ):
        with pytest.raises(UserError) as error:
            export_run(load_run(run), tmp_path / "there", name)
        assert message in str(error.value)
    for switch, value, allowed in (
        ("positions", "rotary", "'sinusoidal' or 'learned'"),
        ("norm", "rms_norm", "'layer_norm'"),
        ("activation", "geglu", "'relu' or 'gelu' or 'silu'"),
        ("num_kv_heads", 1, "None"),
        ("norm_epsilon", 1e-3, "1e-05"),
    ):
        run = translation_run(tmp_path / switch, **{f"model__{switch}": value})
        with pytest.raises(UserError) as error:
            export_run(load_run(run), tmp_path / "there")
        assert f"model.{switch} is {value!r}; Pegasus can only express {allowed}" in str(error.value)
    run = text_run(tmp_path / "scaled", model__scale_embeddings=True)
    with pytest.raises(UserError, match=r"model\.scale_embeddings is True; GPT-2 can only express False"):
        export_run(load_run(run), tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_folder_that_does_not_fit_leaves_nothing_behind(marian, tmp_path):
    export_run(load_run(marian), tmp_path / "there")
    file = tmp_path / "there" / "config.json"
    for changes, message in (
        ({"model_type": "bart"}, "model_type 'bart'"),
        ({"pad_token_id": None}, "lacks the key 'pad_token_id'"),
    ):
        settings = json.loads(file.read_text())
        changed = {name: value for name, value in (settings | changes).items() if value is not None}
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            import_folder(tmp_path / "there", tmp_path / "back", no_default)
        file.write_text(json.dumps(settings))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UserError, match="there and not empty"):
        import_folder(tmp_path / "there", tmp_path / "full", no_default)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "there"]


def test_the_command(marian, tmp_path):
    found = command("convert", "export", marian, f"--to={tmp_path / 'there'}")
    assert found.returncode == 0, found.stderr
    assert "there: marian, config.json" in found.stdout
    assert "note: norms there have an epsilon of 1e-05" in found.stdout
    assert "model.shared.weight" in read_tensors(tmp_path / "there")
    found = command("convert", "import", tmp_path / "there", f"--workdir={tmp_path / 'back'}")
    assert found.returncode == 0, found.stderr
    assert f"Next: python experiments/translate.py {tmp_path / 'back'}" in found.stdout
    assert_same_arrays(load_run(tmp_path / "back").params, load_run(marian).params)
    found = command("convert", "export", marian)
    assert found.returncode == 2
    assert "wanted is export RUN --to=FOLDER, import FOLDER --workdir=RUN, or agree RUN" in found.stderr
