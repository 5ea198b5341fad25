"""The modes in which a job runs, and how they are put back after it, whatever its loss did to them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode
from torch.utils import _python_dispatch

#: Autocast is a mode of each kind of device.
_DEVICES = ("cpu", "cuda")


@contextmanager
def job_modes(*, deterministic: bool = False) -> Iterator[None]:
    """Inside, gradients are on, inference mode and autocast off; at the end every setting is what it was before.

    Settings of the thread: gradients, inference mode, autocast, the default device, modes that were entered and not left.
    Settings of the process: the default dtype, deterministic algorithms, the number of threads, the precision of float32
    products, the detection of anomalies, the filters of warnings. Random state is no setting: what a job draws stays drawn.

    deterministic: torch's deterministic algorithms are on inside, which raise where an operation has none.
    """
    before = [get() for get, _ in _SETTINGS]
    filters, shown = warnings.filters, list(warnings.filters)
    try:
        if deterministic:
            _set_deterministic((True, False, True, False))
        with torch.inference_mode(mode=False), torch.enable_grad():
            _leave_autocast()
            yield
    finally:
        _leave_modes()
        for value, (get, set_) in zip(before, _SETTINGS, strict=True):
            if get() != value:
                set_(value)
        if warnings.filters is filters and filters != shown:  # another list: somebody else is in catch_warnings
            filters[:] = shown  # type: ignore[index]  # typed as a sequence, documented as a list
            with warnings.catch_warnings():  # which tells the interpreter that filters have changed
                pass


def _leave_modes() -> None:
    """Leave torch's modes of this thread that a job entered and did not leave."""
    torch.set_default_device(None)
    while _get_current_function_mode_stack():
        _pop_mode()
    while _python_dispatch._get_current_dispatch_mode_stack():
        _python_dispatch._pop_mode()
    _leave_autocast()


def _leave_autocast() -> None:
    for device in _DEVICES:
        torch.set_autocast_enabled(device, False)
    torch.set_autocast_cache_enabled(True)
    # A depth above 0 would keep weights that were cast before a step, and use them after it.
    for _ in range(torch.autocast_increment_nesting()):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()


def _deterministic() -> tuple[bool, bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


def _set_deterministic(values: tuple[bool, bool, bool, bool]) -> None:
    on, warn_only, cudnn, benchmark = values
    torch.use_deterministic_algorithms(on, warn_only=warn_only)
    torch.backends.cudnn.deterministic = cudnn
    torch.backends.cudnn.benchmark = benchmark


#: Settings of the process: how each is read, and set.
_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (_deterministic, _set_deterministic),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
)
