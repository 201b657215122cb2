"""Every config is complete and sound; the paper's have its sizes, and take a step on made data."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments.command_line import load_config
from experiments.long_range.trials import Trial
from transformer_jax.data.batches import ArraySpec
from transformer_jax.data.long_range import TASKS, generate
from transformer_jax.errors import UserError
from transformer_jax.experiment import RunConfig, parse_config
from transformer_jax.families import masked_lm
from transformer_jax.families.translation import ARCHITECTURES, model_config
from transformer_jax.sharding import MeshConfig, make_mesh, place_batch
from transformer_jax.training.optimizers import learning_rate, make_optimizer
from transformer_jax.training.step import abstract_batch, abstract_state, make_train_step
from transformer_jax.training.tasks import TranslationTask

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL = [
    "wmt14.py:base",
    "wmt14.py:big",
    "multi30k.py:tiny",
    "multi30k.py:smoke",
    "multi30k.py:ten_minutes",
    "multi30k.py:lstm",
    "multi30k.py:best",
    "multi30k.py:best_tiny",
    *(f"long_range.py:{task}/transformer" for task in TASKS),
    *(f"long_range.py:reverse/{network}" for network in ("lstm", "lstm_attention")),
    "tatoeba.py:small",
    "tatoeba.py:gpu",
    "phrases.py",
    "parallel_text.py",
]
IMAGES = {
    "discrete_vae": ["shapes", "mnist", "smoke"],
    "text_to_image": ["shapes", "mnist", "smoke"],
    "image_classification": ["mnist", "smoke"],
}
TEXT = ["python", "shakespeare", "shakespeare-gpu", "files", "lm1b", "gpt2", "gpt3-175b", "smoke"]


def read(spec: str, *overrides: str) -> RunConfig:
    return parse_config(load_config(str(CONFIGS / spec), overrides))


def task_of(config: RunConfig) -> TranslationTask:
    size = config.tokenizer.vocab_size
    hyperparameters = model_config(config, size, size)
    return TranslationTask(ARCHITECTURES[hyperparameters.architecture][1](config=hyperparameters), config.task)


def parameter_count(config: RunConfig) -> int:
    shapes = nn.unbox(jax.eval_shape(task_of(config).init, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("spec", ALL)
def test_a_config_is_whole_and_its_best_checkpoint_is_one_that_is_saved(spec):
    config = read(spec)
    assert parameter_count(config) > 1e5
    assert config.evaluation.every_steps % config.checkpoints.every_steps == 0


def test_the_networks_that_are_compared_are_of_one_size():
    counts = [parameter_count(read(f"long_range.py:reverse/{n}")) for n in ("lstm", "lstm_attention", "transformer")]
    assert max(counts) < 1.04 * min(counts)
    configs = [Trial("multi30k", network, 1e-3, 1).config([]) for network in ("lstm_attention", "transformer")]
    assert parameter_count(configs[0]) == pytest.approx(parameter_count(configs[1]), rel=0.04)
    assert configs[0].tokenizer == configs[1].tokenizer
    assert configs[0].batching == configs[1].batching


@pytest.mark.parametrize("task", TASKS)
def test_vocabularies_hold_all_words_and_lengths_all_sentences_of_a_task(task):
    config = read(f"long_range.py:{task}/lstm")
    splits = generate(task, {"train": 2000}, tested=30)
    sides = [
        example[side].split() for examples in splits.values() for example in examples for side in ("source", "target")
    ]
    assert len({word for side in sides for word in side}) + 4 == config.tokenizer.vocab_size
    assert max(map(len, sides)) + 1 < config.batching.max_length


def test_an_architecture_that_there_is_not_is_named():
    with pytest.raises(UserError, match=r"model\.architecture is 'lstms'\. Did you mean lstm\?"):
        read("multi30k.py:lstm", "model.architecture=lstms")


@pytest.mark.parametrize("variant", TEXT)
def test_a_language_models_config_is_whole(variant):
    config = parse_config(load_config(f"{CONFIGS / 'language_model.py'}:{variant}"))
    assert config.evaluation.every_steps % config.checkpoints.every_steps == 0
    assert config.family == "language_model"


@pytest.mark.parametrize(
    ("spec", "family"),
    [(f"masked_lm.py:{variant}", "masked_lm") for variant in ("python", "files", "bert-base", "bert-large", "smoke")]
    + [(f"classification.py:{variant}", "classification") for variant in ("sentences", "words", "reviews", "smoke")],
)
def test_an_encoders_config_is_whole(spec, family):
    config = read(spec)
    assert config.evaluation.every_steps % config.checkpoints.every_steps == 0
    assert config.family == family


@pytest.mark.parametrize(("variant", "published"), [("bert-base", 109_514_298), ("bert-large", 335_174_458)])
def test_berts_presets_have_its_parameters(variant, published):
    """Those of Transformers' BertForMaskedLM; the paper rounds to 110M and 340M."""
    config = read(f"masked_lm.py:{variant}")
    task = masked_lm.make_task(config, config.tokenizer.vocab_size)
    shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == published


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name in IMAGES for variant in IMAGES[name]])
def test_configs_of_images_are_whole(name, variant):
    config = parse_config(load_config(f"{CONFIGS / name}.py:{variant}"))
    assert config.evaluation.every_steps % config.checkpoints.every_steps == 0
    assert config.family == name


def test_all_config_files_are_tested_and_refuse_unknown_variants():
    named = {spec.partition(":")[0] for spec in ALL} | {"language_model.py", "masked_lm.py", "classification.py"}
    named |= {f"{name}.py" for name in IMAGES}
    assert named == {file.name for file in CONFIGS.glob("*.py")} - {"__init__.py", "default.py"}
    for name in named:
        with pytest.raises(Exception, match=r"no-such-variant|takes no argument"):
            load_config(f"{CONFIGS / name}:no-such-variant")


@pytest.mark.parametrize(
    ("variant", "d_model", "d_ff", "published", "peak", "dropout", "steps", "averaged"),
    [
        ("base", 512, 2048, 65e6, 6.99e-4, 0.1, 100_000, 5),
        ("big", 1024, 4096, 213e6, 4.94e-4, 0.3, 300_000, 20),
    ],
)
def test_the_papers_settings(variant, d_model, d_ff, published, peak, dropout, steps, averaged):
    """Table 3 gives rounded counts for a vocabulary of "about 37000": the rows of base fit one of 41,000, big 36,000.

    With exactly 37,000 base comes out 3 % smaller than printed and big 0.6 % larger.
    """
    config = read(f"wmt14.py:{variant}")
    layers = 6 * (4 + 8) * d_model**2 + 6 * 2 * (2 * d_model * d_ff + d_ff + d_model) + 6 * (2 + 3) * 2 * d_model
    assert parameter_count(config) == 37_000 * d_model + layers
    assert parameter_count(config) == pytest.approx(published, rel=0.031 if variant == "base" else 0.006)
    assert config.optimizer.peak_learning_rate == pytest.approx(peak, rel=1e-3)
    rate = learning_rate(config.optimizer, config.training.total_steps)
    for step in (1, 100, 4000, 50_000):  # equation 3; steps count from 1 there
        expected = d_model**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert float(rate(np.int32(step - 1))) == pytest.approx(expected, rel=1e-3)
    assert (config.model["dropout_rate"], config.model["embedding_dropout_rate"]) == (dropout, dropout)
    assert (config.training.total_steps, config.evaluation.average) == (steps, averaged)
    assert config.checkpoints.keep_latest >= averaged
    assert (config.decoding.beam_size, config.decoding.length_penalty) == (4, 0.6)
    assert config.decoding.output_limit(30) == 80
    assert (config.task.label_smoothing, config.optimizer.b2, config.optimizer.epsilon) == (0.1, 0.98, 1e-9)


@pytest.mark.parametrize("variant", ["base", "big"])
def test_the_papers_models_take_a_step(variant):
    """The whole recipe, with a small vocabulary and tiny rows; big by shapes alone, since it takes gigabytes."""
    config = read(f"wmt14.py:{variant}", "tokenizer.vocab_size=300", "model.scan_layers=true")
    task, mesh = task_of(config), make_mesh(MeshConfig(-1, 1, 1))
    optimizer = make_optimizer(config.optimizer, config.training.total_steps)
    shapes, create = abstract_state(task, optimizer, mesh, config.seed, ema=False)
    rate = learning_rate(config.optimizer, config.training.total_steps)
    step = make_train_step(
        task, optimizer, rate, mesh, shapes, seed=1, accumulation=1, ema_decay=0.0, guard=config.guard
    )
    rows = 2 * mesh.size
    spec = {"source": ArraySpec((rows, 5), "int32"), "target": ArraySpec((rows, 6), "int32")}
    after, metrics = jax.eval_shape(step, shapes, abstract_batch(mesh, spec))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    if variant == "base":
        row = np.array([5, 6, 7, 8, 1, 0], np.int32)
        batch = {"source": np.tile(row[:5], (rows, 1)), "target": np.tile(row, (rows, 1))}
        state, metrics = step(create(), place_batch(mesh, batch))
        assert int(state.step) == 1
        assert float(metrics["tokens"]) == 5 * rows
        assert float(metrics["loss"]) / (5 * rows) == pytest.approx(math.log(300), rel=0.5)
