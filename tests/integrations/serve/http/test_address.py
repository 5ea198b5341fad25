"""What is wrong with a server's settings is said before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lossbook.datums.errors import ConfigError
from lossbook.integrations.serve.http.address import check_models
from lossbook.integrations.serve.settings import ServeSettings


def test_a_path_of_a_model_at_which_nothing_is_is_named(tmp_path: Path) -> None:
    check_models(ServeSettings(models={"a": "tiny", "b": str(tmp_path), "c": "Qwen/Qwen3-8B"}))
    for place in (str(tmp_path / "gone"), "./gone-too", "weights.gguf"):
        with pytest.raises(ConfigError, match=r"--models b .*: there is no such folder or file"):
            check_models(ServeSettings(models={"b": place}))
