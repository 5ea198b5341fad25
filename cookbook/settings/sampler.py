"""Settings of rollouts from a server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, model_validator

from ...datums.errors import ConfigError
from ..redaction import redacted
from .groups import MOST, setting

#: The environment variable with the server's API key, if it asks for one.
KEY_VARIABLE = "LOSSBOOK_SAMPLER_API_KEY"


class SamplerSettings(BaseModel):
    """Where rollouts are sampled: a part of a recipe's configuration."""

    sampling_workers: int | None = setting(
        "Rollouts",
        None,
        "with --workers: further processes that sample, with --off-policy-steps 1 during training",
        ge=1,
        le=MOST,
    )
    sampler_url: str | None = setting(
        "Rollouts",
        None,
        "sample on a server of the OpenAI completions API (vLLM, SGLang), such as http://localhost:8000",
    )
    sampler_model: str | None = setting("Rollouts", None, "the server's name for the model; None: the one it serves")
    sampler_adapters: Path | None = setting(
        "Rollouts", None, "folder through which adapters reach the server, which reads it under the same path"
    )
    sampler_bound: float | None = setting(
        "Rollouts",
        None,
        "largest mean difference of the server's logprobs, nats; None: 0.002 in float32, 0.1 in bfloat16",
        gt=0,
    )
    sampler_connections: int = setting("Rollouts", 64, "most requests to the server at a time", ge=1, le=MOST)
    sampler_timeout: float = setting("Rollouts", 600.0, "seconds for one request to the server", gt=0)

    @model_validator(mode="after")
    def _sampled_beside_workers(self) -> SamplerSettings:
        if self.sampling_workers is not None and getattr(self, "workers", None) is None:
            raise ValueError("sampling workers are beside workers that train: give --workers too")
        if self.sampling_workers is not None and self.sampler_url is not None:
            raise ValueError("choose one of --sampling-workers and --sampler-url")
        return self

    @model_validator(mode="after")
    def _served(self) -> SamplerSettings:
        if self.sampler_url is None:
            given = [name for name in SERVER_SETTINGS if getattr(self, name) != _default(name)]
            if given:
                raise ValueError(f"{given[0]} is for --sampler-url only")
            return self
        checked_url(self.sampler_url)
        if getattr(self, "all_weights", False):
            raise ValueError(
                "a server loads adapters while it runs, but whole weights only when it starts: leave --all-weights out, or sample "
                "here, without --sampler-url"
            )
        if self.sampler_adapters is None:
            raise ValueError("--sampler-url needs --sampler-adapters, a folder that this process and the server share")
        return self


SERVER_SETTINGS = tuple(n for n in SamplerSettings.model_fields if n not in ("sampler_url", "sampling_workers"))


def _default(name: str) -> object:
    return SamplerSettings.model_fields[name].default


def checked_url(url: str) -> str:
    """The server's address without its last slash and without /v1. Raises ConfigError for what is none."""
    if not _is_address(url):
        raise ConfigError(f"--sampler-url is an address such as http://localhost:8000, not {redacted(url)!r}")
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ConfigError(f"--sampler-url must not hold a login, which would be recorded: set {KEY_VARIABLE} instead")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_plain = not (parts.query or parts.fragment or any(character.isspace() for character in url))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and is_plain
    except ValueError:  # a port that is no number
        return False
