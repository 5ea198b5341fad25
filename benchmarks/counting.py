"""Counts what a GPU would be asked for, on a CPU: operations launched, copies to it, and reads that wait for it.

    with as_on_a_gpu(), Counts() as counts:
        step()
    counts.launches.total(), len(counts.uploads), len(counts.reads)

Each tensor's memory stands for the host or for the device. What is made from Python numbers or NumPy arrays, or with
`device="cpu"`, is the host's; what is made with a `torch.device` is the device's, as is all that was there before, such as
weights. A copy between the two is a real copy here, so that both may go on changing. An operation on the host's tensors
is no launch.

Not launches: views, tensors without values (`empty`), and copies between host and device. A read is a copy to the host, a
number that Python sees (`item`, `bool`), and an operation whose result's size depends on values (`nonzero`, a boolean
index), or that returns a Python bool (`equal`). Modes of torch count in the thread that entered them, so a step that runs
in another thread enters `Counts` there.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lossbook.benchmarks.varlen_on_cpu import as_flash_attention
from lossbook.trainer.device import taking_gpu_path

#: Operations that start nothing on the device though they return a new tensor.
NO_LAUNCH = ("empty", "new_empty", "_unsafe_view", "lift", "set_", "resize_", "is_", "sym_", "_local_scalar_dense")
#: Operations that wait for the device, because Python or the size of their result needs their values.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave",
    "aten::_assert_scalar",
}
#: Methods by which Python gets a tensor's values.
VALUES = {getattr(torch.Tensor, name) for name in ("item", "tolist", "numpy", "__array__", "__bool__", "__float__")}
VALUES |= {getattr(torch.Tensor, name) for name in ("__int__", "__index__", "__complex__", "__contains__")}
_GET_DEVICE = torch.Tensor.device.__get__
MOVES = {torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.copy_}
#: Functions that copy Python's or NumPy's numbers to the device that they are given.
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray}


class Event(NamedTuple):
    """An upload or a read: the part of the step in which it was made, and the operation with its lines of code."""

    phase: str
    place: str


class Counts:
    """Launches by operation, and for each upload and each read the place in the code that asked for it.

    by_phase  launches by the part of a step that made them, see `during`
    refused   operations that mix the host's tensors with the device's, at which a GPU would raise an error
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.by_phase: Counter[str] = Counter()
        self.uploads: list[Event] = []
        self.reads: list[Event] = []
        self.refused: list[str] = []
        self.phase = ""
        self._host: dict[int, StorageWeakRef] = {}
        self._host_devices: dict[int, torch.device] = {}
        self._paused = False
        self._new_on_host: bool | None = None  # where a function puts a tensor that it makes from no other
        self._entered: list[list[Any]] = []

    def __enter__(self) -> Counts:
        from_numpy, run_backward = torch.from_numpy, torch.autograd._engine_run_backward

        def seen_backward(*args: Any, **kwargs: Any) -> Any:
            with _Functions(self):  # torch leaves such modes around `backward`, in which Python code runs
                return run_backward(*args, **kwargs)

        modes: list[Any] = [_Functions(self), _Operations(self)]
        modes.append(patch.object(torch, "from_numpy", lambda array: self._on_host(from_numpy(array))))
        modes.append(patch.object(torch.autograd, "_engine_run_backward", seen_backward))
        for mode in modes:
            mode.__enter__()
        self._entered.append(modes)
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._entered.pop()):
            mode.__exit__(*error)

    def clear(self) -> None:
        """Forget what was counted, as after a step that warms up; which tensors are the host's stays known."""
        self.launches, self.by_phase = Counter(), Counter()
        self.uploads, self.reads, self.refused = [], [], []

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Inside, what is counted belongs to this part of a step."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def is_on_host(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's memory stands for the host's."""
        reference = self._host.get(tensor.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def _note(self, events: list[Event], place: str) -> None:
        events.append(Event(self.phase, place))

    def _on_host(self, value: Any) -> Any:
        for tensor in _tensors(value):
            storage = tensor.untyped_storage()
            self._host[storage._cdata] = StorageWeakRef(storage)
        return value

    # --- functions that Python calls ---------------------------------------------------------------------------------

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of torch; copies between host and device are seen here, for on a CPU they may do nothing."""
        tensors = _tensors((args, kwargs))
        if function == _GET_DEVICE:
            device = function(*args)
            if self.is_on_host(tensors[0]):
                self._host_devices[id(device)] = device  # each call makes an object of its own
            return device
        if function in MOVES and tensors:
            return self._move(function, args, kwargs)
        if function in VALUES and tensors and not self.is_on_host(tensors[0]):
            self._note(self.reads, _place(function.__name__))
            return self._unseen(function, args, kwargs)
        if tensors:
            return function(*args, **kwargs)
        is_host = self._is_host(kwargs.get("device"))
        if function in FROM_NUMBERS and not is_host:
            made = self._unseen(function, args, kwargs)
            if made.numel():
                self._note(self.uploads, _place(function.__name__))
            return made
        before, self._new_on_host = self._new_on_host, is_host
        try:
            result = function(*args, **kwargs)
        finally:
            self._new_on_host = before
        return self._on_host(result) if is_host else result

    def _move(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function is torch.Tensor.copy_:
            source, goal = self.is_on_host(args[1]) if _tensors(args[1:]) else None, self.is_on_host(args[0])
        else:
            source, goal = self.is_on_host(args[0]), True if function is torch.Tensor.cpu else self._goal(args, kwargs)
        if source is None or goal is None or source == goal:
            return function(*args, **kwargs)
        self._note(self.uploads if source else self.reads, _place(function.__name__))
        result = self._unseen(function, args, kwargs)
        if function is torch.Tensor.copy_:
            return result
        if result.untyped_storage()._cdata == args[0].untyped_storage()._cdata:
            result = self._unseen(torch.Tensor.clone, (result,), {})
        return self._on_host(result) if goal else result

    def _goal(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
        """Whether `Tensor.to` goes to the host; None where it only changes the dtype."""
        for option in (*args[1:], *kwargs.values()):
            if isinstance(option, torch.device | str):
                return self._is_host(option)
            if isinstance(option, torch.Tensor):
                return self.is_on_host(option)
        return None

    def _is_host(self, device: torch.device | str | None) -> bool:
        """Whether a device that was asked for is the host: nothing, a word, or the `device` of a tensor there."""
        return not isinstance(device, torch.device) or id(device) in self._host_devices

    def _unseen(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before, self._paused = self._paused, True
        try:
            return function(*args, **kwargs)
        finally:
            self._paused = before

    # --- operations that they start ----------------------------------------------------------------------------------

    def dispatch(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation and count it."""
        if self._paused:
            return operation(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        sized = [tensor for tensor in tensors if tensor.ndim] or tensors  # a single number may lie anywhere
        on_host = [tensor for tensor in sized if self.is_on_host(tensor)]
        if len(on_host) == len(sized) if sized else self._new_on_host:
            return self._on_host(operation(*args, **kwargs))
        name = operation._schema.name
        if name in ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"):
            self._index(name, args[0], _tensors(args[1]))
        elif on_host:
            self.refused.append(_place(name))
        if name in WAITING and kwargs.get("output_size") is None:
            self._note(self.reads, _place(name))
        if _launches(operation, name):
            self.launches[name] += 1
            self.by_phase[self.phase] += 1
        return operation(*args, **kwargs)

    def _index(self, name: str, indexed: torch.Tensor, indices: list[torch.Tensor]) -> None:
        """An index on the host is copied; a boolean one is turned into positions, whose number the host must know."""
        for index in indices:
            if self.is_on_host(index) and not self.is_on_host(indexed) and index.ndim:
                self._note(self.uploads, _place(name))
            elif index.dtype in (torch.bool, torch.uint8):
                self._note(self.reads, _place(f"{name} by bool"))


class _Functions(TorchFunctionMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.counts.call(func, args, kwargs or {})


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.counts.dispatch(func, args, kwargs or {})


def _launches(operation: Any, name: str) -> bool:
    schema = operation._schema
    is_view = any(result.alias_info and not result.alias_info.is_write for result in schema.returns)
    return not is_view and not name.split("::")[1].startswith(NO_LAUNCH)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _place(what: str = "") -> str:
    """The innermost lines of Python outside torch and this file."""
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < 2:
        file = frame.f_code.co_filename
        if "/torch/" not in file and file != __file__ and not file.startswith("<"):
            lines.append(f"{'/'.join(file.split('/')[-3:])}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(filter(None, (what, *lines)))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, lossbook takes a GPU's path on a CPU, and torch's optimizers and clipping update all tensors together.

    Attention over packed rows is torch's variable-length operation, by a reference that takes the dtypes of FlashAttention.
    """

    def both() -> list[str]:
        return ["cpu", "cuda"]

    name = "_get_foreach_kernels_supported_devices"
    optimizer = importlib.import_module("torch.optim.optimizer")
    with (
        taking_gpu_path(),
        as_flash_attention(),
        patch.object(_foreach_utils, name, both),
        patch.object(optimizer, name, both),
    ):
        yield


@contextmanager
def watched(client: Any, counts: Counts) -> Iterator[None]:
    """Inside, the calls of a training or sampling client are counted, each under its name as phase."""
    calls = client._calls
    submit = calls.submit

    def counted(label: str, fn: Callable[[], Any]) -> Any:
        def run() -> Any:
            with counts, counts.during(label):
                return fn()

        return submit(label, run)

    with patch.object(calls, "submit", counted):
        yield
