"""What a Spotlight page is told: the network's own numbers, in every family; and the page as a file."""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.analysis.made_reports import made_example, made_report
from tests.analysis.made_runs import NETWORKS
from transformer_jax.analysis.capture import alone
from transformer_jax.analysis.spotlight import page
from transformer_jax.analysis.spotlight.examples import LAYOUTS, examine
from transformer_jax.analysis.spotlight.page import differing, direction, render
from transformer_jax.analysis.spotlight.report import as_json
from transformer_jax.errors import UserError

pytestmark = pytest.mark.xdist_group("spotlight")
SETTINGS = {"beam_size": 3}
LIBRARIES = Path(page.__file__).parent / "page" / "libraries"


def opened(family):
    run = NETWORKS[family].make()
    vars(run).update(directory=SimpleNamespace(path=Path("runs/made")), checkpoint="best", _chosen=([7], "params"))
    return run


@cache
def of_family(family):
    run = opened(family)
    return run, examine(run, ["one two"], **SETTINGS).examples[0]


def searched(run):
    settings = {**LAYOUTS[run.config.family].search, **SETTINGS}
    return run.trace("one two", method="beam", n_best=3, **settings).found


@pytest.fixture(params=[*LAYOUTS, "lstm, luong", "lstm, bahdanau"])
def examined(request):
    return of_family(request.param)


def test_weights_are_those_of_the_network_as_it_reads_the_best_output(examined):
    run, example = examined
    outputs = [one.tokens for one in searched(run)]
    inputs = run.hypothesis_inputs("one two", outputs)
    captured = alone(run.capture_inputs(inputs, ["*/weights", "logits"]), inputs, 0, run.sides)
    paths = {name: path for path, (name, *_) in LAYOUTS[run.config.family].views.items()}
    assert sum(len(view.layers) for view in example.views) == len(captured) - 1  # all but the logits
    for view in example.views:
        Q, K = (len(example.rows[row].tokens) for row in (view.queries, view.keys))
        assert view.weights.shape[2:] == (Q, K)
        stack, attention = paths[view.name].split("/")
        for layer, weights in zip(view.layers, view.weights, strict=True):
            np.testing.assert_array_equal(weights, captured[f"{stack}/layer_{layer}/{attention}/weights"])


def test_hypotheses_have_the_probabilities_of_the_search(examined):
    run, example = examined
    found = searched(run)
    assert [h.score for h in example.hypotheses] == [h.score for h in found]
    for shown, h in zip(example.hypotheses, found, strict=True):
        assert len(shown.tokens) == len(shown.log_probs) == len(h.tokens) + 1
        np.testing.assert_allclose(sum(shown.log_probs), h.log_prob, atol=1e-3)
    best = example.hypotheses[0].log_probs
    np.testing.assert_allclose(example.candidates.taken_log_probs[-len(best) :], best)


def test_candidates_are_the_likeliest_tokens_at_each_position(examined):
    _, example = examined
    candidates = example.candidates
    assert len(candidates.tokens) == len(example.rows[candidates.row].tokens) == len(candidates.taken)
    assert np.all(np.diff(candidates.log_probs, axis=1) <= 0)
    assert np.all(np.exp(candidates.log_probs).sum(1) <= 1 + 1e-5)
    for tokens, values, taken, value in zip(
        candidates.tokens, candidates.log_probs, candidates.taken, candidates.taken_log_probs, strict=True
    ):
        assert value == dict(zip(tokens, values, strict=True)).get(taken, value) <= values[0]


def test_the_best_output_was_in_the_beam_all_along(examined):
    _, example = examined
    best = example.hypotheses[0].tokens[:-1]
    path = [[beam.token for beam in alive if beam.on_best] for alive in example.beams]
    assert path[: len(best)] == [[token] for token in best]
    assert not any(path[len(best) :])


def test_a_language_model_may_only_read():
    run = opened("language_model")
    (example,) = examine(run, ["one two"], max_tokens=0).examples
    assert "".join(example.rows["text"].tokens[1:]) == "one two"
    assert example.candidates.taken == [*"one two", "?"]
    assert np.isnan(example.candidates.taken_log_probs).tolist() == [False] * 7 + [True]
    assert not example.hypotheses
    assert not example.beams


def test_texts_that_cannot_be_shown_are_named():
    run = opened("translation")
    with pytest.raises(UserError, match="Text 2 is empty"):
        examine(run, ["one", " "])
    with pytest.raises(UserError, match=r"Text 1, 'a{40}': .* has 101 tokens"):
        examine(run, ["a" * 100])


def test_numbers_survive_the_way_to_the_page():
    example = made_example("a b c", "x y")
    content = json.loads(json.dumps(as_json(made_report(example)), allow_nan=False))
    view = content["examples"][0]["views"][0]
    weights = np.frombuffer(base64.b64decode(view["weights"]["uint8"]), np.uint8).reshape(2, 4, 4, 4) / 255
    np.testing.assert_allclose(weights, example.views[0].weights, atol=0.5 / 255 + 1e-9)
    np.testing.assert_allclose(view["importance"], example.views[0].importance, atol=1e-4)
    assert as_json(float("nan")) is None


def test_a_page_carries_all_it_needs_and_runs_nothing_else():
    hostile = "</script><script>alert(1)</script><!--"
    written = render(made_report(made_example(hostile, hostile)))
    scripts = re.findall(r"<script>(.*?)</script>", written, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', written)[1]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']*)'", policy) == digests
    assert len(digests) == 2
    assert policy.startswith("default-src 'none'")
    assert written.count("<script") == written.count("</script>") == 3
    rest = written.replace(scripts[0], "").replace(scripts[1], "")
    assert not re.search(r"<(link|img|iframe)|\ssrc=|@import|url\(", rest)
    data = json.loads(re.search(r'id="report">(.*?)</script>', written, re.DOTALL)[1])
    assert data["examples"][0]["title"] == hostile


def test_the_libraries_are_those_that_are_named_with_their_licences():
    bundle = (LIBRARIES.parent / "libraries.js").read_text()
    notices = bundle[: bundle.index("*/")]
    for name, version in json.loads((LIBRARIES / "package.json").read_text())["dependencies"].items():
        assert f"{name} {version} (" in notices
    assert notices.count("Copyright") > 10


def test_directions_and_differences():
    assert direction("12, רגע abc") == "rtl"
    assert direction("1. مرحبا") == "rtl"
    assert direction("…Über") == direction("123") == direction("字") == "ltr"
    assert differing(["a", "b", "c"], ["a", "x", "b", "c"]) == [False, True, False, False]
