"""Judging mutants: the tests are collected once, and each mutant runs those that reach it in a fork, until one fails.

First every test runs once under a tracer that notes which functions of `losses/` it calls. A mutant then meets the tests that
call its function, those first that noticed other mutants nearby, then the quickest. A change of what runs while a module is
imported is made by running the module's source again in the fork; where that is not enough, a fresh process imports it.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import resource
import select
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

from mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
#: Seconds of CPU, and of anybody's clock, after which a mutant counts as noticed: it loops for ever.
CPU_LIMIT, WALL_LIMIT = 120, 1800
#: Tests slower than this, in seconds, are left out: they start processes, which do not see the mutant, or draw many examples.
SLOWEST = 6.0
#: The filter is needed because the nursery imports hypothesis before pytest can rewrite its assertions.
OPTIONS = (
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "--no-header",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)
#: Tests of the core, and those of losses on tensors with a model. The kit's own tests are about the kit.
TESTS = (
    "tests/losses",
    "tests/trainer/tensors",
    "tests/peers/test_tinker_trace.py",
    "--ignore=tests/losses/testing",
    "-m",
    "not slow",
)
#: Laws run for every loss, and call the whole core: a change of the core meets these losses, one of a loss its own.
CONFORMANCE = "test_conformance"
#: Compares the settings of each loss with its page, and calls no loss.
SETTINGS = "test_settings_on_pages"
REPRESENTATIVES = ("cross_entropy", "gspo", "dpo", "kto", "info_nce", "topk_forward_kl")
FAMILIES = ("supervised", "policy", "preference", "distillation", "embedding", "ranking", "value", "variants")
#: Tests that compare functions by identity: a module that is run again, even unchanged, makes others.
SAME_OBJECTS = "test_families"
#: What is said of a mutant that only a fresh import can take.
NOT_IN_PLACE = "not in place"
#: Modules whose functions run while lossbook is imported.
IMPORT_TIME = {"spec.py", "settings.py", "registry.py", "family.py", "presets.py", "suffixes.py"}


class MutationLoop:
    """A pytest plug-in that judges mutants with the collected tests.

    waiting: gives mutants until there is none. report(mutant, noticed, by, seconds): called for each, with the test that failed.
    cache: where it is kept which tests call what. budget: how many seconds of tests, as they take without a mutant, one mutant
    meets at most.
    """

    def __init__(
        self,
        waiting: Iterator[Mutant],
        report: Callable[[Mutant, bool, str, float], None],
        cache: Path,
        budget: float,
    ) -> None:
        self.waiting, self.report, self.cache, self.budget = waiting, report, cache, budget
        self.kills: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def pytest_runtestloop(self, session: Any) -> bool:
        """Judge every mutant."""
        self.items = {item.nodeid: item for item in session.items}
        self.reach = reach_of(session.items, self.cache)
        _functions.extend(one for one in gc.get_objects() if type(one) is FunctionType)
        gc.collect()
        gc.freeze()  # without it, garbage collection in each fork copies every page
        for mutant in self.waiting:
            began = time.monotonic()
            noticed, by = self.judged(mutant)
            self.report(mutant, noticed, by, time.monotonic() - began)
        return True

    def judged(self, mutant: Mutant) -> tuple[bool, str]:
        """Whether some test fails with the mutant in place, and which."""
        chosen = self.chosen(mutant)
        verdict = in_fork(lambda say: tried(mutant, [self.items[one] for one in chosen], say))
        if verdict == "" and mutant.function and mutant.file.rpartition("/")[2] not in IMPORT_TIME:
            return False, ""
        if verdict in ("", NOT_IN_PLACE):
            return runs_anew(mutant, chosen)
        by = verdict if verdict in self.items else "crash, endless loop or error on import"
        if verdict in self.items:
            self.kills[mutant.file][verdict] += 1
        return True, by

    def chosen(self, mutant: Mutant) -> list[str]:
        """Ids of the tests that call the mutant's function, the likeliest to fail first, within the budget."""
        of_file = self.kills[mutant.file]
        stem = Path(mutant.file).stem
        names = {one for one in self.reach.tests(mutant) if mutant.function or SAME_OBJECTS not in one}
        order = sorted(
            names,
            key=lambda one: (-of_file[one], f"test_{stem}" not in one, CONFORMANCE in one, self.reach.seconds[one]),
        )
        spent, kept = 0.0, []
        for one in order:
            spent += self.reach.seconds[one]
            if spent > self.budget and kept:
                break
            kept.append(one)
        return kept


class Reach:
    """Which tests call which functions, and how long they take.

    calls: {test: ["file:function", ...]}. seconds: {test: seconds}.
    """

    def __init__(self, calls: dict[str, list[str]], seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._tests: dict[str, set[str]] = defaultdict(set)
        for test, names in calls.items():
            for name in names:
                self._tests[name].add(test)
                self._tests[name.partition(":")[0]].add(test)

    def tests(self, mutant: Mutant) -> set[str]:
        """Those that call the mutant's function, or anything of its file where it runs on import."""
        outer = mutant.function.partition(".<locals>")[0]
        key = f"{mutant.file}:{outer}" if mutant.function else mutant.file
        tests = {one for one in self._tests[key] if CONFORMANCE not in one}
        if not mutant.function:  # which a test may read without a call into the file
            folder = f"tests/{mutant.file.rpartition('/')[0]}/"
            tests |= {one for one in self.seconds if one.startswith(folder) and CONFORMANCE not in one}
        names = REPRESENTATIVES
        if mutant.file.split("/")[1] in FAMILIES:
            source = (ROOT / mutant.file).read_text(encoding="utf-8")
            names = tuple(re.findall(r'@register_loss\(\s*"([^"]+)"', source))
        about = re.compile("|".join(rf"\[{re.escape(one)}[-(\]]" for one in names) or "(?!)")
        of_losses = {one for one in self.seconds if any(kind in one for kind in (CONFORMANCE, SETTINGS))}
        return tests | {one for one in of_losses if about.search(one)}


def reach_of(items: Sequence[Any], cache: Path) -> Reach:
    """What every test calls, and how long it takes without a mutant: from `cache`, and by running those that are new there."""
    known = (
        json.loads(cache.read_text(encoding="utf-8"))
        if cache.exists()
        else {"calls": {}, "seconds": {}, "left_out": []}
    )
    calls, seconds, left_out = known["calls"], known["seconds"], set(known["left_out"])
    new = [item for item in items if item.nodeid not in seconds and item.nodeid not in left_out]
    for i, item in enumerate(new):
        is_conformance = CONFORMANCE in item.nodeid  # chosen by their loss; tracing them would take longest
        seen: set[CodeType] = set()
        began = time.process_time()
        sys.settrace(None if is_conformance else _noting(seen))
        passed = is_conformance or run_item(item, new[i + 1] if i + 1 < len(new) else None)
        sys.settrace(None)
        took = 0.3 if is_conformance else time.process_time() - began
        if not passed or took > SLOWEST:
            left_out.add(item.nodeid)
            continue
        calls[item.nodeid] = sorted(
            {f"{_relative(code)}:{code.co_qualname.partition('.<locals>')[0]}" for code in seen}
        )
        seconds[item.nodeid] = took
    if new:
        partial = cache.with_suffix(f".{os.getpid()}.partial")  # each worker writes its own
        everything = {"calls": calls, "seconds": seconds, "left_out": sorted(left_out)}
        partial.write_text(json.dumps(everything), encoding="utf-8")
        partial.rename(cache)
    collected = {item.nodeid for item in items}
    return Reach(
        {k: v for k, v in calls.items() if k in collected}, {k: v for k, v in seconds.items() if k in collected}
    )


def _relative(code: CodeType) -> str:
    return os.path.relpath(code.co_filename, ROOT)


def _noting(seen: set[CodeType]) -> Callable[..., None]:
    """A tracer that notes the code of every function of losses/ that is called, and looks at no line."""
    folder = str(ROOT / "losses")

    def trace(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_filename.startswith(folder):
            seen.add(frame.f_code)

    return trace


def run_item(item: Any, following: Any) -> bool:
    """Whether a collected test passes."""
    from _pytest.runner import runtestprotocol

    return not any(report.failed for report in runtestprotocol(item, nextitem=following, log=False))


def run_until_failure(items: Sequence[Any], say: Callable[[str], None]) -> bool:
    """Whether all pass; says which one failed."""
    for i, item in enumerate(items):
        if not run_item(item, items[i + 1] if i + 1 < len(items) else None):
            say(item.nodeid)
            return False
    return True


def tried(mutant: Mutant, items: Sequence[Any], say: Callable[[str], None]) -> bool:
    """Whether all pass with the mutant in place; says which one failed, or that the running process cannot take the mutant."""
    try:
        is_in_place = put_in_place(mutant)
    except Exception:  # a fresh import shows whether the change is to blame
        is_in_place = False
    if not is_in_place:
        say(NOT_IN_PLACE)
    return is_in_place and run_until_failure(items, say)


def in_fork(judge: Callable[[Callable[[str], None]], bool]) -> str:
    """ "" where `judge` is true in a child process; else what it said last, or "crash"."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        verdict = False
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(null, stream)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
            verdict = judge(lambda word: void(os.write(writer, word.encode())))
        finally:
            os._exit(0 if verdict else 1)
    os.close(writer)
    said = b""
    deadline = time.monotonic() + WALL_LIMIT
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(reader, 65536)
        if not piece:
            break
        said += piece
    else:
        os.kill(child, 9)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return "" if status == 0 else said.decode() or "crash"


def void(_: Any) -> None:
    """Nothing."""


def put_in_place(mutant: Mutant) -> bool:
    """Make the running process compute as the mutant says. False if that takes a fresh import."""
    if mutant.function:
        return _put_into_functions(mutant)
    return not mutant.in_class and mutant.file.split("/")[1] in FAMILIES and _run_again(mutant)


def _put_into_functions(mutant: Mutant) -> bool:
    path = str(ROOT / mutant.file)
    changed = {code.co_qualname: code for code in code_objects(compile(mutant.source, path, "exec", dont_inherit=True))}
    replaced = False
    for function in _functions:
        if function.__code__.co_filename != path:
            continue
        code = changed.get(function.__code__.co_qualname)
        if code is not None and code.co_freevars == function.__code__.co_freevars and differs(code, function.__code__):
            function.__code__ = code
            replaced = True
    return replaced


def _run_again(mutant: Mutant) -> bool:
    """Run a family's module with the change: its losses are registered anew, its functions and numbers replaced."""
    from lossbook import describe_loss, list_losses, unregister_loss

    name = "lossbook." + mutant.file.removesuffix(".py").replace("/", ".")
    module = sys.modules[name]
    for loss in list_losses():
        if describe_loss(loss).defined_in.startswith(f"{name}."):
            unregister_loss(loss)
    own = {key: module.__dict__[key] for key in ("__name__", "__package__", "__file__", "__spec__", "__loader__")}
    exec(compile(mutant.source, str(ROOT / mutant.file), "exec", dont_inherit=True), own)
    for key, value in own.items():
        old = module.__dict__.get(key)
        if isinstance(value, FunctionType) and isinstance(old, FunctionType) and old.__module__ == name:
            old.__code__, old.__defaults__, old.__kwdefaults__ = (
                value.__code__,
                value.__defaults__,
                value.__kwdefaults__,
            )
        elif not key.startswith("__") and isinstance(value, int | float | tuple | dict | frozenset) and value != old:
            for other in [one for one in sys.modules.values() if getattr(one, "__name__", "").startswith("lossbook")]:
                if key in vars(other) and vars(other)[key] is old:
                    setattr(other, key, value)
    return True


#: The pipe to a worker's nursery.
_to_nursery: Any = None
#: All functions in memory, collected once before the first fork.
_functions: list[FunctionType] = []


def code_objects(code: CodeType) -> Iterator[CodeType]:
    """A code object and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def differs(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects differ apart from their position in the file."""
    if (one.co_code, one.co_names) != (other.co_code, other.co_names) or len(one.co_consts) != len(other.co_consts):
        return True
    pairs = zip(one.co_consts, other.co_consts, strict=True)
    return any(
        differs(a, b)
        if isinstance(a, CodeType) and isinstance(b, CodeType)
        else (type(a), repr(a)) != (type(b), repr(b))
        for a, b in pairs
    )


def start_nursery() -> None:
    """Start the process that imports lossbook anew for a mutant."""
    global _to_nursery
    _to_nursery, orders = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=nursery, args=(orders,), daemon=True).start()


def runs_anew(mutant: Mutant, chosen: Sequence[str]) -> tuple[bool, str]:
    """Whether some test fails in a process that imports lossbook with the mutant."""
    _to_nursery.send((mutant.file, mutant.source, list(chosen)))
    noticed = _to_nursery.recv()
    return noticed, "a fresh import" if noticed else ""


def nursery(orders: Any) -> None:
    """A process with torch and pytest but without lossbook, whose children run tests on mutants."""
    import hypothesis.strategies
    import torch

    assert hypothesis
    assert torch
    gc.freeze()
    while True:
        file, source, chosen = orders.recv()
        orders.send(in_fork(lambda say, order=(file, source, chosen): run_one(*order) == 0) != "")


def run_one(file: str, source: str, chosen: Sequence[str]) -> int:
    """pytest's exit code for some tests with one module's source replaced."""
    import pytest

    replace_source(ROOT / file, source)
    files = dict.fromkeys(nodeid.partition("::")[0] for nodeid in chosen)
    return int(pytest.main([*OPTIONS, "-x", *files], plugins=[Only(chosen)]))


class Only:
    """A pytest plug-in that keeps only these tests, in this order."""

    def __init__(self, chosen: Sequence[str]) -> None:
        self.order = {nodeid: i for i, nodeid in enumerate(chosen)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Drop all others."""
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


def replace_source(path: Path, source: str) -> None:
    """Make later imports of the module at `path` run `source` instead of the file."""
    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        if Path(self.get_filename(fullname)).resolve() == path:
            return compile(source, str(path), "exec", dont_inherit=True)
        return original(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
