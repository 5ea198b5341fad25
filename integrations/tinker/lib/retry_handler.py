"""`tinker.lib.retry_handler`: how the SDK repeats requests that failed on their way."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import APIConnectionError


@dataclass(unsafe_hash=True)
class RetryConfig:
    """Taken wherever the SDK takes one. Here no request is on its way, so that none fails there and none is repeated."""

    max_connections: int | None = 1000
    progress_timeout: float = 7200
    retry_delay_base: float = 0.5
    retry_delay_max: float = 10.0
    jitter_factor: float = 0.25
    enable_retry_logic: bool = True
    enable_stuck_detection: bool = True
    retryable_exceptions: tuple[type[Exception], ...] = (TimeoutError, APIConnectionError)

    def __post_init__(self) -> None:
        if self.max_connections is not None and self.max_connections <= 0:
            raise ValueError(f"max_connections must be positive or None, not {self.max_connections}")
