"""Configs: what is accepted is converted exactly, and every error names the key, the value and the cure."""

import dataclasses
import json
from typing import Literal

import ml_collections
import pytest

from transformer_jax.config import build, differences, flatten
from transformer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Model:
    num_heads: int
    dropout_rate: float
    norm: Literal["pre", "post"]
    tied: bool = True
    layers: tuple[int, ...] = ()
    window: int | None = None
    span: tuple[int, str] = (1, "a")

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise UserError("num_heads must be positive")


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    model: Model
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    second: Model | None = None


def valid() -> dict:
    return {"name": "x", "model": {"num_heads": 4, "dropout_rate": 0.1, "norm": "pre"}}


def with_model(**changes: object) -> dict:
    config = valid()
    config["model"] |= changes
    return config


@pytest.mark.parametrize("wrap", [dict, ml_collections.ConfigDict, lambda d: json.loads(json.dumps(d))])
def test_builds_nested_dataclasses_from_every_kind_of_mapping(wrap):
    config = with_model(layers=(1, 2), dropout_rate=0, span=[3, "b"], window=7) | {"extra": {"a": 1}}
    run = build(Run, wrap(config))
    assert run == Run("x", Model(4, 0.0, "pre", True, (1, 2), 7, (3, "b")), {"a": 1.0})
    assert type(run.model.dropout_rate) is float
    assert type(run.model.layers) is tuple


def test_a_config_dict_that_is_locked_and_refers_to_itself():
    config = ml_collections.ConfigDict(valid())
    config.model.window = config.model.get_ref("num_heads") * 2
    assert build(Run, config.lock()).model.window == 8


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_head": 4}, ["model.num_head", "Did you mean num_heads?"]),
        ({"zzz": 4}, ["model.zzz", "Known:", "num_heads"]),
        ({"num_heads": "4"}, ["model.num_heads", "'4'", "str", "int"]),
        ({"num_heads": True}, ["model.num_heads", "True", "bool", "int"]),
        ({"num_heads": None}, ["model.num_heads", "None", "int"]),
        ({"num_heads": 4.0}, ["model.num_heads", "4.0", "int"]),
        ({"tied": 1}, ["model.tied", "1", "bool"]),
        ({"dropout_rate": "0.1"}, ["model.dropout_rate", "float"]),
        ({"dropout_rate": False}, ["model.dropout_rate", "float"]),
        ({"norm": "pres"}, ["model.norm", "'pres'", "'pre', 'post'", "Did you mean pre?"]),
        ({"norm": 3}, ["model.norm", "3", "'pre', 'post'"]),
        ({"layers": (1, "a")}, ["model.layers[1]", "'a'", "int"]),
        ({"layers": 1}, ["model.layers", "tuple[int, ...]"]),
        ({"span": (1,)}, ["model.span", "(1,)", "tuple[int, str]"]),
        ({"window": "x"}, ["model.window", "'x'", "int"]),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_wanted(changes, parts):
    with pytest.raises(UserError) as error:
        build(Run, with_model(**changes))
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_missing_keys_and_sections():
    config = valid()
    del config["model"]["num_heads"]
    with pytest.raises(UserError, match=r"lacks the key model\.num_heads.*int"):
        build(Run, config)
    with pytest.raises(UserError, match=r"model is 3 \(int\)"):
        build(Run, {"name": "x", "model": 3})
    with pytest.raises(UserError, match=r"second\.norm"):
        build(Run, valid() | {"second": {"num_heads": 1, "dropout_rate": 0.0}})


def test_the_dataclass_checks_its_own_values():
    with pytest.raises(UserError, match="must be positive"):
        build(Run, with_model(num_heads=0))


def test_differences_are_dotted_and_show_both_values():
    a, b = with_model(layers=(1, 2)), with_model(layers=[1, 2], num_heads=8, tied=1)
    b["new"] = {"x": {}}
    assert differences(a, b) == [
        "model.num_heads: 4 -> 8",
        "model.tied: (absent) -> 1",
        "new.x: (absent) -> {}",
    ]
    assert differences({"a": True}, {"a": 1}) == ["a: True -> 1"]
    assert differences(a, json.loads(json.dumps(a))) == []
    assert flatten(ml_collections.ConfigDict({"a": {"b": 1}})) == {"a.b": 1}
