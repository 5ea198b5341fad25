"""Small mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ..every_model.building import model_of
from ..model.architectures import build_tiny_tokenizer


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """mixture(kind): a folder with a small random model of that type."""
    folders: dict[str, str] = {}

    def made(kind: str) -> str:
        if kind not in folders:
            folder = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model_of(kind).save_pretrained(folder)
            build_tiny_tokenizer().save_pretrained(folder)
            folders[kind] = str(folder)
        return folders[kind]

    return made
