"""The benchmark counts what it says it counts; other toolkits are given what this project uses."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.peers import comparison, environments, exports
from tests.made_files import tiny_config, write_pairs
from tests.models import tiny
from transformer_jax.analysis import benchmark
from transformer_jax.data.datasets import load_dataset
from transformer_jax.data.pipeline import Pipeline
from transformer_jax.data.tokenizers import train_tokenizers
from transformer_jax.errors import UserError
from transformer_jax.experiment import parse_config
from transformer_jax.models.attention import MultiHeadAttention

CHECKOUT = Path(__file__).resolve().parents[2]
PEERS = {"torch", "transformers", "joeynmt", "ctranslate2"}

pytestmark = pytest.mark.xdist_group("benchmark")


@pytest.fixture(scope="module")
def mapping(tmp_path_factory):
    return tiny_config(write_pairs(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def pipeline(mapping):
    config = parse_config(mapping)
    dataset = load_dataset(config.dataset)
    return Pipeline(dataset, train_tokenizers(dataset, config.tokenizer), config.batching, config.seed)


def test_training_counts_the_tokens_of_the_stream(mapping, pipeline):
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
    assert "while measuring" in benchmark.format_result(result)


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
    assert "tokens to tokens" in benchmark.format_result(result)


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
        ("benchmark.py", ["race", "--random", "--config=configs/multi30k.py:tiny"], "race"),
        ("peers/measure.py", ["decode"], "decode RUN"),
        ("peers/measure.py", ["train"], "--config is required"),
    ],
)
def test_mistakes_end_in_one_line_that_names_them(command, arguments, message):
    found = subprocess.run(
        [sys.executable, CHECKOUT / "experiments" / command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        cwd=CHECKOUT,
        timeout=60,
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


def test_peers_packages_stay_in_their_own_environments():
    """Scripts that peers run import nothing of the project, and nothing else in it imports a peer."""
    folder = CHECKOUT / "experiments" / "peers"
    toolkits = ("marian_*.py", "ctranslate2_*.py", "joeynmt_*.py", "gpt_train.py", "exported_*.py")
    theirs = {file for pattern in toolkits for file in folder.glob(pattern)}
    assert len(theirs) == 6
    for file in [f for part in ("transformer_jax", "experiments", "configs") for f in (CHECKOUT / part).rglob("*.py")]:
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        roots = {name.split(".")[0] for name in names}
        if file in theirs:
            assert not roots & {"transformer_jax", "experiments", "jax"}, file
        else:
            assert not roots & PEERS, file


def test_tables_show_ratios_of_rounds():
    ours = {
        "target_tokens_per_second": {"median": 900.0},
        "parameters": 5,
        "jax": "1",
        "compile": {"seconds": 2.0},
    }
    theirs = {"target_tokens_per_second": 300.0, "parameters": 5, "versions": {"torch": "2"}}
    result = {"ours": [ours], "marian": [[theirs, theirs]], "ratios": [3.0], "dtype": "float32"}
    assert "median ratio 3.00" in comparison.format_training(json.loads(json.dumps(result)))
    rates = {
        "transformer_jax": {"forced": [50.0, 70.0], "free": [30.0]},
        "joeynmt": {"forced": [3.0], "free": [2.0]},
    }
    same = {"greedy_equal": 1.0, "free_equal": 0.5, "bleu": 40.0}
    table = comparison.format_decoding(
        {
            "forced_tokens": 25,
            "sentences": 1000,
            "decoding": {"beam_size": 5},
            "sentences_per_second": rates,
            "agreement": dict.fromkeys(rates, same),
        }
    )
    assert table.splitlines()[-1].split()[:5] == ["joeynmt", "3.0", "20.00", "2.0", "15.00"]
