"""A profile tells modules, phases and kinds of operations apart, and leaves nothing of the step out."""

import jax
import numpy as np
import pytest

from tests.made_files import tiny_config, write_pairs
from transformer_jax.analysis import profiling
from transformer_jax.analysis.profiling import OUTSIDE, Operation, operation

NETWORK = "jit(gradients)/shard_map/jvp(EncoderDecoder.hidden)"


@pytest.mark.parametrize(
    ("opcode", "path", "found"),
    [
        (
            "fusion",
            f"{NETWORK}/EncoderDecoder.encode/encoder/layer_3/layer_3._residual/self_attention/self_attention.attend/"
            "self_attention._plain/bgqs,bgsk->bgqk/dot_general",
            Operation("encoder/layer/self_attention/attend", "forward", "matrix products"),
        ),
        (
            "fusion",
            "jit(gradients)/transpose(jvp(EncoderDecoder.hidden))/decoder/layer_0/layer_0._residual/feed_forward/add",
            Operation("decoder/layer/feed_forward", "backward", "the rest"),
        ),
        (
            "fusion",
            f"{NETWORK}/EncoderDecoder.encode/EncoderDecoder._embed/mul",
            Operation("embed", "forward", "the rest"),
        ),
        ("all-reduce", "jit(gradients)/shard_map/psum", Operation(OUTSIDE, "forward", "collectives")),
        ("copy", "", Operation(OUTSIDE, "forward", "copies")),
    ],
)
def test_names_of_operations_are_read(opcode: str, path: str, found: Operation) -> None:
    assert operation("jit_gradients", opcode, path) == found


def test_the_update_is_told_by_its_program() -> None:
    assert operation("jit_update", "fusion", "jit(update)/mul") == Operation("update", "update", "the rest")


def test_the_commonest_kind_of_batch_is_profiled() -> None:
    stream = (np.full((2, length), number, np.int32) for number, length in enumerate((8, 5, 5, 8, 5, 8, 8)))
    kind, chosen = profiling._commonest(({"tokens": array} for array in stream), 5)
    assert kind == {"tokens": ((2, 5), "int32")}
    assert [batch["tokens"][0, 0] for batch in chosen] == [1, 2, 4]


def test_a_step_by_module(tmp_path) -> None:
    mapping = tiny_config(write_pairs(tmp_path / "data"))
    profile = profiling.profile_training(mapping, steps=2, folder=tmp_path / "trace")
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert 0 < profile.devices <= jax.device_count()
    modules = {module for (module,) in profile.by("module")}
    wanted = {"encoder/layer/self_attention/attend", "decoder/layer/cross_attention/attend", "loss", "update"}
    assert wanted <= modules
    phases = profile.by("module", "phase")
    for module in ("encoder/layer/feed_forward", "decoder/layer/feed_forward"):
        assert phases[module, "forward"] > 0
        assert phases[module, "backward"] > 0
    assert sum(profile.by("kind").values()) == pytest.approx(sum(profile.busy.values()))
    assert list(profile.by("kind").values()) == sorted(profile.by("kind").values(), reverse=True)
    table = profiling.profile_table(profile, most=3)
    shares = {row[0]: float(row[-1].rstrip("%")) for row in table.rows}
    assert sum(shares.values()) == pytest.approx(200, abs=1)  # once by module, once by kind
    assert f"{len(modules) - 3} others" in shares
