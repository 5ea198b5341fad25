"""Mutants of a module: its source with one operator, number, comparison or branch changed."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Replacements of an operator that are plausible mistakes; others are at least as easy to notice.
BINARY = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "*", ast.Mod: "+"}
BINARY |= {ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "&"}
COMPARISON = {ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"), ast.Eq: ("!=",)}
COMPARISON |= {ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",)}
#: Arguments of `register_loss` for cards and for the conformance kit, and of `dataclass`, which nothing computes with.
DECLARED = {"axes", "claims", "differs", "laws", "source", "frozen"}


@dataclass(frozen=True)
class Mutant:
    """One change.

    file: path below the root. line: its number today. before, after: the line's text. function: the qualified name of the
    function that runs it, "" for what runs when the module is imported (defaults and decorators among it). number: which of
    the changes that look the same in that function. source: the module's whole source with the change.
    """

    file: str
    line: int
    operator: str
    before: str
    after: str
    function: str
    number: int
    source: str
    in_class: bool

    @property
    def identity(self) -> tuple[str, ...]:
        """The change without its line number, which may differ between runs."""
        return (self.file, self.operator, self.before, self.after, self.function, str(self.number))


def mutants_of(path: Path, root: Path) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    text = path.read_text(encoding="utf-8")
    source = text.encode()
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    tree = ast.parse(text)
    scopes = _scopes(tree)
    seen: Counter[tuple[str, ...]] = Counter()
    for node in _code_of(tree):
        for operator, start, stop, replacement in _changes(node, source, starts):
            changed = source[:start] + replacement.encode() + source[stop:]
            line = source.count(b"\n", 0, start) + 1
            after = changed.split(b"\n")[line - 1].decode().strip()
            before = text.split("\n")[line - 1].strip()
            function, in_class = scopes[id(node)]
            key = (operator, before, after, function)
            yield Mutant(
                str(path.relative_to(root)),
                line,
                operator,
                before,
                after,
                function,
                seen[key],
                changed.decode(),
                in_class,
            )
            seen[key] += 1


def _code_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that are evaluated: not annotations, not texts, not what is only declared."""
    pending = [tree]
    while pending:
        node = pending.pop(0)
        yield node
        children: list[ast.AST] = []
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "format_spec") or (isinstance(node, ast.arg) and name == "annotation"):
                continue
            children += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, ast.AST)]
        pending[:0] = [one for one in children if not (isinstance(one, ast.keyword) and _is_declared(node, one))]


def _is_declared(call: ast.AST, argument: ast.keyword) -> bool:
    """Whether nothing is computed with an argument; `zip(strict=True)` only says that lengths are equal, as they are."""
    is_zip = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "zip"
    return argument.arg in DECLARED or is_zip


def _scopes(tree: ast.AST) -> dict[int, tuple[str, bool]]:
    """id of a node: the qualified name of the function whose code it is, and whether it is a class's own code."""
    scopes: dict[int, tuple[str, bool]] = {}

    def visit(node: ast.AST, function: str, prefix: str, in_class: bool) -> None:
        scopes[id(node)] = (function, in_class)
        if isinstance(node, ast.FunctionDef):
            outside = [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)]
            for child in outside:
                visit(child, function, prefix, in_class)
            name = prefix + node.name
            for child in node.body:
                visit(child, name, f"{name}.<locals>.", False)
        elif isinstance(node, ast.ClassDef):
            for child in [*node.decorator_list, *node.bases, *node.keywords, *node.body]:
                visit(child, function, f"{prefix}{node.name}.", not function)
        else:
            for child in ast.iter_child_nodes(node):
                visit(child, function, prefix, in_class)

    visit(tree, "", "", False)
    return scopes


def _changes(node: ast.AST, source: bytes, starts: list[int]) -> Iterator[tuple[str, int, int, str]]:
    """(operator, start, stop, replacement) of every change of one node."""

    def span(one: ast.AST) -> tuple[int, int]:
        return (
            starts[one.lineno - 1] + one.col_offset,  # type: ignore[attr-defined]
            starts[one.end_lineno - 1] + one.end_col_offset,  # type: ignore[attr-defined]
        )

    def between(left: ast.AST, right: ast.AST, symbol: str) -> tuple[int, int]:
        start, stop = span(left)[1], span(right)[0]
        place = re.search(symbol.encode(), source[start:stop])
        assert place is not None, (symbol, source[start:stop])
        return start + place.start(), start + place.end()

    if isinstance(node, ast.BinOp) and type(node.op) in BINARY and not _is_text(node):
        yield "operator", *between(node.left, node.right, r"\*\*|//|[-+*/%&|^]"), BINARY[type(node.op)]
    elif isinstance(node, ast.AugAssign) and type(node.op) in BINARY:
        yield "operator", *between(node.target, node.value, r"(\*\*|//|[-+*/%&|^])="), BINARY[type(node.op)] + "="
    elif isinstance(node, ast.Compare):
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            for other in COMPARISON.get(type(op), ()):
                yield "comparison", *between(left, right, r"not in|is not|[<>!=]=?|is\b|in\b"), other
    elif isinstance(node, ast.BoolOp):
        word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield "and/or", *between(left, right, rf"\b{word}\b"), other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        start, _ = span(node)
        yield "sign or not", start, start + (3 if isinstance(node.op, ast.Not) else 1), ""
    elif isinstance(node, ast.Constant):
        yield from _constants(node, *span(node))
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.UnaryOp):
        start, stop = span(node.test)
        yield "condition", start, stop, f"not ({source[start:stop].decode()})"
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            start, stop = span(test)
            yield "condition", start, stop, f"not ({source[start:stop].decode()})"
    elif isinstance(node, ast.For):
        start, stop = span(node.iter)
        yield "no iteration", start, stop, "()"
    elif isinstance(node, ast.Continue | ast.Break):
        yield "break/continue", *span(node), "break" if isinstance(node, ast.Continue) else "continue"
    elif isinstance(node, ast.ExceptHandler) and node.type is not None:
        yield "exception", *span(node.type), "KeyboardInterrupt"


def _constants(node: ast.Constant, start: int, stop: int) -> Iterator[tuple[str, int, int, str]]:
    if isinstance(node.value, bool):
        yield "true/false", start, stop, str(not node.value)
    elif isinstance(node.value, int | float) and abs(node.value) < 1e15:  # beyond, one more is the same float
        for other in (node.value + 1, node.value - 1):
            yield "number", start, stop, f"({other!r})" if other < 0 else repr(other)


def _is_text(node: ast.BinOp) -> bool:
    """Whether it joins texts, or is a type such as `int | None`."""
    sides = (node.left, node.right)
    if isinstance(node.op, ast.BitOr):
        return any(isinstance(one, ast.Constant) and one.value is None for one in sides)
    return any(
        isinstance(one, ast.JoinedStr) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
        for one in sides
    )
