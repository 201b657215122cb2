"""Statistics and singular values of matrices whose spectra are known."""

import numpy as np
import pytest

from transformer_jax.analysis.interpret.spectra import spectra
from transformer_jax.errors import UserError

ROTATION = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]


def test_known_spectra():
    heads = ROTATION.reshape(2, 3, 6)  # [H, K, D]: from both heads back to the model
    params = {
        "self_attention": {"output": {"kernel": 2 * heads}, "query": {"kernel": np.ones((4, 2, 3))}},
        "norm": {"scale": np.asarray([1.0, -3.0])},
    }
    found = spectra(params)
    np.testing.assert_allclose(found.singular_values["self_attention/output/kernel"], 2.0)
    of = found.statistics.loc
    rotation, ones = of["self_attention/output/kernel"], of["self_attention/query/kernel"]
    np.testing.assert_allclose([rotation["stable_rank"], rotation["effective_rank"], rotation["condition"]], [6, 6, 1])
    np.testing.assert_allclose(ones["spectral_norm"], np.sqrt(4 * 6))
    np.testing.assert_allclose([ones["stable_rank"], ones["effective_rank"]], 1.0, rtol=1e-6)
    assert of["norm/scale"]["largest"] == 3.0
    assert np.isnan(of["norm/scale"]["stable_rank"])
    assert set(found.singular_values) == {"self_attention/output/kernel", "self_attention/query/kernel"}
    assert found.plot(["*output*"]).axes
    with pytest.raises(UserError, match="nothing is called"):
        spectra(params, ["*/outptu/*"])
