"""Images from configs to use: a discrete VAE, a text-to-image model on its tokens, a classifier that judges digits."""

import json
import signal

import matplotlib.image
import numpy as np
import pytest

from tests.experiments.commands import command
from tests.made_files import assert_same_run
from tests.made_images import FEW, tiny_image_config, write_digits
from transformer_jax.analysis.run import load_run
from transformer_jax.data import captioned_shapes
from transformer_jax.data.images import _Epoch, load_images
from transformer_jax.decoding.images import log_probs
from transformer_jax.errors import UserError
from transformer_jax.training.loop import Outcome, train

pytestmark = pytest.mark.xdist_group("image_runs")
CAPTIONS = ["a small red circle", "two large blue squares above a small white cross"]


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioned_shapes, "SPLITS", FEW)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def configs(folder):
    digits = write_digits(folder / "digits")
    return {
        "discrete_vae": tiny_image_config("discrete_vae"),
        "text_to_image": tiny_image_config("text_to_image", image_tokenizer__run=folder / "discrete_vae"),
        "image_classification": tiny_image_config("image_classification", dataset__path=digits),
    }


@pytest.fixture(scope="module")
def runs(folder, configs):
    """The three runs by family, trained."""
    for family, config in configs.items():
        assert train(config, folder / family) == Outcome(24, finished=True)
    return {family: load_run(folder / family) for family in configs}


def test_losses_fall(runs):
    for run in runs.values():
        losses = run.history()["validation/loss"].dropna().to_list()
        assert losses[-1] < losses[0], run.config.family


@pytest.mark.parametrize("family", ["discrete_vae", "text_to_image", "image_classification"])
def test_interruptions_change_nothing(family, runs, configs, folder, monkeypatch):
    """Stopped in the middle of a log window and of what is averaged."""
    batch, made = _Epoch.batch, []

    def batch_and_stop(epoch, index, blocks, count):
        made.append(index)
        if len(made) == 13:
            signal.raise_signal(signal.SIGTERM)
        return batch(epoch, index, blocks, count)

    # Evaluation makes its batches before the first step.
    monkeypatch.setattr("transformer_jax.data.images.ArrayBatches.make_epoch", _counted(batch_and_stop))
    again = folder / f"{family}-again"
    assert train(configs[family], again) == Outcome(13, finished=False)
    monkeypatch.undo()
    assert train(configs[family], again) == Outcome(24, finished=True)
    assert_same_run(again, folder / family)


def _counted(batch):
    class Counted(_Epoch):
        def batch(self, index, blocks, count):
            return batch(self, index, blocks, count)

    def make_epoch(self, index):
        order = np.random.default_rng((self._seed, index)).permutation(self._count)
        return Counted(self._arrays, order, self._rows)

    return make_epoch


def test_images_become_tokens_and_images_again(runs):
    run, split = runs["discrete_vae"], load_images(runs["discrete_vae"].config.dataset).split("test")
    tokens = run.encode_images(split.images)
    model = run.model.config
    assert (tokens.shape, tokens.max() < model.vocab_size) == ((16, model.grid**2), True)
    images = run.decode_images(tokens)
    assert (images.shape, images.dtype) == (split.images.shape, np.uint8)
    record, text = run.evaluate("unseen", None)
    error = np.abs(run.decode_images(run.encode_images(split.images)).astype(int) - split.images).mean()
    assert run.evaluate("test", None)[0]["scores"]["error"] == pytest.approx(error)
    assert {"loss", "kl", "codes_used", "attributes"} <= set(record["scores"])
    assert "8 images of unseen" in text
    with pytest.raises(UserError, match="--files does not concern"):
        run.evaluate("test", "a.png")


def test_captions_become_images_that_follow_from_the_seed(runs):
    run = runs["text_to_image"]
    images = run.generate(CAPTIONS, n_best=2)
    assert (images.shape, images.dtype) == ((2, 2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(run.generate(CAPTIONS, n_best=2), images)
    assert (run.generate(CAPTIONS, n_best=2, seed=3) != images).any()
    assert (images[:, 0] != images[:, 1]).any()
    # Alone, a caption gives what it gives beside others.
    np.testing.assert_array_equal(run.generate(CAPTIONS[:1], n_best=2)[0], images[0])


def test_the_best_of_several_candidates(runs):
    run = runs["text_to_image"]
    settings = dict(candidates=4, n_best=2, guidance=2.0)
    drawn = [h for best in run.search(CAPTIONS, **{**settings, "n_best": 4}) for h in best]
    rows, nothing = np.array([h.tokens for h in drawn]), np.tile(run.model.config.no_caption, (8, 1))
    text = np.repeat(run.text(CAPTIONS), 4, axis=0)
    score = lambda text: log_probs(run.model, run.params, text, rows)
    likelihood, without = score(text), score(nothing)
    for rerank, expected in (("likelihood", likelihood), ("caption", likelihood - without)):
        found = run.search(CAPTIONS, **settings, rerank=rerank)
        best = -np.sort(-expected.reshape(2, 4), axis=1)[:, :2]
        np.testing.assert_allclose([[h.score for h in each] for each in found], best, rtol=1e-4, atol=1e-3)
    for settings, message in (
        ({"n_best": 3, "candidates": 2}, "n_best is 3.*candidates, 2"),
        ({"beams": 2}, "no setting 'beams'"),
        ({"method": "greedy", "n_best": 2}, "n_best"),
        ({"rerank": "chrf"}, "rerank is 'chrf'"),
    ):
        with pytest.raises(UserError, match=message):
            run.generate(CAPTIONS, **settings)


def test_scores_are_of_the_image_given_the_caption(runs):
    run = runs["text_to_image"]
    (best,) = run.search(CAPTIONS[:1], method="beam", beam_size=2)
    scored = log_probs(run.model, run.params, run.text(CAPTIONS[:1]), np.array([best[0].tokens]))
    np.testing.assert_allclose(scored, [best[0].log_prob], rtol=1e-4)
    image = run.decode_images([best[0].tokens])
    assert run.score(CAPTIONS[:1], image).shape == (1,)
    with pytest.raises(UserError, match=r"tokens, model\.text_length is 24"):
        run.generate(["a very " * 30])


def test_evaluation_looks_at_images(runs):
    run = runs["text_to_image"]
    record, text = run.evaluate("unseen", None, method="greedy")
    assert {"image_nll", "text_nll", "attributes", "relation", "scenes"} <= set(record["scores"])
    with np.load(run.directory.inside(record["images"])) as kept:
        assert kept["images"].shape == (8, 1, 32, 32, 3)
        np.testing.assert_array_equal(kept["images"], run.generate(kept["captions"].tolist(), method="greedy"))
    assert "8 captions, 1 image(s) each of unseen" in text


def test_a_run_needs_nothing_but_its_directory(runs, folder):
    """The discrete VAE is a copy: the run that it came from may go."""
    tokenizer = runs["text_to_image"].image_tokenizer
    assert tokenizer.digest == runs["discrete_vae"].image_tokenizer.digest
    arrays = folder / "text_to_image" / "tokenizer" / "image_tokenizer.npz"
    content = arrays.read_bytes()
    try:
        arrays.write_bytes(content[:-200])
        with pytest.raises(UserError, match="image tokenizer"):
            _ = load_run(folder / "text_to_image").image_tokenizer
    finally:
        arrays.write_bytes(content)


def test_a_classifier_judges_digits(runs, configs, folder):
    run = runs["image_classification"]
    record, _ = run.evaluate("test", None)
    split = load_images(run.config.dataset).split("test")
    found = run.classify(split.images)
    assert found.shape == (8, 10)
    assert record["scores"]["accuracy"] == pytest.approx((found.argmax(1) == split.labels).mean())
    digits = {"dataset__name": "mnist", "dataset__path": configs["image_classification"].dataset.path}
    changes = {"training__total_steps": 2, "checkpoints__every_steps": 2, "evaluation__every_steps": 2}
    changes |= {"evaluation__weights": "latest"}
    train(tiny_image_config("discrete_vae", **digits, **changes), folder / "digits-vae")
    judged = {"image_tokenizer__run": folder / "digits-vae", "evaluation__classifier": folder / "image_classification"}
    judged |= {
        "evaluation__metric": "accuracy",
        "tokenizer__vocab_size": 300,
        "model__text_length": 32,
        **digits,
        **changes,
    }
    train(tiny_image_config("text_to_image", **judged), folder / "digits-model")
    drawn = load_run(folder / "digits-model")
    assert 0 <= drawn.history()["validation/accuracy"].dropna().iloc[-1] <= 1
    assert drawn.generate(["the digit seven"]).shape == (1, 1, 32, 32, 1)


def test_the_commands(runs, folder, tmp_path):
    done = command("generate", folder / "text_to_image", *(f"--text={c}" for c in CAPTIONS), f"--output={tmp_path}/a")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "a" / "images.jsonl").read_text().splitlines()]
    assert [row["caption"] for row in rows] == CAPTIONS
    assert rows[0]["file"] == "000-a-small-red-circle-0.png"
    image = matplotlib.image.imread(tmp_path / "a" / rows[0]["file"])
    assert image.shape[:2] == (32, 32)
    assert (tmp_path / "a" / "grid.png").is_file()
    done = command("generate", folder / "text_to_image", "--prompt=a")
    assert (done.returncode, "--prompt is for language_model" in done.stderr) == (2, True)
    done = command("generate", folder / "discrete_vae", "--text=a")
    assert "this is for language_model or text_to_image; use experiments/evaluate.py" in done.stderr


@pytest.mark.parametrize(
    ("family", "changes", "parts"),
    [
        ("discrete_vae", {"model__channels": 3}, ["no key channels"]),
        ("discrete_vae", {"task__last_temperature": 2.0}, ["task.last_temperature is 2.0", "first_temperature, 1.0"]),
        ("discrete_vae", {"dataset__name": "cifar"}, ["dataset.name", "'mnist'"]),
        ("text_to_image", {"image_tokenizer__run": ""}, ["image_tokenizer.run is empty", "configs/discrete_vae.py"]),
        ("text_to_image", {"image_tokenizer__run": "nowhere"}, ["nowhere is no run"]),
        ("text_to_image", {"evaluation__metric": "accuracy"}, ["evaluation.metric='accuracy' is not measured"]),
        ("text_to_image", {"task__caption_dropout": 0.0, "decoding__guidance": 2.0}, ["set task.caption_dropout"]),
        ("image_classification", {"dataset__name": "captioned_shapes"}, ["has no classes"]),
        ("image_classification", {"training__accumulation": 3}, ["batching.rows=8"]),
    ],
)
def test_bad_input_leaves_no_run(tmp_path, family, changes, parts):
    with pytest.raises(UserError) as error:
        train(tiny_image_config(family, **changes), tmp_path / "run")
    assert all(part in str(error.value) for part in parts), str(error.value)
    left = {entry.name for entry in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert left <= {".lock"}


def test_images_of_another_kind_need_a_tokenizer_of_their_own(runs, folder, tmp_path, configs):
    digits = {"dataset__name": "mnist", "dataset__path": configs["image_classification"].dataset.path}
    with pytest.raises(UserError, match=r"images with 3 channels, those of mnist have 1"):
        train(
            tiny_image_config("text_to_image", image_tokenizer__run=folder / "discrete_vae", **digits), tmp_path / "r"
        )
    with pytest.raises(UserError, match="is of the family image_classification; give a discrete_vae"):
        train(tiny_image_config("text_to_image", image_tokenizer__run=folder / "image_classification"), tmp_path / "s")
