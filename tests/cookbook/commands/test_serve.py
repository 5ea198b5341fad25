"""`lossbook serve`: its flags, and when it does not start."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook.cli import main, parsed
from lossbook.cookbook.settings.serve import ServeConfig, settings_of
from lossbook.cookbook.settings.serve.keys import KEYS_VARIABLE
from lossbook.datums.errors import ConfigError
from lossbook.integrations.serve.settings import Limits, ServeSettings

KEY = "tml-a-key-of-this-server"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)


def test_every_setting_of_the_server_is_a_flag() -> None:
    assert set(ServeSettings.model_fields) <= set(ServeConfig.model_fields)
    assert settings_of(ServeConfig()) == ServeSettings()


def test_flags_become_the_servers_settings() -> None:
    config = ServeConfig(port=1, models={"a": "tiny"}, keys=(KEY,), limits={"datums": 5, "header_seconds": 0.5})
    expected = ServeSettings(port=1, models={"a": "tiny"}, keys=(KEY,), limits=Limits(datums=5, header_seconds=0.5))
    assert settings_of(config) == expected


def test_models_and_limits_are_names_and_values_on_the_command_line() -> None:
    words = ["--models", "Qwen/Qwen3-8B", "/models/qwen", "tiny", "tiny", "--limits", "datums", "9", "--no-insecure"]
    call = parsed(("serve",), words)
    settings = settings_of(call.args[0])  # type: ignore[attr-defined]
    assert settings.models == {"Qwen/Qwen3-8B": "/models/qwen", "tiny": "tiny"}
    assert settings.limits.datums == 9


def test_keys_come_from_flags_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}1\n{KEY}2\n")
    monkeypatch.setenv(KEYS_VARIABLE, f"{KEY}3, {KEY}")
    settings = settings_of(ServeConfig(keys=(KEY,), keys_file=file))
    assert sorted(settings.keys) == [KEY, f"{KEY}1", f"{KEY}2", f"{KEY}3"]


@pytest.mark.parametrize("key", ["", "sk-something-else", "tml-short", "tml-ключ-ключ-ключ"])
def test_a_key_that_the_sdk_would_not_send_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="begin with tml-") as refused:
        settings_of(ServeConfig(keys=(key,)))
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--limits", "datum", "3"], "datums"),
        (["--limits", "datums", "0"], "datums"),
        (["--port", "70000"], "port"),
        (["--keys-file", "/nowhere/keys"], "/nowhere/keys"),
        (["--hots", "a"], "--host"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_anything_starts(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["serve", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_without_the_extra_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there: Any = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "fastapi" else there(name, *rest)
    )
    assert main(["serve"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'lossbook[serve]'" in line
