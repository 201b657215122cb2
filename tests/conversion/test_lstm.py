"""Parity with PyTorch's LSTM, and its weights read and written: make_lstm_fixtures.py made the numbers."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from transformer_jax.conversion.lstm import from_torch, to_torch
from transformer_jax.conversion.mapping import unflatten
from transformer_jax.errors import UserError
from transformer_jax.models.recurrent import RecurrentConfig, RecurrentEncoderDecoder


def read(attention: Any) -> tuple[RecurrentConfig, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The hyperparameters, PyTorch's tensors, and the other arrays of a fixture."""
    with np.load(Path(__file__).parents[1] / "models" / "fixtures" / f"lstm_{attention}.npz") as file:
        arrays = dict(file)
    tensors = {key.removeprefix("tensors/"): array for key, array in arrays.items() if key.startswith("tensors/")}
    config = RecurrentConfig(source_vocab_size=20, target_vocab_size=20, d_model=8, num_layers=2, attention=attention)
    return config, tensors, arrays


@pytest.mark.parametrize("attention", ["none", "luong", "bahdanau"])
def test_logits_equal_pytorchs(attention):
    config, tensors, given = read(attention)
    model, params = RecurrentEncoderDecoder(config=config), unflatten(from_torch(tensors, config, "torch"))
    logits = jax.jit(model.apply)({"params": params}, given["source"], given["target"])
    assert (given["source"] == 0).any()
    assert given["logits"].std() > 0.4
    np.testing.assert_allclose(logits, given["logits"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["none", "luong", "bahdanau"])
def test_what_is_written_is_read_as_it_was(attention):
    """Exactly, but for the two biases that PyTorch adds up."""
    config, tensors, _ = read(attention)
    flat = from_torch(tensors, config, "torch")
    written = to_torch(unflatten(flat), config)
    assert {name: array.shape for name, array in written.items()} == {n: a.shape for n, a in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, from_torch(written, config, "ours"), flat)
    for name, array in written.items():
        if "bias" not in name:
            np.testing.assert_array_equal(array, tensors[name])


def test_wrong_tensors_are_named():
    config, tensors, _ = read("luong")
    without = {name: array for name, array in tensors.items() if name != "decoder.weight_hh_l1"}
    with pytest.raises(UserError, match=r"torch lacks decoder\.weight_hh_l1"):
        from_torch(without, config, "torch")
    with pytest.raises(UserError, match=r"attention\.key\.weight is \(3, 8\); its config asks for \(8, 8\)"):
        from_torch({**tensors, "attention.key.weight": np.zeros((3, 8))}, config, "torch")
    with pytest.raises(UserError, match=r"no place for: attention\.query\.weight"):
        from_torch({**tensors, "attention.query.weight": np.zeros((8, 8))}, config, "torch")
