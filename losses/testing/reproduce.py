"""Examples as Python source, so that a failing check prints code that can be pasted and run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...datums.types import Datum
from ..loss.loss import Loss, Mixture
from ..registry import is_registered


def reproducer(check: str, loss: Any, example: Mapping[str, Any]) -> str:
    """Source that runs one check on one example and raises the same LossCheckError."""
    imports, expression = loss_source(loss)
    arguments = "".join(f"    {name}={value_source(value)},\n" for name, value in example.items())
    return (
        "from math import inf, nan\n"
        f"{imports}"
        "from lossbook import Datum, get_loss\n"
        "from lossbook.losses.testing import run_check\n"
        "\n"
        f"loss = {expression}\n"
        f"run_check(\n    {check!r},\n    loss,\n{arguments})\n"
    )


def loss_source(loss: Loss | Mixture) -> tuple[str, str]:
    """(import lines, expression) that recreate `loss`. A function that cannot be imported must be defined by the reader."""
    if not isinstance(loss, Loss):
        made = [(factor, *loss_source(part)) for factor, part in loss.parts]
        return "".join(dict.fromkeys(i for _, i, _ in made)), " + ".join(f"{f!r} * {e}" for f, _, e in made)
    function = loss.spec.function
    function = getattr(function, "__wrapped__", function)
    settings = "".join(f", {key}={value!r}" for key, value in given_settings(loss).items())
    if is_registered(function):
        module = function.__module__
        own = module.partition(".")[0] == __name__.partition(".")[0] or module == "__main__"
        imports = "" if own else f"import {module}  # registers {loss.name!r}\n"
        return imports, f"get_loss({loss.name!r}{settings})"
    if (made_by := getattr(function, "made_by", None)) is not None:  # set by a wrapper: (import lines, expression)
        return made_by[0], f"get_loss({made_by[1]}{settings})"
    name = getattr(function, "__name__", type(function).__name__).strip("<>")
    imports = f"from {function.__module__} import {name}\n"
    if not _is_importable(function):
        imports = f"# define {name}, the loss itself: it cannot be imported by that name\n"
    if (declared := _declared(loss)) is None:
        return imports, f"get_loss({name}{settings})"
    imports += "from lossbook.losses.loss.loss import Loss\nfrom lossbook.losses.spec.spec import make_spec\n"
    return imports, f"Loss(make_spec({name}, {loss.name!r}, {declared}), {given_settings(loss)!r})"


def value_source(value: Any) -> str:
    """An example's value (datums, tensors, plain values) as source."""
    if isinstance(value, Datum):
        inputs = ", ".join(f"{k!r}: {v.tolist()!r}" for k, v in value.loss_fn_inputs.items())
        return f"Datum({value.model_input.to_ints()!r}, {{{inputs}}})"
    if isinstance(value, Tensor):
        return repr(value.tolist())
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {value_source(one)}' for key, one in value.items())}}}"
    if isinstance(value, list) and value and isinstance(value[0], Datum):
        return "[\n" + "".join(f"        {value_source(one)},\n" for one in value) + "    ]"
    if isinstance(value, list | tuple):
        return f"[{', '.join(value_source(one) for one in value)}]"
    return repr(value)


def given_settings(loss: Loss) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    fields = loss.spec.config.model_fields
    return {key: value for key, value in loss.config if value != fields[key].get_default()}


def _declared(loss: Loss) -> str | None:
    """The arguments of `make_spec` for an unregistered function; None where `get_loss(function)` makes the same spec."""
    spec = loss.spec
    is_plain = spec.per == spec.couples == "token" and spec.reduction == "sum"
    if spec.is_batch_style or (is_plain and not spec.required_if and not spec.linear):
        return None
    linear = ", linear=True" if spec.linear else ""
    return (
        f"per={spec.per!r}, couples={spec.couples!r}, reduction={spec.reduction!r}, "
        f"required_if={dict(spec.required_if)!r}{linear}"
    )


def _is_importable(function: Callable[..., Any]) -> bool:
    module = getattr(function, "__module__", None)
    if module is None or module == "__main__":
        return False
    return getattr(sys.modules.get(module), getattr(function, "__name__", ""), None) is function
