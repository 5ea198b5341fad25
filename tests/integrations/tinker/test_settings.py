"""Settings of the door: from the environment and from `configure`, refused by name where they are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lossbook.datums.errors import ConfigError
from lossbook.integrations import tinker
from lossbook.integrations.tinker.process import service as lossbooks_service
from lossbook.integrations.tinker.settings import Settings, changed, from_environment


def test_the_environment_sets_every_field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_environment({"HOME": "/"}) == Settings()
    assert Settings().root == tmp_path / "checkpoints" / "tinker"
    settings = from_environment(
        {
            "LOSSBOOK_TINKER_ROOT": "elsewhere",
            "LOSSBOOK_TINKER_MODELS": '{"Qwen/Qwen3-8B": "/models/qwen"}',
            "LOSSBOOK_TINKER_WORKERS": "2",
            "LOSSBOOK_TINKER_DTYPE": "bfloat16",
            "LOSSBOOK_TINKER_DETERMINISTIC": "true",
            "LOSSBOOK_TINKER_STABLE_REINFORCE": "",
        }
    )
    assert settings.root == tmp_path / "elsewhere"
    assert (settings.model("Qwen/Qwen3-8B"), settings.model("tiny")) == ("/models/qwen", "tiny")
    assert (settings.service["workers"], settings.service["deterministic"]) == (2, True)
    assert str(settings.service["dtype"]) == "torch.bfloat16"
    assert settings.stable_reinforce is None
    assert changed(settings, {"workers": None}).root == settings.root


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        pytest.param({"ROTO": "a"}, "Did you mean 'LOSSBOOK_TINKER_ROOT'", id="a misspelt name"),
        pytest.param({"WORKERS": "two"}, "workers='two'.*valid integer", id="a word for a number"),
        pytest.param({"MODELS": "a=b"}, "is not JSON", id="models that are no JSON"),
        pytest.param({"MODELS": "[]"}, "models=.*valid dictionary", id="a list of models"),
        pytest.param({"DTYPE": "fp8"}, "dtype='fp8'.*bfloat16", id="an unknown dtype"),
    ],
)
def test_what_is_no_setting_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_environment({f"LOSSBOOK_TINKER_{name}": value for name, value in environment.items()})


def test_what_the_models_of_a_process_share_cannot_change_once_one_is_loaded(configure: Any) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'root'"):
        configure(rood="a")
    tinker.ServiceClient().create_sampling_client(base_model="tiny").result()
    with pytest.raises(ConfigError, match=r"checkpoint_layers=False.*before the first client"):
        lossbooks_service(changed(configure(), {"checkpoint_layers": True}))


def test_folders_of_models_below_the_current_one_are_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)
    (tmp_path / "Qwen" / "Qwen3-8B" / "config.json").touch()
    assert Settings(models={"a": "b"}).models_at_hand() == ["a", "Qwen/Qwen3-8B", "tiny", "tiny-encoder"]
