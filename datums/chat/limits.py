"""Limits of what a chat template may compute: a template of a stranger's model folder neither hangs nor takes all memory.

transformers compiles templates in Jinja's sandbox, which bounds neither loops nor texts. `limit_templates` puts an environment
in its place that counts each loop's turns, each call and each text, per rendering. What templates render stays the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ..errors import TemplateError

#: Steps of one rendering, some ten seconds of them: a turn of a loop, an operation, a filter; a call takes CALL. Of a text,
#: each PER_STEP characters are one more.
STEPS, CALL, PER_STEP = 3_000_000, 5, 100
#: Characters of the longest text, elements of the longest list, and bits of the largest number.
LONGEST = 10_000_000
_WIDTHS = re.compile(r"\d{7,}")  # in a format


class Meter:
    """What is left to one rendering."""

    def __init__(self) -> None:
        self.left = STEPS

    def spend(self, steps: int = 1) -> None:
        """Count steps. Raises jinja2's SecurityError, a TemplateError, when the limit is reached."""
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"it takes more than {STEPS} steps. Its loops may never end")

    def room(self, size: int) -> None:
        """Raises SecurityError where something of this size would be too large, before it is made."""
        if size > LONGEST:
            raise SecurityError(f"it makes a text, list or number of more than {LONGEST} characters, elements or bits")
        self.spend(1 + size // PER_STEP)

    def made(self, value: Any) -> Any:
        """The value, its size counted."""
        self.room(_length(value))
        return value

    def text(self, value: Any) -> int:
        """About the characters of the value written as text, all of it counted."""
        if isinstance(value, Mapping):
            total = sum(self.text(key) + self.text(entry) for key, entry in value.items())
        elif isinstance(value, Sequence | Set) and not isinstance(value, str | bytes | range):
            total = sum(self.text(entry) for entry in value)
        else:
            total = _length(value)
        self.room(total)
        return total

    def arguments(self, value: Any, name: str, arguments: Sequence[Any]) -> None:
        """Count what a method of a text or a filter, called on this value, could make of it."""
        length = max(1, _length(value))
        self.room(length)
        for argument in arguments:
            if (
                isinstance(argument, int)
                and abs(argument) * (length if name in ("indent", "expandtabs") else 1) > LONGEST
            ):
                raise SecurityError(f"{name} is called with a number that makes more than {LONGEST} characters")
            self.room(_length(argument))
        if name == "replace" and isinstance(value, str) and len(arguments) > 1:
            old, new = str(arguments[0]), str(arguments[1])
            self.room(length + value.count(old) * len(new))
        if name in ("format", "format_map") and isinstance(value, str) and _WIDTHS.search(value):
            raise SecurityError("a format has a width of millions")
        if name in ("join", "format", "format_map", "tojson", "string", "pprint", "xmlattr", "urlencode"):
            self.room(length * sum(map(_length, arguments)) if name == "join" and arguments else 0)
            self.text([value, *arguments])


class _Each:
    """An iterable whose elements are counted as they are taken."""

    def __init__(self, meter: Meter, value: Any) -> None:
        self.meter, self.value = meter, value

    def __iter__(self) -> Iterator[Any]:
        for entry in self.value:
            self.meter.spend()
            yield entry

    def __len__(self) -> int:
        return len(self.value)


class _MeteredContext(Context):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.meter = Meter()


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with limits of time and memory for each rendering."""

    context_class = _MeteredContext
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        del self.globals["lipsum"]  # writes a text of any length
        self.filters |= {"_each": _each, "_made": _made, "_joined": _joined, "_filtered": _filtered}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Counting().visit(super()._parse(source, name, filename))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """The operation's result; refused before it is made where it would be too large."""
        meter: Meter = context.meter
        if operator == "%" and isinstance(left, str):
            if _WIDTHS.search(left) or "*" in left:
                raise SecurityError("a format has a width that is not bounded")
            meter.text(right)
            meter.room(len(left))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.room(_length(left) * abs(right))
        elif operator == "*":
            meter.room(_product(left, right))
        elif operator == "+":
            meter.room(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function, macro or method and count it, its arguments and its result."""
        meter: Meter = __context.meter
        if isinstance(__obj, LoopContext) and args:  # a recursive loop
            args = (_Each(meter, args[0]), *args[1:])
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        if isinstance(owner := getattr(method, "__self__", None), str):
            meter.arguments(owner, str(getattr(method, "__name__", "")), [*args, *kwargs.values()])
        meter.spend(CALL)
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def call_filter(
        self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None, eval_ctx: Any = None
    ) -> Any:
        """Apply a filter and count its arguments and its result."""
        meter: Meter = context.meter
        meter.arguments(value, name, [*(args or ()), *(kwargs or {}).values()])
        return meter.made(super().call_filter(name, value, args, kwargs, context, eval_ctx))


class _Counting(NodeTransformer):
    """Puts the counting filters into a template."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_each")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filter(child, "_joined", as_list=True) for child in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, "_made")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "_made") if isinstance(node.arg, nodes.Slice) else node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        node.args = [nodes.Const(node.name, lineno=node.lineno), *node.args]
        node.name = "_filtered"
        return node


def limit_templates() -> None:
    """Let transformers compile chat templates with limits from now on, in this process."""
    from transformers.utils import chat_template_utils

    utils: Any = chat_template_utils
    if utils.ImmutableSandboxedEnvironment is not LimitedEnvironment:
        utils.ImmutableSandboxedEnvironment = LimitedEnvironment
        utils._compile_jinja_template.cache_clear()  # what was compiled without


@contextmanager
def within_limits(count: int) -> Iterator[None]:
    """Render a template for this many messages: limited, and whatever it raises is a TemplateError of one line."""
    limit_templates()
    try:
        yield
    except (
        JinjaError,
        TypeError,
        LookupError,
        AttributeError,
        ValueError,
        ArithmeticError,
        MemoryError,
        RecursionError,
    ) as error:
        if isinstance(error, TemplateError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise TemplateError(
            f"the chat template refuses these {count} messages: {type(error).__name__}: {reason}"
        ) from error


def _filter(node: Any, name: str, as_list: bool = False) -> nodes.Filter:
    inner = nodes.List([node], lineno=node.lineno) if as_list else node
    return nodes.Filter(inner, name, [], [], None, None, lineno=node.lineno)


@pass_context
def _each(context: Any, value: Any) -> Any:
    return _Each(context.meter, value) if hasattr(value, "__len__") else iter(_Each(context.meter, value))


@pass_context
def _made(context: Any, value: Any) -> Any:
    return context.meter.made(value)


@pass_context
def _joined(context: Any, parts: list[Any]) -> str:
    context.meter.text(parts)
    return "".join(map(str, parts))


@pass_context
def _filtered(context: Any, value: Any, name: str, *arguments: Any, **options: Any) -> Any:
    return context.environment.call_filter(name, value, arguments, options, context, context.eval_ctx)


def _length(value: Any) -> int:
    """Characters, elements or bits."""
    if isinstance(value, int):
        return value.bit_length()
    try:
        return len(value)
    except (TypeError, OverflowError):
        return 1


def _product(left: Any, right: Any) -> int:
    sizes = [side for side in (left, right) if not isinstance(side, int | float | complex)]
    if not sizes:
        return _length(left) + _length(right)
    count = right if sizes[0] is left else left
    return _length(sizes[0]) * max(0, count) if isinstance(count, int) else 1
