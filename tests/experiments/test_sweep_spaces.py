"""Search spaces: read with the config's types, enumerated in full, and refused with a reason."""

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from experiments.sweeping.space import (
    dimensions_to_json,
    every_point,
    override,
    parse_dimensions,
    space_of_dimensions,
)
from tests.experiments.made_study import made_settings
from tests.made_files import CONFIG
from transformer_jax.errors import UserError

RATE, HEADS, NORM = "optimizer.peak_learning_rate", "model.num_heads", "model.norm"


def parse(*words):
    return parse_dimensions(words, str(CONFIG))


def test_dimensions_have_the_types_of_the_config():
    space = parse(f"{RATE}=1e-4..1e-2:log", f"{HEADS}=1..8", f"{NORM}=layer_norm, rms_norm", "model.dropout_rate=0,1")
    assert space == {
        RATE: FloatDistribution(1e-4, 1e-2, log=True),
        HEADS: IntDistribution(1, 8),
        NORM: CategoricalDistribution(["layer_norm", "rms_norm"]),
        "model.dropout_rate": CategoricalDistribution([0.0, 1.0]),
    }


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["optimizer.peak_learning_rat=1,2"], r"no key peak_learning_rat.*Did you mean peak_learning_rate"),
        ([f"{HEADS}=2,four"], "num_heads=four: int is wanted"),
        ([f"{HEADS}"], "write KEY=A,B,C"),
        ([f"{HEADS}=8..2"], "LOW must be below HIGH"),
        ([f"{RATE}=0..1:log"], "above 0 on a log scale"),
        ([f"{RATE}=0..1:lin"], "a range is of numbers"),
        ([f"{NORM}=a..b"], "a range is of numbers"),
        ([f"{HEADS}=2", f"{HEADS}=4"], "given twice"),
    ],
)
def test_mistakes_are_told(words, reason):
    with pytest.raises(UserError, match=reason):
        parse(*words)


def test_a_space_survives_its_file():
    stored = dimensions_to_json(parse(f"{HEADS}=2,4", f"{NORM}=layer_norm,rms_norm"))
    assert every_point(space_of_dimensions(stored)) == [
        {NORM: norm, HEADS: heads} for norm in ("layer_norm", "rms_norm") for heads in (2, 4)
    ]


def test_every_point_of_a_space_with_conditions():
    def space(trial):
        layers = trial.suggest_int("layers", 1, 3)
        if layers == 2:
            return {"layers": layers, "x": trial.suggest_float("x", 0.0, 1.0, step=0.5)}
        return {"layers": layers}

    assert every_point(space) == [
        {"layers": 1},
        {"layers": 2, "x": 0.0},
        {"layers": 2, "x": 0.5},
        {"layers": 2, "x": 1.0},
        {"layers": 3},
    ]
    with pytest.raises(UserError, match="infinitely many"):
        every_point(lambda trial: {"x": trial.suggest_float("x", 0, 1)})


def test_override_leaves_the_original_alone():
    config = {"model": {"num_heads": 2}, "seed": 1}
    assert override(config, {"model.num_heads": 4, "seed": 2}) == {"model": {"num_heads": 4}, "seed": 2}
    assert config == {"model": {"num_heads": 2}, "seed": 1}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"grid": ("model.num_heads=2,3",)}, r"point model.num_heads=3 cannot be:.*16"),
        ({"grid": (f"{RATE}=1,2",), "space": (f"{HEADS}=1,2",)}, "exclude each other"),
        ({"grid": (f"{RATE}=1,2",), "sampler": "tpe"}, "give the same words as --space"),
        ({"grid": (f"{RATE}=1,2",), "points": 3}, "a grid has as many points"),
        ({"grid": ("seed=1,2",), "seeds": 2}, "sets the seed itself"),
        ({"space": (f"{RATE}=1e-3..1",), "sampler": "grid"}, "infinitely many"),
        ({"space": (f"{RATE}=1e-3..1",), "points": 0}, "points is 0"),
        ({"pruner": "median", "objectives": ("quality", "time")}, "set --pruner=none or --objectives=quality"),
        ({"objectives": ("quality", "quality")}, "each once"),
        ({"objectives": ("speed",)}, "objectives.*speed"),
    ],
)
def test_studies_that_cannot_be_are_refused_before_any_work(tmp_path, settings, reason):
    with pytest.raises(UserError, match=reason):
        made_settings(tmp_path / "study", tmp_path, **settings)
    assert not (tmp_path / "study").exists()


OWN = f"""import sys
sys.path.append({str(CONFIG.parents[1])!r})
from configs.parallel_text import get_config

def search_space(trial):
"""


def test_search_space_of_a_config_file(tmp_path):
    spec = tmp_path / "mine.py"
    text = f"""{OWN}
    trial.set_user_attr("number", trial.number)
    width = trial.suggest_categorical("width", [16, 32])
    return {{"model.d_model": width, "model.d_ff": 4 * width}}
"""
    spec.write_text(text)
    settings = made_settings(tmp_path, tmp_path, spec=str(spec), sampler="grid")
    assert settings.points == 2
    assert every_point(settings.search_space) == [{"width": 16}, {"width": 32}]
    assert made_settings(tmp_path, tmp_path, spec=str(spec)).sampler == "tpe"
    spec.write_text(text.replace("model.d_ff", "model.d_fff"))
    with pytest.raises(UserError, match=r"d_fff.*Did you mean d_ff"):
        made_settings(tmp_path, tmp_path, spec=str(spec))


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("trial.suggest_flot('x', 0, 1)", r"mine.py:6: AttributeError: .*suggest_flot"),
        ("return {'seed': trial.suggest_categorical('x', [0, 1])[0]}", r"mine.py:6: TypeError"),
    ],
)
def test_mistakes_in_a_search_space_name_their_line(tmp_path, sampler, line, reason):
    spec = tmp_path / "mine.py"
    spec.write_text(f"{OWN}    {line}\n")
    with pytest.raises(UserError, match=reason):
        made_settings(tmp_path / "study", tmp_path, spec=str(spec), sampler=sampler)
