"""The benchmark counts what it says it counts; other toolkits are given what this project uses."""

import ast
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarking import first_step, processes, quality, scans
from experiments.command_line import load_config
from experiments.peers import comparison, environments, eole, exports
from tests.made_files import tiny_config, write_pairs
from tests.models import tiny
from transformer_jax.analysis import benchmark, peak
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.pipeline import Pipeline
from transformer_jax.data.tokenizers import train_tokenizers
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config, plain
from transformer_jax.models.attention import MultiHeadAttention
from transformer_jax.training import loop

CHECKOUT = Path(__file__).resolve().parents[2]
PEERS = {"torch", "transformers", "joeynmt", "ctranslate2", "eole"}

pytestmark = pytest.mark.xdist_group("benchmark")


@pytest.fixture(scope="module")
def mapping(tmp_path_factory):
    return tiny_config(write_pairs(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def pipeline(mapping):
    config = parse_config(mapping)
    dataset = load_dataset(config.dataset)
    return Pipeline(dataset, train_tokenizers(dataset, config.tokenizer), config.batching, config.seed)


def test_training_counts_the_tokens_of_the_stream(mapping, pipeline, monkeypatch):
    monkeypatch.setattr(peak, "CPU_SIZES", (64,))
    result = benchmark.measure_training(mapping, seconds=0.2, windows=2)
    rate = result["target_tokens_per_second"]
    assert len(rate["windows"]) == 2
    assert rate["best"] == max(rate["windows"]) >= rate["median"] >= min(rate["windows"]) > 0
    assert result["compile"]["shapes"] == len(pipeline.shapes)
    assert result["compile"]["programs"] >= len(pipeline.shapes)
    assert result["programs_compiled_while_measuring"] == 0
    iterator = pipeline.iterator()
    for _ in range(2 * len(pipeline.shapes)):
        next(iterator)
    targets = [next(iterator)["target"] for _ in range(result["steps"])]
    tokens, cells = sum(np.count_nonzero(t) for t in targets), sum(t.size for t in targets)
    assert result["padding"] == pytest.approx(1 - tokens / cells)
    # The windows are equally long, so their mean is about the rate of the whole.
    whole = tokens / (result["steps"] * result["step_seconds"])
    assert min(rate["windows"]) <= whole <= max(rate["windows"])
    assert result["peak_rss_bytes"] > 50 * 2**20
    for dtype, share in result["utilisation"].items():
        assert share == result["model_flops_per_second"] / result["matmul_peaks"][dtype]["flops"]
    # Six operations a parameter and position are about right where attention is cheap and most layers are products.
    positions = (result["padding"] + 1) * tokens / (result["steps"] * result["step_seconds"])
    assert 2 < result["model_flops_per_second"] / result["parameters"] / positions < 12
    assert result["predicted_step_bytes"] > 3 * 4 * result["parameters"]
    table = benchmark.result_table(result).markdown()
    assert "| training | target tokens/s |" in table
    assert all(text in table for _, text in benchmark.describe(result))


def test_the_peak_is_that_of_the_best_size():
    found = peak.matmul_peaks(sizes=(8, 128), seconds=0.01)
    assert list(found) == ["float32", "bfloat16"]
    assert found["float32"]["size"] == 128
    assert found["float32"]["flops"] > 1e6


def test_the_pipeline_alone(mapping, pipeline):
    result = benchmark.measure_pipeline(mapping, 0.05)
    size = result["positions_per_second"] / result["batches_per_second"]  # a mean, so not exact
    sizes = [shape.rows * shape.target_length for shape in pipeline.shapes]
    assert min(sizes) - 1e-6 <= size <= max(sizes) + 1e-6
    assert "target positions/s" in benchmark.result_table(result).markdown()


def test_checkpoints_are_whole_and_read_back(mapping):
    result = benchmark.measure_checkpoints(mapping, 1)
    assert result["bytes"] > 3 * 4 * 16 * 64  # the embedding and its moments are some of it
    assert 0 < result["save_blocking_seconds"] < result["save_seconds"]
    assert result["restore_seconds"] > 0
    assert "held up" in benchmark.result_table(result).markdown()


def test_the_first_step_is_taken_by_training_itself(mapping, tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFORMER_JAX_PREPARED", "1")
    monkeypatch.setattr(loop, "Trainer", loop.Trainer)  # put back at the end
    configured, result = tmp_path / "config.json", tmp_path / "result.json"
    configured.write_text(json.dumps(plain(mapping)))
    first_step.main(str(configured), str(time.monotonic()), str(result))
    parts = json.loads(result.read_text())
    assert list(parts) == ["imports", "data", "compile", "first step", "all"]
    assert min(parts.values()) > 0
    assert parts.pop("all") == pytest.approx(sum(parts.values()))


def test_starts_share_a_cache_that_is_emptied_of_programs_once(mapping, monkeypatch):
    seen = []

    def run(command, log, settings):
        cache = Path(settings["TRANSFORMER_JAX_CACHE"])
        seen.append(sorted(entry.name for entry in cache.glob("*")))
        for name in ("datasets", "compiled"):
            (cache / name).mkdir(parents=True, exist_ok=True)
        assert json.loads(Path(command[2]).read_text()) == plain(mapping)
        Path(command[4]).write_text(json.dumps({"imports": 1.0, "first step": 2.0, "all": 3.0}))

    monkeypatch.setattr(processes, "run", run)
    result = processes.measure_start(mapping)
    assert seen == [[], ["datasets"], ["compiled", "datasets"]]
    [row] = [row for row in benchmark.result_table(result).rows if row[1] == "all cached"]
    assert row[2] == "3.00 s from the start of the process: imports 1.00, first step 2.00"


def test_the_first_translation_is_what_the_command_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "COMMANDS", tmp_path)
    script = tmp_path / "translate.py"
    script.write_text("import sys, time; line = input(); time.sleep(0.3); print(line, sys.argv[1:])")
    starts = processes.measure_first_translation("runs/a", "best", "Ein Satz.")["starts"]
    assert list(starts) == ["nothing cached", "all cached"]
    assert min(parts["all"] for parts in starts.values()) > 0.3
    script.write_text("exit(3)")
    with pytest.raises(UserError, match=r"runs/a .*ended with status 3"):
        processes.measure_first_translation("runs/a", "best", "Ein Satz.")


def test_points_of_a_scan():
    config = plain(load_config(str(CHECKOUT / "configs" / "phrases.py")))
    points = scans.points_of(config, ["model.d_model=64,128", "model.d_ff=256,512"])
    assert points == {"model.d_model": ["64", "128"], "model.d_ff": ["256", "512"]}
    for name in ("batch_tokens", "length", "vocabulary"):
        ((key, values),) = scans.points_of(config, [name]).items()
        section, _, field = key.partition(".")
        assert str(config[section][field]) in values
    assert len(scans.points_of(config, ["depth"])) == 2
    text = plain(load_config(str(CHECKOUT / "configs" / "language_model.py")))
    longer = scans.points_of(text, ["length"])
    tokens = [int(a) * int(b) for a, b in zip(longer["batching.length"], longer["batching.rows"], strict=True)]
    assert set(tokens) == {text["batching"]["rows"] * text["batching"]["length"]}
    for wrong, message in (([], "none"), (["size"], "one of batch_tokens"), (["a=1", "b=1,2"], "a 1, b 2")):
        with pytest.raises(UserError, match=message):
            scans.points_of(config, wrong)


def test_a_scan_is_measured_point_by_point(mapping, tmp_path, monkeypatch):
    seen = []

    def measured(words, folder, settings):
        if words[-1].endswith("=refused"):
            raise UserError("cannot be")
        seen.append((words[-1], settings.get("JAX_NUM_CPU_DEVICES"), len(os.sched_getaffinity(0))))
        rate = {"median": 10.0 * len(seen), "best": 12.0 * len(seen), "windows": [9.0 * len(seen), 12.0 * len(seen)]}
        shares, size = {"float32": 0.5, "bfloat16": 0.25}, 2**21
        return {
            "target_tokens_per_second": rate,
            "utilisation": shares,
            "step_seconds": 0.1,
            "peak_rss_bytes": size,
            "devices": f"{len(seen)} cpu",
        }

    monkeypatch.setattr(scans, "measured", measured)
    monkeypatch.setattr(scans, "has_accelerator", lambda: False)
    before = os.sched_getaffinity(0)
    result = scans.scan(mapping, ["devices=1", "model.d_model=32"], 1.0, 1)
    assert seen == [("--config.model.d_model=32", "1", 1)]
    assert os.sched_getaffinity(0) == before
    result["points"] += scans.scan(mapping, ["devices=1", "model.d_model=64"], 1.0, 1)["points"]
    assert scans.scan_table(result).rows[1][:4] == ["1", "64", "20", "24"]
    scans.scan_figure(result).savefig(tmp_path / "scan.png")
    assert (tmp_path / "scan.png").stat().st_size > 1000
    # A point that is refused leaves the others what they are; what is varied need not be a number.
    named = scans.scan(mapping, ["model.positions=rotary,refused,alibi"], 1.0, 1)
    assert ["error" in point for point in named["points"]] == [False, True, False]
    table = scans.scan_table(named)
    assert ([row[0] for row in table.rows], table.notes) == (["rotary", "alibi"], ["failed: refused"])
    scans.scan_figure(named).savefig(tmp_path / "named.png")
    with pytest.raises(UserError, match="cannot be"):
        scans.scan(mapping, ["model.positions=refused"], 1.0, 1)
    with pytest.raises(UserError, match="1000 cores are wanted"):
        scans.scan(mapping, ["devices=1000"], 1.0, 1)


def test_all_is_each_measurement_in_turn(mapping, monkeypatch):
    asked = []

    def measured(words, folder):
        asked.append(words[0] + "".join(word.removeprefix("--method=") for word in words if "method" in word))
        return {"measured": "pipeline", "batches_per_second": 1.0, "positions_per_second": 2.0, "prepare_seconds": 3.0}

    start = {"measured": "start", "starts": {"all cached": {"all": 1.0}}}
    monkeypatch.setattr(processes, "measured", measured)
    monkeypatch.setattr(processes, "measure_start", lambda mapping: start)
    result = processes.measure_all(mapping, 8.0)
    assert asked == ["train", "pipeline", "checkpoints", "decodebeam", "decodegreedy"]
    table = benchmark.result_table(result).markdown()
    assert "| start | all cached | 1.00 s from the start of the process |" in table
    assert table.count("| pipeline |") == 5


def test_decoding_with_a_forced_length(mapping):
    config = parse_config(mapping)
    lines = load_dataset(config.dataset).splits["test"].texts()[0]
    decoding = replace(config.decoding, batch_size=4 * jax.device_count())
    translator = benchmark.random_translator(config, benchmark.force_length(decoding, 7))
    result = benchmark.measure_decoding(translator, lines, repeats=2, singles=3)
    assert result["output_tokens"] == {"mean": 6, "least": 6, "most": 6}  # and the end: seven steps
    assert result["programs_compiled_while_measuring"] == 0
    assert len(result["lines_per_second"]["repeats"]) == len(result["search_lines_per_second"]["repeats"]) == 2
    assert result["single_line_seconds"]["lines"] == 3
    assert 0 < result["single_line_seconds"]["median"] <= result["single_line_seconds"]["worst"]
    assert "tokens to tokens" in benchmark.result_table(result).markdown()


@pytest.mark.parametrize(("repeats", "lines", "name"), [(0, ["a"], "repeats"), (1, [], "lines")])
def test_nothing_to_measure_is_refused(mapping, repeats, lines, name):
    config = parse_config(mapping)
    translator = benchmark.random_translator(config, config.decoding)
    with pytest.raises(UserError, match=f"{name} is 0"):
        benchmark.measure_decoding(translator, lines, repeats, singles=1)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("benchmark.py", ["train"], "--config is required"),
        ("benchmark.py", ["decode"], "decode RUN"),
        ("benchmark.py", ["decode", "no-such-run"], "no-such-run"),
        ("benchmark.py", ["memory"], "--config is required"),
        ("benchmark.py", ["start"], "start RUN"),
        ("benchmark.py", ["race", "--random", "--config=configs/multi30k.py:tiny"], "race"),
        ("benchmark.py", ["train", "--config=configs/multi30k.py:tiny", "--against=joeynmt"], "marian, pytorch"),
        ("benchmark.py", ["train", "--config=configs/language_model.py", "--against=marian"], "one of pytorch"),
        ("benchmark.py", ["quality", "--config=configs/multi30k.py:tiny", "--against=marian"], "one of eole"),
        ("benchmark.py", ["decode", "some-run", "--against=marian"], "one of ctranslate2, joeynmt"),
        ("benchmark.py", ["decode", "some-run", "--against=ctranslate2", "--patience=2"], "--patience: beside"),
        ("benchmark.py", ["pipeline", "--config=configs/multi30k.py:tiny", "--against=marian"], "no toolkit"),
    ],
)
def test_mistakes_end_in_one_line_that_names_them(command, arguments, message):
    found = subprocess.run(
        [sys.executable, CHECKOUT / "experiments" / command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        cwd=CHECKOUT,
        timeout=300,
        check=False,
    )
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_peers_train_on_the_same_batches(pipeline, tmp_path):
    count = exports.write_batches(tmp_path / "batches.npz", pipeline)
    stored, iterator = np.load(tmp_path / "batches.npz"), pipeline.iterator()
    assert count == len(pipeline.epoch(0))
    assert len(stored.files) == 2 * count
    for i in range(count):
        batch = next(iterator)
        for side in ("source", "target"):
            np.testing.assert_array_equal(stored[f"{side}_{i}"], batch[side])


@pytest.mark.parametrize("attention_bias", [True, False])
def test_peers_get_every_weight_as_a_matrix(attention_bias):
    config = tiny.tiny_config(attention_bias=attention_bias, norm_placement="pre")
    params = tiny.random_parameters(config)
    weights = exports.flat_weights(params, config)
    assert all(value.dtype == np.float32 and value.ndim <= 2 for value in weights.values())
    kernels = [name for name in weights if name.endswith("/kernel")]
    assert len(kernels) == 2 * (4 + 2) + 2 * (8 + 2)
    name, x = (
        "decoder/layer_1/cross_attention",
        np.random.default_rng(0).standard_normal((1, 5, config.d_model)),
    )

    def project(part, x):
        return x @ weights[f"{name}/{part}/kernel"] + weights[f"{name}/{part}/bias"]

    q, k, v = (project(part, x).reshape(5, config.num_heads, -1) for part in ("query", "key", "value"))
    scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(config.head_dim)
    share = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    found = project("output", np.einsum("hts,shk->thk", share, v).reshape(5, -1))
    attention = MultiHeadAttention(
        config.d_model, config.num_heads, config.kv_heads, config.head_dim, attention_bias, 0.0, "float32"
    )
    layer = {"params": params["decoder"]["layer_1"]["cross_attention"]}
    wanted = attention.apply(layer, *[jnp.asarray(x, jnp.float32)] * 2, None)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_models_that_peers_do_not_have_are_refused():
    exports.check_model(tiny.tiny_config())
    with pytest.raises(UserError, match="positions"):
        exports.check_model(replace(tiny.tiny_config(), positions="rotary"))


def test_a_peer_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
    with pytest.raises(UserError, match=r"status 3; see .*peer.log:\nlast words"):
        environments.run([sys.executable, "-c", "print('last words'); exit(3)"], tmp_path / "peer.log")


def test_peers_run_with_a_python_that_is_named_and_with_the_paths_of_this_one(tmp_path, monkeypatch):
    """Where nothing can be installed, packages are carried along in a folder."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "carried_along.py").touch()
    environments.run([sys.executable, "-c", "import carried_along, experiments"], tmp_path / "peer.log")
    monkeypatch.setenv("TRANSFORMER_JAX_PEER_PYTHON", sys.executable)
    assert environments.interpreter(tmp_path, "gpt") == Path(sys.executable)
    monkeypatch.setenv("TRANSFORMER_JAX_PEER_PYTHON", "nowhere/python")
    with pytest.raises(UserError, match="TRANSFORMER_JAX_PEER_PYTHON is nowhere/python, which is no program"):
        environments.interpreter(tmp_path, "gpt")


def test_peers_packages_stay_in_their_own_environments():
    """Scripts that peers run import nothing of the project, and nothing else in it imports a peer."""
    folder = CHECKOUT / "experiments" / "peers"
    toolkits = ("marian_*.py", "ctranslate2_*.py", "joeynmt_*.py", "gpt_train.py", "pytorch_*.py", "exported_*.py")
    theirs = {file for pattern in toolkits for file in folder.glob(pattern)}
    assert len(theirs) == 7
    for file in [f for part in ("transformer_jax", "experiments", "configs") for f in (CHECKOUT / part).rglob("*.py")]:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        roots = {name.split(".")[0] for name in names}
        if file in theirs:
            assert not roots & {"transformer_jax", "experiments", "jax"}, file
        else:
            assert not roots & PEERS, file


def test_quality_is_that_of_a_run_from_an_empty_cache(mapping, monkeypatch):
    seen = []

    def stream(command, words, settings):
        seen.append((command, Path(settings["TRANSFORMER_JAX_CACHE"]).exists()))
        if command == "evaluate.py":
            scores = Path(words[0]) / "scores"
            scores.mkdir(parents=True)
            record = {"scores": {"bleu": 40.0, "bleu_lowercase_tokenized": 41.0, "chrf": 60.0}}
            (scores / "validation.json").write_text(json.dumps(record))

    monkeypatch.setattr(quality, "_stream", stream)
    result = quality.measure_quality(mapping)
    assert seen == [("train.py", False), ("evaluate.py", False)]
    result["against"] = {"Eole": {"seconds": 1200.0, "steps": 900, "scores": result["scores"]}}
    assert quality.quality_table(result).rows[1] == ["Eole", "1,200", "900", "40.00", "41.00", "60.00"]
    with pytest.raises(UserError, match="language_model, this is for translation"):
        quality.measure_quality(load_config(str(CHECKOUT / "configs" / "language_model.py")))


@pytest.mark.parametrize(
    ("variant", "override", "named"),
    [
        ("lstm", "seed=0", r"model\.norm is None"),
        ("tiny", "model.norm_placement=post", "norm_placement is 'post'"),
        ("tiny", "model.num_decoder_layers=2", "must be equal"),
    ],
)
def test_what_eole_lacks_is_named_before_anything_is_trained(variant, override, named):
    eole.check_eole(load_config(str(CHECKOUT / "configs" / "multi30k.py:tiny")))
    with pytest.raises(UserError, match=named):
        eole.check_eole(load_config(str(CHECKOUT / "configs" / f"multi30k.py:{variant}"), [override]))


def test_tables_show_ratios_of_rounds():
    ours = {
        "target_tokens_per_second": {"median": 900.0},
        "parameters": 5,
        "jax": "1",
        "compile": {"seconds": 2.0},
    }
    theirs = {"target_tokens_per_second": 300.0, "parameters": 5, "versions": {"torch": "2"}}
    both = [{**theirs, "precision": precision} for precision in ("float32", "bfloat16")]
    result = {"peer": "PyTorch", "ours": [ours], "theirs": [both], "ratios": [3.0], "dtype": "float32"}
    table = comparison.training_table(json.loads(json.dumps(result)))
    assert table.rows == [["1", "900", "300", "300", "3.00"]]
    assert table.columns[2:4] == ("PyTorch, float32", "PyTorch, bfloat16")
    assert "median ratio to the faster 3.00" in table.markdown()
    rates = {
        "transformer_jax": {"forced": [50.0, 70.0], "free": [30.0]},
        "joeynmt": {"forced": [3.0], "free": [2.0]},
    }
    same = {"greedy_equal": 1.0, "free_equal": 0.5, "bleu": 40.0}
    table = comparison.decoding_table(
        {
            "forced_tokens": 25,
            "sentences": 1000,
            "decoding": {"beam_size": 5},
            "sentences_per_second": rates,
            "agreement": dict.fromkeys(rates, same),
        }
    )
    assert table.rows[-1] == ["joeynmt", "3.0", "20.00", "2.0", "15.00", "40.00", "100.0%", "50.0%"]
