"""A language model from a config to its text: it learns, is resumed exactly, continues prompts, and is scored."""

import json
import math
import signal

import numpy as np
import pytest

from tests.experiments.commands import command
from tests.made_files import FULL, assert_same_run
from tests.made_text import LEARNS_TEXT, tiny_text_config, write_text
from transformer_jax.analysis.few_shot import Item, few_shot, read_items
from transformer_jax.analysis.run import load_run
from transformer_jax.data.packing import PackedEpoch
from transformer_jax.errors import UserError
from transformer_jax.training.loop import Outcome, train

pytestmark = pytest.mark.xdist_group("language_model_run")
RESUMED = {name: value for name, value in FULL.items() if name.startswith("training")}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "text"
    assert train(tiny_text_config(data, **LEARNS_TEXT), folder) == Outcome(300, finished=True)
    return folder


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained)


def test_it_learns_and_continues_prompts_of_any_length_in_one_batch(run):
    losses = run.history()["validation/loss"].dropna().to_list()
    assert losses[-1] < 0.8
    prompts = ["th", "seven", "", "five fi", "o", "six"]
    found = run.generate(prompts, method="greedy")
    expected = {"th": "ree three.", "seven": " seven.", "five fi": "ve.", "o": "ne one.", "six": " six."}
    assert {p: text for p, (text,) in zip(prompts, found, strict=True) if p} == expected
    assert [run.generate([prompt], method="greedy")[0] for prompt in prompts] == found


def test_beams_come_best_first_with_the_probability_that_scoring_gives(run):
    (best,) = run.generator(method="beam", n_best=3, beam_size=6, max_tokens=30).generate(
        run.params, run.tokenizer.encode(["t"])
    )
    texts = run.tokenizer.decode([h.tokens for h in best])
    assert set(texts[:2]) == {"wo two.", "hree three."}
    assert best[0].log_prob >= best[1].log_prob >= best[2].log_prob
    end = [[*h.tokens, 1] for h in best]
    scored = run.token_log_probs(run.tokenizer.encode(["t"] * 3), end)
    np.testing.assert_allclose([s.sum() for s in scored], [h.log_prob for h in best], atol=1e-4)


def test_samples_belong_to_their_line_and_seed(run):
    settings = dict(method="sample", n_best=2)
    first = run.generate(["", "", "f"], **settings)
    assert run.generate(["", "", "f"], **settings) == first
    assert first[0] != first[1]
    assert run.generate(["", "", "f"], **settings, seed=5) != first


def test_a_stream_is_what_comes_in_bulk_and_may_outgrow_the_context(run):
    for prompt in ("th", ""):
        pieces = list(run.stream(prompt, method="greedy"))
        assert "".join(pieces) == run.generate([prompt], method="greedy")[0][0]
    assert len(pieces) > 3
    # Never at an end, so that it goes on beyond the 48 tokens that the model reads.
    generator = run.generator(method="sample", max_tokens=47)
    tokens = []
    for seed in range(40):
        config = generator.config.__class__(**{**vars(generator.config), "max_tokens": 120, "seed": seed})
        generator.config = config
        tokens = max(tokens, list(generator.stream(run.params, run.tokenizer.encode(["one two three"])[0])), key=len)
    assert len(tokens) > 48
    with pytest.raises(UserError, match="beam search cannot be streamed"):
        list(run.stream("a", method="beam"))


def test_too_long_a_prompt_is_refused_with_its_number(run):
    with pytest.raises(UserError, match=r"prompt 2 has 41 tokens.*max_tokens is 20.*exceed the model's 48"):
        run.generate(["a", "x" * 40])


def test_scores_are_of_the_continuation_alone(run):
    right, wrong = run.score(["two ", "two "], ["two.", "one."])
    assert right > math.log(0.5) > wrong
    (whole,) = run.score(["two"], [" two."])
    assert right > whole  # the space is one more thing to be sure of
    assert run.score(["t"], ["wo"])[0] == pytest.approx(math.log(2 / 7 / 2 * 7 / 2), abs=0.7)


def test_evaluation_writes_a_record_and_more_context_helps(run, data, trained):
    blocks, _ = run.evaluate("test", None, stride=32)
    slid, text = run.evaluate("test", None, stride=1)
    assert slid["scores"]["tokens"] == blocks["scores"]["tokens"]
    assert slid["scores"]["nll"] < blocks["scores"]["nll"]
    num_bytes = sum(len(line) for line in (data / "test.txt").read_text().splitlines())
    assert slid["data"]["bytes"] == num_bytes
    bits = slid["scores"]["nll"] * slid["scores"]["tokens"] / math.log(2) / num_bytes
    assert slid["scores"]["bits_per_byte"] == pytest.approx(bits)
    assert f"{slid['scores']['perplexity']:8.3f}" in text
    files, _ = run.evaluate("test", str(data / "test.txt"), stride=1)
    assert files["scores"] == slid["scores"]
    assert len(list((trained / "scores").glob("*.json"))) == 3
    # Document by document, without packing and windows.
    documents = (data / "test.txt").read_text().splitlines()[:-1]
    alone = [row.sum() for row in run.token_log_probs([[]] * 24, [[*r, 1] for r in run.tokenizer.encode(documents)])]
    long, _ = run.evaluate("test", None, stride=32)
    tokens = sum(len(document) + 1 for document in documents)
    assert -sum(alone) / tokens < long["scores"]["nll"]


def test_few_shot_answers_by_likelihood(run, tmp_path):
    items = [Item(f"{w} ", (f"{w}.", "zzz.", "one one."), 0) for w in ("two", "three", "four", "five", "six", "seven")]
    result = few_shot(run, items, shots=0)
    assert result["accuracy"]["sum"] == 1
    assert result["chance"] == pytest.approx(1 / 3)
    assert result["answers"] == [0] * 6
    wrong = [Item(item.prompt, item.choices, 1) for item in items]
    assert few_shot(run, wrong, shots=0)["accuracy"]["sum"] == 0
    shown = few_shot(run, items, shots=4, separator=" ")
    assert 0 < shown["shots_left_out"] < 24  # four examples and a question have more than the 48 tokens there are
    with pytest.raises(UserError, match="6 shots of 6 examples"):
        few_shot(run, items, shots=6)
    file = tmp_path / "task.jsonl"
    file.write_text("".join(json.dumps(vars(item)) + "\n" for item in items))
    assert read_items(file) == items
    file.write_text('{"prompt": "a", "choices": ["b"], "answer": 1}\n')
    with pytest.raises(UserError, match=r"task\.jsonl: line 1.*answer is 1"):
        read_items(file)


def test_interruptions_change_nothing(data, tmp_path, monkeypatch):
    """Stopped in the middle of a log window, right after a checkpoint, and before the first one."""
    config = tiny_text_config(data, **RESUMED)
    assert train(config, tmp_path / "whole") == Outcome(60, finished=True)
    batch, made = PackedEpoch.batch, []

    def batch_and_stop(epoch, index, *shard):
        made.append(index)
        if len(made) == due:
            signal.raise_signal(signal.SIGTERM)
        return batch(epoch, index, *shard)

    monkeypatch.setattr(PackedEpoch, "batch", batch_and_stop)
    done = 0
    for step in (3, 20, 33):
        due = step - done
        made.clear()
        assert train(config, tmp_path / "run") == Outcome(step, finished=False)
        done = step
    monkeypatch.undo()
    assert train(config, tmp_path / "run") == Outcome(60, finished=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_commands(trained, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("th\nseven\n")
    done = command("generate", trained, prompts, "--method=greedy")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["line"], row["text"]) for row in rows] == [(1, "ree three."), (2, " seven.")]
    done = command("generate", trained, "--prompt=fo", "--method=greedy")
    assert (done.returncode, done.stdout) == (0, "four four.\n")
    task = tmp_path / "task.jsonl"
    task.write_text(
        "".join(f'{{"prompt": "{w} ", "choices": ["{w}.", "zzz."], "answer": 0}}\n' for w in ("two", "six"))
    )
    done = command("few_shot", trained, task)
    assert done.returncode == 0, done.stderr
    assert "2 items, 0 shots; chance is 50.0%\nsum            100.0%" in done.stdout
    done = command("translate", trained, prompts)
    assert done.returncode == 2
    assert "family language_model, this is for translation; use experiments/evaluate.py" in done.stderr


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"batching__length": 64}, ["batching.length=64", "model.max_length=48"]),
        ({"evaluation__stride": 40}, ["evaluation.stride is 40", "batching.length=32"]),
        ({"decoding__max_tokens": 48}, ["decoding.max_tokens=48", "model.max_length=48"]),
        ({"training__accumulation": 3}, ["batching.rows=8", "training.accumulation=3"]),
        ({"dataset__train": "nowhere.txt"}, ["dataset.train", "nowhere.txt"]),
        ({"dataset__validation": ""}, ["no validation split", "dataset.validation"]),
        ({"tokenizer__kind": "byte"}, ["tokenizer.vocab_size is 64", "260"]),
        ({"tokenizer__kind": "pieces"}, ["tokenizer.kind", "'bpe'"]),
    ],
)
def test_bad_input_leaves_no_run(data, tmp_path, changes, parts):
    with pytest.raises(UserError) as error:
        train(tiny_text_config(data, **changes), tmp_path / "run")
    assert all(part in str(error.value) for part in parts), str(error.value)
    left = {entry.name for entry in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert left <= {".lock"}
