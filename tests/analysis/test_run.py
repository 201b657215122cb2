"""What load_run gives, from a run that eight devices wrote, in a process that has one; and what it does not do."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import transformer_jax
from tests.made_files import CHECKOUT, CONFIG, overrides, write_pairs
from transformer_jax.errors import UserError
from transformer_jax.training.metric_writer import read_metrics

pytestmark = pytest.mark.xdist_group("run")
SOURCES, TARGETS = ["one two three", "four"], ["eins zwei drei", "fünf"]
SCORE = """
import json, sys, jax, transformer_jax
run = transformer_jax.load_run(sys.argv[1])
facts = {"devices": jax.device_count(), "scores": run.score(*json.loads(sys.argv[2])).tolist()}
print(json.dumps({**facts, "translations": run.translate(json.loads(sys.argv[2])[0])}))
"""
AUDIT = """
import json, os, sys
folder, found = os.path.realpath(sys.argv[1]), []

def listen(event, arguments):
    if event == "exec":
        named = [arguments[0].co_filename]
    elif event in ("compile", "import", "ctypes.dlopen"):
        named = [a for a in arguments if isinstance(a, str)]
    elif event in ("pickle.find_class", "subprocess.Popen", "os.exec", "os.system"):
        found.append([event, str(arguments)])
        return
    else:
        return
    found.extend([event, name] for name in named if name and os.path.realpath(name).startswith(folder))

sys.addaudithook(listen)
import transformer_jax
run = transformer_jax.load_run(folder)
begun = len(found)  # what the libraries do while they are imported is not of the directory
run.translate(["one two"]), run.score(["one"], ["eins"]), run.history(), run.load("latest"), run.tokenizer
of_run = found[begun:] + [one for one in found[:begun] if folder in str(one)]
exec(compile(open(os.path.join(folder, "evil.py")).read(), os.path.join(folder, "evil.py"), "exec"))
print(json.dumps({"run": of_run, "control": len(found) - begun}))
"""


def python(devices: int, *words: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "TRANSFORMER_JAX_PREPARED": "1"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A run of eight devices that share every matrix, with scanned layers and a moving average."""
    folder = tmp_path_factory.mktemp("written_by_eight")
    changes = {"training__total_steps": 20, "checkpoints__every_steps": 10, "evaluation__every_steps": 10}
    changes |= {"mesh__data": 1, "mesh__fsdp": 4, "mesh__tensor": 2, "training__ema_decay": 0.9}
    changes |= {"model__scan_layers": True, "model__num_encoder_layers": 2, "evaluation__weights": "ema"}
    words = overrides(write_pairs(folder / "data"), **changes, evaluation__decode="none", evaluation__metric="loss")
    flags = [f"--config={CONFIG}", f"--workdir={folder / 'run'}", *(f"--config.{word}" for word in words)]
    python(8, CHECKOUT / "experiments" / "train.py", *flags)
    return folder / "run"


def test_one_device_computes_what_eight_do(path):
    run = transformer_jax.load_run(path)
    wrote = json.loads(python(8, "-c", SCORE, path, json.dumps([SOURCES, TARGETS])))
    assert wrote["devices"] == 8
    np.testing.assert_allclose(run.score(SOURCES, TARGETS), wrote["scores"], rtol=1e-4)
    assert run.translate(SOURCES) == wrote["translations"]
    assert run.config.mesh.fsdp == 4
    assert run.tokenizer.encode(["one"]) == run.tokenizers.source.encode(["one"])


def test_nothing_in_the_directory_is_executed(path):
    (path / "evil.py").write_text("raise_nothing = 1")
    try:
        found = json.loads(python(1, "-c", AUDIT, path))
    finally:
        (path / "evil.py").unlink()
    assert found["run"] == []
    assert found["control"] >= 2  # the listener hears what it listens for


def test_parts_of_any_checkpoint(path):
    run = transformer_jax.load_run(path)
    whole = run.load(10)
    encoder = run.load(10, parts=("shared_embedding", "encoder"))
    assert set(encoder) == {"shared_embedding", "encoder"}
    jax.tree.map(np.testing.assert_array_equal, encoder, {name: whole[name] for name in encoder})
    source = np.asarray([run.tokenizer.encode(["one two"])[0]])
    apply = lambda params: run.model.apply({"params": params}, source, method="encode")[0]
    np.testing.assert_array_equal(apply(encoder), apply(whole))
    average = run.load("average:2", parts=("encoder/final_norm",))
    ends = [run.load(step)["encoder"]["final_norm"]["scale"] for step in (10, 20)]
    np.testing.assert_allclose(average["encoder"]["final_norm"]["scale"], np.mean(ends, axis=0), rtol=1e-6)
    assert not np.array_equal(run.load("ema")["encoder"]["final_norm"]["scale"], ends[1])
    with pytest.raises(UserError, match="there is decoder, encoder"):
        run.load(10, parts=("encodr",))


def test_history_is_a_data_frame_of_all_metrics(path):
    history = transformer_jax.load_run(path).history()
    rows = read_metrics(path / "metrics.jsonl")
    assert history.index.name == "step"
    assert int(history.notna().sum().sum()) == len(rows)
    for row in rows:
        assert history.loc[row["step"], f"{row['split']}/{row['name']}"] == row["value"]
    assert list(history["validation/loss"].dropna().index) == [10, 20]


def test_two_vocabularies_have_no_single_tokenizer(path):
    run = transformer_jax.load_run(path)
    run.config = dataclasses.replace(run.config, tokenizer=dataclasses.replace(run.config.tokenizer, joint=False))
    with pytest.raises(UserError, match=r"run\.tokenizers\.source"):
        _ = run.tokenizer
