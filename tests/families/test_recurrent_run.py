"""A run of LSTMs is a run like any other: it learns, continues exactly, is looked into, exported and imported."""

import signal

import jax
import numpy as np
import pytest

from tests.made_files import FULL, assert_same_run, recurrent_config, write_pairs
from transformer_jax.analysis.interpret.attention import save_attention_figures
from transformer_jax.analysis.run import load_run
from transformer_jax.conversion.runs import export_run, import_folder
from transformer_jax.errors import UserError
from transformer_jax.training import loop
from transformer_jax.training.loop import Outcome, train

pytestmark = pytest.mark.xdist_group("recurrent run")
SETTINGS = {**FULL, "batching__packed_length": 0, "optimizer__peak_learning_rate": 2e-2, "batching__num_shapes": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"), most_words=4)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    assert train(recurrent_config(data, **SETTINGS), run) == Outcome(60, finished=True)
    return run


def test_it_learns(whole):
    losses = load_run(whole).history()["train/loss"].dropna().to_list()
    assert losses[-1] < 0.8 * losses[0]


def test_an_interruption_changes_nothing(data, whole, tmp_path, monkeypatch):
    add = loop.Window.add

    def add_and_stop(window, dispatched):
        add(window, dispatched)
        if dispatched.number == 33:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Window, "add", add_and_stop)
    assert train(recurrent_config(data, **SETTINGS), tmp_path) == Outcome(33, finished=False)
    monkeypatch.undo()
    assert train(recurrent_config(data, **SETTINGS), tmp_path) == Outcome(60, finished=True)
    assert_same_run(tmp_path, whole)


def test_it_scores_what_it_finds_and_shows_where_it_looks(whole, tmp_path):
    run = load_run(whole)
    ((best, *_),) = run.search(["one two three"], method="beam", n_best=2, beam_size=3)
    scored = run.token_log_probs(run.tokenizer.encode(["one two three"]), [best.tokens])[0].sum()
    np.testing.assert_allclose(scored, best.log_prob, rtol=1e-4)
    paths = save_attention_figures(run, "one two three", "eins zwei drei", folder=tmp_path)
    assert [path.name for path in paths] == ["cross.png"]
    assert paths[0].stat().st_size > 1000


def test_it_is_exported_and_imported_as_it_is(whole, tmp_path):
    """In its own format alone; the import translates as the run does."""
    run = load_run(whole)
    with pytest.raises(UserError, match="has no such format"):
        export_run(run, tmp_path / "marian", "marian")
    assert export_run(run, tmp_path / "lstm").format == "lstm"
    import_folder(tmp_path / "lstm", tmp_path / "again", lambda family: None)
    again = load_run(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.params, run.params)
    assert again.translate(["one two three"]) == run.translate(["one two three"])
