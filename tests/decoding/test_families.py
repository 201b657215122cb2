"""Searches of every family that writes, with its real network: greedy, beams and samples."""

from dataclasses import replace

import numpy as np
import pytest

from tests.analysis.made_runs import NETWORKS

LINES = ["one two", "four", "one two"]
SEARCHES = {
    "greedy": dict(method="greedy", n_best=1),
    "beam": dict(method="beam", n_best=2, beam_size=3),
    "sample": dict(method="sample", n_best=2),
}


@pytest.fixture(scope="module", params=NETWORKS)
def made(request):
    family = NETWORKS[request.param]
    return family, family.make()


def tokens(found):
    return [[hypothesis.tokens for hypothesis in best] for best in found]


@pytest.mark.parametrize("method", SEARCHES)
def test_outputs_have_the_probabilities_that_reading_them_gives(made, method):
    """Cached steps against teacher forcing; n of them, and what is searched for differs and comes best first."""
    family, run = made
    for line, best in zip(LINES, run.search(LINES, **SEARCHES[method]), strict=True):
        assert len(best) == SEARCHES[method]["n_best"]
        if method != "sample":
            assert len({tuple(h.tokens) for h in best}) == len(best)
            assert [h.score for h in best] == sorted((h.score for h in best), reverse=True)
        for h in best:
            np.testing.assert_allclose(family.log_prob(run, line, h.tokens), h.log_prob, rtol=1e-4)


def test_samples_follow_from_line_number_and_seed(made):
    _, run = made
    found = tokens(run.search(LINES, **SEARCHES["sample"]))
    assert tokens(run.search(LINES, **SEARCHES["sample"])) == found
    assert tokens(run.search(LINES[:1], **SEARCHES["sample"])) == found[:1]
    assert found[2] != found[0]  # the same line in another place
    assert tokens(run.search(LINES, **SEARCHES["sample"], seed=5)) != found


def test_a_cold_sample_is_the_greedy_output(made):
    _, run = made
    cold = replace(run.config.decoding.sampling, temperature=1e-3)
    assert tokens(run.search(LINES, method="sample", sampling=cold)) == tokens(run.search(LINES, **SEARCHES["greedy"]))
