"""Attention maps of every family: distributions under the names of what looks and what is looked at."""

import numpy as np
import pytest

from tests.analysis.made_runs import FAMILIES
from transformer_jax.analysis.interpret.attention import attention_maps, save_attention_figures


@pytest.mark.parametrize(
    ("family", "sizes"),
    [("translation", {"encoder": (8, 8), "decoder": (5, 5), "cross": (5, 8)}), ("language_model", {"decoder": (8, 8)})],
)
def test_maps_are_named_distributions(family, sizes, tmp_path):
    run, texts = FAMILIES[family].make(), [side[0] for side in FAMILIES[family].texts]
    found = attention_maps(run, *texts)
    assert {kind: map.shape for kind, map in found.maps.items()} == {
        kind: (2, 4, *size) for kind, size in sizes.items()
    }
    for kind, size in sizes.items():
        assert (len(found.rows[kind]), len(found.columns[kind])) == size
        np.testing.assert_allclose(found.maps[kind].sum(-1), 1.0, atol=1e-5)
    assert not np.triu(found.maps["decoder"], 1).any()
    assert found.columns["decoder"][0] == "<s>"
    assert found.columns["decoder"][1:] == found.rows["decoder"][:-1]
    paths = save_attention_figures(run, *texts, folder=tmp_path / "maps")
    assert [path.name for path in paths] == [f"{kind}.png" for kind in sizes]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
