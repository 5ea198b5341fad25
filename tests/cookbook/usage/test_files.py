"""Configuration files: the same settings as TOML, JSON and YAML give the same configuration, and mistakes are named by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.cookbook.settings.sft import SFTConfig
from lossbook.cookbook.settings.written.files import read_config
from lossbook.datums.errors import ConfigError

WORDS = st.text("abcyeno1-_.:/ ~#'", min_size=1, max_size=8)
NUMBERS = st.floats(1e-12, 1e12)
SETTINGS = st.fixed_dictionaries(
    {"data": WORDS},
    optional={
        "rank": st.integers(1, 10**9),
        "learning_rate": NUMBERS,
        "lora_alpha": NUMBERS | st.integers(1, 99),
        "train_mlp": st.booleans(),
        "lora_targets": st.lists(WORDS, max_size=3),
        "loss_config": st.dictionaries(WORDS, st.booleans() | st.integers(-99, 99) | NUMBERS | WORDS, max_size=3),
    },
)


def as_toml(values: dict[str, Any]) -> str:
    """JSON's texts, numbers and lists are TOML's too; tables are written inline."""
    return "".join(f"{key} = {in_toml(value)}\n" for key, value in values.items())


def in_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {in_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


@given(values=SETTINGS)
def test_toml_json_and_yaml_give_the_same_settings(values: dict[str, Any], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("config")
    texts = {
        "a.toml": as_toml(values),
        "a.json": json.dumps(values, indent=1),
        "a.yaml": "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()),
        "b.yml": json.dumps(values),
    }
    read = []
    for name, text in texts.items():
        (folder / name).write_text(text)
        read.append(repr(read_config(folder / name, SFTConfig)))  # which tells 1, 1.0 and True apart
    assert set(read) == {read[0]}
    assert f"'loss_config': {values['loss_config']!r}" in read[0] if "loss_config" in values else True


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("lora_alpha: .5", "lora_alpha", 0.5),
        ("out: 2026-11-30", "out", Path("2026-11-30")),
        ("eval_data: ~", "eval_data", None),
        ('loss_config: {a: "no", b: 1e3}', "loss_config", {"a": "no", "b": 1000.0}),
        ("train_mlp: false", "train_mlp", False),
    ],
)
def test_yaml_values_are_what_they_look_like(text: str, name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert read_config(tmp_path / "a.yaml", SFTConfig) == {name: value}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "seed: 1\nresume: no\n", "line 2: no is a truth value to some readers of YAML"),
        ("a.yaml", "rank: 010\n", "line 1: 010 is read as different numbers"),
        ("a.yaml", "seed: 1\nrank: 2\nseed: 3\n", "line 3: the key 'seed' appears more than once"),
        ("a.yaml", "loss_config: &x {a: 1}\ntask_config: *x\n", "line 1: the anchor 'x' is not read"),
        ("a.yaml", "out: !!python/object/apply:os.getcwd []\n", "line 1: the tag"),
        ("a.yaml", "seed: 1\n\trank: 2\n", "line 2"),
        ("a.yaml", "seed: 1\nrnak: 2\n", "line 2: no setting is called 'rnak'. Did you mean 'rank'?"),
        ("a.yaml", "data: x\nrank: true\n", "line 2: rank takes a whole number of at least 1, not true"),
        ("a.toml", "data = 'x'\ntrain_mlp = 1\n", "line 2: train_mlp takes true or false, not 1"),
        (
            "a.toml",
            "data = 'x'\n\n[loss_config]\nday = 2026-11-30\n",
            "line 3: loss_config, 'day' takes true or false,",
        ),
        ("a.toml", "model = 7\n", "line 1: model takes a text, not 7: put it in quotes"),
        ("a.toml", "seed = 1\nseed = 2\n", "not TOML: Cannot overwrite a value (at line 2"),
        ("a.json", '{"seed": 1,\n "seed": 2}', "the key 'seed' appears more than once"),
        ("a.json", '{"data": "x",\n "rank": null}', "line 2: rank takes a whole number of at least 1, not nothing"),
        ("a.toml", "learning_rate = inf\n", "line 1: learning_rate takes a number above 0, not inf"),
        ("a.cfg", "seed = 1\n", "ends in .toml, .json, .yaml, .yml"),
    ],
)
def test_a_mistake_in_a_file_is_said_with_its_line_and_the_mend(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path / name, SFTConfig)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)
