"""Checkpoints: restoring is exact on any devices, and no damage or mismatch goes unnoticed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transformer_jax.errors import UserError
from transformer_jax.training.checkpoints import Checkpoints
from transformer_jax.training.digests import CheckpointDamaged


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    ema_params: dict[str, Any] | None


def make_state(seed: int = 0, width: int = 4, ema: bool = True) -> State:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "encoder": {"layer_0": {"kernel": jax.random.normal(keys[0], (8, width))}},
        "decoder": {"bias": jax.random.normal(keys[1], (width,))},
        "embedding": jax.random.normal(keys[2], (16, width), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return State(jnp.int32(seed), params, optimizer.init(params), params if ema else None)


def abstract(state: State) -> State:
    return jax.eval_shape(lambda: state)


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def spoil(file: Path, damage: str) -> None:
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one checkpoint: step 3 of make_state(3). Copy it before changing it."""
    directory = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(3, make_state(3), {"epoch": 1, "index": 250}, {"bleu": 31.5, "loss": float("nan")})
    return directory


def test_restores_state_position_and_metrics_exactly(saved):
    state = make_state(3)
    with Checkpoints(saved) as checkpoints:
        for wanted in (abstract(state), make_state(9)):
            step, restored, position = checkpoints.restore_latest(wanted)
            assert_same(restored, state)
            assert (step, position) == (3, {"epoch": 1, "index": 250})
        metrics = checkpoints.metrics(3)
    assert metrics["bleu"] == 31.5
    assert np.isnan(metrics["loss"])
    assert sorted(file.name for file in (saved / "3").iterdir()) == ["digests.json", "state", "step.json"]


def test_state_with_an_absent_part(tmp_path):
    state = make_state(1, ema=False)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state) is None
        checkpoints.save(1, state, {}, {})
        assert_same(checkpoints.restore(1, abstract(state))[0], state)
        with pytest.raises(UserError, match=r"no ema_params: at its top there is opt_state, params, step"):
            checkpoints.restore_parameters(1, "ema_params")


def test_saving_returns_a_copy_safe_from_donation(tmp_path):
    state = jax.tree.map(lambda x: x + 0, {"params": jnp.arange(1 << 20, dtype=jnp.float32)})
    before = np.array(state["params"])
    change = jax.jit(lambda s: jax.tree.map(lambda x: -x, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {}, {})
        state = change(state)
        restored, _ = checkpoints.restore(1, state)
    assert (np.asarray(restored["params"]) == before).all()


def test_parameters_alone_need_no_knowledge_of_the_state(saved):
    state = make_state(3)
    with Checkpoints(saved) as checkpoints:
        assert_same(checkpoints.restore_parameters(3), state.params)
        assert_same(checkpoints.restore_parameters(3, "ema_params"), state.params)
        assert_same(checkpoints.restore_parameters(3, "params/encoder"), state.params["encoder"])
        with pytest.raises(UserError, match=r"no params/enc: at params there is decoder, embedding, encoder"):
            checkpoints.restore_parameters(3, "params/enc")


def test_which_checkpoints_stay(tmp_path):
    state = {"x": jnp.zeros(2)}
    values = {1: 5.0, 2: 9.0, 3: float("nan"), 4: 9.0, 5: 1.0, 6: float("inf"), 7: 2.0}
    with Checkpoints(tmp_path / "a", 2, keep_best=2, best_mode="max", best_metric="bleu") as checkpoints:
        assert checkpoints.best_step() is None
        for step, value in values.items():
            checkpoints.save(step, state, {}, {"bleu": value} if step != 5 else {})
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 6, 7]
        assert (checkpoints.best_step(), checkpoints.latest_step()) == (4, 7)
    with Checkpoints(tmp_path / "b", 1, keep_best=1, best_mode="min", best_metric="loss") as checkpoints:
        for step, value in values.items():
            checkpoints.save(step, state, {}, {"loss": value})
        checkpoints.wait()
        assert checkpoints.steps() == [5, 7]
        assert checkpoints.best_step() == 5
        (tmp_path / "b" / "5" / "step.json").write_text("{")
        for ask in (checkpoints.best_step, lambda: checkpoints.metrics(5)):
            with pytest.raises(CheckpointDamaged, match=r"5/step.json is not what was written"):
                ask()
    with pytest.raises(UserError, match="name the metric"):
        Checkpoints(tmp_path, 1, keep_best=1)
    with pytest.raises(UserError, match="keep_latest=0"):
        Checkpoints(tmp_path, 0)


def test_what_cannot_be_saved_is_refused(tmp_path):
    state = {"x": jnp.zeros(2)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {}, {})
        for step in (5, 4):
            with pytest.raises(ValueError, match="not newer than the saved step 5"):
                checkpoints.save(step, state, {}, {})
        with pytest.raises(TypeError, match=r"a/step in the state is a int"):
            checkpoints.save(6, {"a": {"step": 6}}, {}, {})
        assert checkpoints.steps() == [5]
    (tmp_path / "file").write_text("")
    with Checkpoints(tmp_path / "file") as checkpoints, pytest.raises(UserError, match="cannot be written"):
        checkpoints.save(1, state, {}, {})


def test_failures_in_the_background_surface_at_the_next_call(tmp_path, monkeypatch):
    def disk_full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(2)}, {}, {})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr("transformer_jax.training.digests.digests", disk_full)
            checkpoints.save(2, {"x": jnp.zeros(2)}, {}, {})
            with pytest.raises(UserError, match=r"Checkpoint 2 cannot be written.*No space left"):
                checkpoints.wait()
        assert checkpoints.steps() == [1]
        checkpoints.save(2, {"x": jnp.zeros(2)}, {}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_any_file_is_named(saved, tmp_path, damage):
    files = [file.relative_to(saved) for file in saved.rglob("*") if file.is_file()]
    assert len(files) > 8
    state = abstract(make_state(3))
    with Checkpoints(tmp_path / "copy") as checkpoints:
        for file in files:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(saved, tmp_path / "copy")
            target = tmp_path / "copy" / file
            spoil(target, damage)
            for restore in (lambda: checkpoints.restore(3, state), lambda: checkpoints.restore_parameters(3)):
                with pytest.raises(CheckpointDamaged) as error:
                    restore()
                assert error.value.step == 3
                if file.name != "digests.json":  # damaged names in that file look like missing files
                    assert str(target) in str(error.value)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the steps 1, 2 and 3. Copy it before changing it."""
    directory = tmp_path_factory.mktemp("three")
    with Checkpoints(directory, keep_latest=3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {"epoch": step}, {})
    return directory


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_whatever_is_damaged_the_newest_good_one_is_used(three, tmp_path, damage):
    """Each file in turn; the damaged checkpoint is named, and stays beside the others."""
    files = [file.relative_to(three) for file in (three / "3").rglob("*") if file.is_file()]
    for i, file in enumerate(files):
        copy = shutil.copytree(three, tmp_path / str(i))
        spoil(copy / file, damage)
        told: list[str] = []
        with Checkpoints(copy, report=told.append) as checkpoints:
            step, state, position = checkpoints.restore_latest(abstract(make_state(0)))
            assert (step, position, checkpoints.steps()) == (2, {"epoch": 2}, [1, 2])
            assert_same(state, make_state(2))
            assert len(told) == 1
            assert "Checkpoint 3 is damaged: 3/" in told[0]
            assert f"set aside as {copy}/damaged-3." in told[0]
            checkpoints.save(3, make_state(4), {}, {})  # its number is free
        assert (copy / "damaged-3").is_dir()


def test_if_none_is_good_that_is_an_error_and_stays_one(three, tmp_path):
    copy = shutil.copytree(three, tmp_path / "copy")
    for step in (1, 2, 3):
        (copy / str(step) / "digests.json").unlink()
    for _ in range(2):
        with (
            Checkpoints(copy, report=print) as checkpoints,
            pytest.raises(UserError, match="is good: damaged-1, damag"),
        ):
            checkpoints.restore_latest(make_state(0))
    assert len(list(copy.iterdir())) == 3


def test_a_second_damage_of_the_same_step_is_set_aside_beside_the_first(three, tmp_path):
    copy = shutil.copytree(three, tmp_path / "copy")
    shutil.copytree(copy / "3", copy / "damaged-3")
    spoil(copy / "3" / "step.json", "flip")
    with Checkpoints(copy, report=print) as checkpoints:
        assert checkpoints.restore_latest(abstract(make_state(0)))[0] == 2
    assert (copy / "damaged-3-2").is_dir()


def test_damage_to_an_older_one_is_found_when_it_is_wanted_or_a_newer_one_is_saved(three, tmp_path):
    copy, told = shutil.copytree(three, tmp_path / "copy"), []
    spoil(next((copy / "2" / "state").rglob("manifest.ocdbt")), "flip")
    with Checkpoints(copy, keep_latest=3, report=told.append) as checkpoints:
        assert checkpoints.good(2) == [1, 3]
        assert "Checkpoint 2 is damaged" in told.pop()
        spoil(copy / "1" / "step.json", "flip")
        checkpoints.save(4, make_state(4), {}, {})
        checkpoints.wait()
        assert "Checkpoint 1 is damaged: 1/step.json" in told.pop()
        assert checkpoints.steps() == [3, 4]


def test_what_was_saved_off_the_schedule_can_be_discarded(tmp_path):
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        for step, interim in ((2, False), (4, False), (5, True)):
            checkpoints.save(step, make_state(step), {}, {}, interim=interim)
        checkpoints.wait()
        assert checkpoints.good(9) == [2, 4]
        checkpoints.discard_interim()
        assert checkpoints.steps() == [2, 4]
        checkpoints.discard_after(2)
        assert checkpoints.steps() == [2]


def test_a_removed_directory_is_not_made_again(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(1), {}, {})
        checkpoints.wait()
        shutil.rmtree(run)
        with pytest.raises(UserError, match=r"Checkpoint 2 cannot be written.*No such file"):
            checkpoints.save(2, make_state(2), {}, {})
    assert not run.exists()


def test_a_full_disk_is_named_and_leaves_no_checkpoint(tmp_path):
    """A file system of 2 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        state = {"x": jax.random.normal(jax.random.key(0), (150_000,))}
        with Checkpoints(disk / "checkpoints", keep_latest=9) as checkpoints:
            save = lambda: [checkpoints.save(step, state, {}, {}) for step in range(1, 10)]
            with pytest.raises(UserError, match=r"Checkpoint \d cannot be written to .*: No space left on device\."):
                save()
            found = checkpoints.steps()
            assert found
            for step in found:
                checkpoints.restore(step, state)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_checkpoint_of_another_model_is_refused_by_name(saved):
    def message(wanted: State) -> str:
        with Checkpoints(saved) as checkpoints, pytest.raises(UserError) as error:
            checkpoints.restore(3, abstract(wanted))
        assert not isinstance(error.value, CheckpointDamaged)
        return str(error.value)

    wider = message(make_state(width=8))
    assert "\n  params/decoder/bias: float32[4] in the checkpoint, float32[8] wanted\n" in wider
    assert wider.count("\n") == 6
    assert wider.endswith("and 7 more")
    state = make_state(3)
    surplus = state.replace(params={k: v for k, v in state.params.items() if k != "embedding"})
    assert "params/embedding: bfloat16[16, 4] in the checkpoint, absent wanted" in message(surplus)
    missing = state.replace(params={**state.params, "head": jnp.zeros((2, 3))})
    assert "params/head: absent in the checkpoint, float32[2, 3] wanted" in message(missing)
    assert "step: int32[] in the checkpoint, float32[] wanted" in message(state.replace(step=jnp.float32(0)))


def test_steps_that_are_not_there(saved, tmp_path):
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(UserError, match=r"no checkpoint of step 4.*there: 3"),
    ):
        checkpoints.restore(4, make_state())
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.latest_step() is None
    assert not (tmp_path / "none").exists()


SHARDED = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from transformer_jax.training.checkpoints import Checkpoints

assert jax.device_count() == 8
values = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
mesh = jax.make_mesh((4, 2), ("data", "fsdp"))
specs = {"both": P("data", "fsdp"), "one": P("fsdp"), "none": P()}
place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
state = {name: jax.device_put(values, place[name]) for name in specs}
with Checkpoints(sys.argv[1]) as checkpoints:   # 8 devices write for 1
    checkpoints.save(1, {"params": state}, {}, {})
with Checkpoints(sys.argv[2]) as checkpoints:   # 8 devices read what 1 wrote, onto another mesh
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    wanted = {name: jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place[name]) for name in specs}
    restored, _ = checkpoints.restore(1, {"params": wanted})
for name, array in restored["params"].items():
    assert array.sharding == wanted[name].sharding, array.sharding
    assert (np.asarray(array) == values).all()
assert restored["params"]["both"].addressable_shards[0].data.shape == (4, 2)
"""


def test_arrays_move_between_eight_devices_and_one(tmp_path):
    values = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    state = {"params": {name: jnp.asarray(values) for name in ("both", "one", "none")}}
    with Checkpoints(tmp_path / "one") as checkpoints:
        checkpoints.save(1, state, {}, {})
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", SHARDED, tmp_path / "eight", tmp_path / "one"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with Checkpoints(tmp_path / "eight") as checkpoints:
        assert_same(checkpoints.restore(1, state)[0], state)
        assert_same(checkpoints.restore_parameters(1), state["params"])


SAVING = """
import sys
import jax.numpy as jnp
from transformer_jax.training.checkpoints import Checkpoints

with Checkpoints(sys.argv[1], keep_latest=3) as checkpoints:
    for step in range(1, 10_000):
        checkpoints.save(step, {"params": jnp.full((1 << 18,), step, jnp.float32)}, {"index": step}, {})
        print(step, flush=True)
"""


def test_killed_in_the_middle_of_saving(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SAVING, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            break
    time.sleep(0.013)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / ".unfinished-9999" / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        found = checkpoints.steps()
        assert found
        assert found[-1] >= 4
        for step in found:
            state, position = checkpoints.restore(step, {"params": jnp.zeros((1 << 18,), jnp.float32)})
            assert (np.asarray(state["params"]) == step).all()
            assert position == {"index": step}
        assert (tmp_path / ".unfinished-9999").exists()  # readers change nothing
        checkpoints.save(found[-1] + 1, state, {}, {})
        checkpoints.wait()
        assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_record_of_digests_covers_every_file(saved):
    recorded = json.loads((saved / "3" / "digests.json").read_text())
    files = {file.relative_to(saved / "3").as_posix() for file in (saved / "3").rglob("*") if file.is_file()}
    assert set(recorded) == files - {"digests.json"}
