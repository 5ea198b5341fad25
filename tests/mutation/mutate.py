"""Mutation testing of `losses/`: change one operator, number or comparison at a time, and see whether a test fails.

    python tests/mutation/mutate.py                       # every module of losses/ that computes; hours of CPU
    python tests/mutation/mutate.py losses/policy/*.py    # some modules
    python tests/mutation/mutate.py --sample 300          # a random sample, always the same

cosmic-ray writes the mutants. Its own runner would import torch and collect the tests for every mutant, which takes longer
than most tests; here that is done once, and each mutant runs in a fork. No file is changed. `--report` gets the table of
surviving mutants.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: Replacements of an operator that are plausible mistakes; others are at least as easy to notice.
BINARY = {"Add": {"Sub"}, "Sub": {"Add"}, "Mul": {"Div"}, "Div": {"Mul"}, "Pow": {"Mul"}, "FloorDiv": {"Mul"}}
BINARY |= {"Mod": {"Add"}, "BitAnd": {"BitOr"}, "BitOr": {"BitAnd"}, "BitXor": {"BitAnd"}}
COMPARISON = {"Lt": {"LtE", "GtE"}, "LtE": {"Lt", "Gt"}, "Gt": {"GtE", "LtE"}, "GtE": {"Gt", "Lt"}, "Eq": {"NotEq"}}
COMPARISON |= {"NotEq": {"Eq"}, "Is": {"IsNot"}, "IsNot": {"Is"}, "In": {"NotIn"}, "NotIn": {"In"}}
#: Limit in seconds for one mutant, which may loop for ever.
TIMEOUT = 300
KILLED, SURVIVED = "killed", "survived"
IDENTITY = ("module", "operator", "before", "after")
#: Modules whose functions run while lossbook is imported.
IMPORT_TIME = {"spec.py", "settings.py", "registry.py", "family.py"}
#: Tests that are parametrized over all losses, and the losses they run for when the core is changed.
SHARED = ("test_conformance", "test_numpy_twins", "test_reference")
REPRESENTATIVES = ("cross_entropy", "gspo", "dpo", "kto", "info_nce", "topk_forward_kl")
#: Tests of the modules that every loss uses.
CORE = (
    "loss",
    "bound",
    "hosted",
    "mixture",
    "pack",
    "seqs",
    "reductions",
    "settings",
    "spec",
    "registry",
    "stats",
    "ratios",
)
#: Folders of loss functions; the folders of their tests have the same names.
FAMILIES = ("supervised", "policy", "preference", "distillation", "embedding", "value")
#: The filter is needed because the nursery imports hypothesis before pytest can rewrite its assertions.
QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
#: Modules that no loss uses, and the tests that cover them besides their own.
BESIDE = {
    "from_rewards": (),
    "from_values": (),
    "rollout_correction": (),
    "off_policy_mask": ("rollout_correction",),
    "wrapper": ("rollout_correction",),
    "presets": (),
    "divergences": ("distillation",),
}
BESIDE |= {"logarithms": ("supervised", "preference"), "axes": ("cards",)}
BESIDE |= {name: ("tinker_trace", "trace") for name in ("trace", "single_datum", "recorder")}
#: Families whose tests cover the errors of a core module.
ALSO = {"checks": ("distillation", "unpaired"), "settings": ("distillation",)}
TESTS = ("tests/losses", "tests/peers/test_tinker_trace.py")
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *QUIET)


@dataclass(frozen=True)
class Mutant:
    """One change, and the module's whole source with it."""

    module: str
    line: int
    operator: str
    before: str
    after: str
    source: str

    @property
    def identity(self) -> tuple[str, ...]:
        """The change without its line number, which may differ between runs."""
        return tuple(getattr(self, name) for name in IDENTITY)


def is_plausible(operator: str) -> bool:
    """Whether an operator of cosmic-ray is run."""
    match = re.fullmatch(r"core/Replace(Binary|Comparison|Unary)Operator_([A-Za-z]+)_(\w+)", operator)
    if match is None:
        return True
    kind, old, new = match.groups()
    if kind == "Unary":
        return old == "Delete"
    return new in (BINARY if kind == "Binary" else COMPARISON).get(old, set())


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module, except changes of code that is never evaluated, such as an annotation."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.mutating import mutate_code

    source = path.read_text(encoding="utf-8")
    tree = get_ast_from_path(path)
    for name in sorted(filter(is_plausible, cosmic_ray.plugins.operator_names())):
        kind = cosmic_ray.plugins.get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        places = [(node, place) for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
        for occurrence, (node, (start, _)) in enumerate(places):
            changed = None if is_no_code(node) else mutate_code(source, operator, occurrence)
            if changed is None or changed == source:
                continue
            number, before, after = first_difference(source, changed, start[0])
            yield Mutant(str(path.relative_to(ROOT)), number, name.removeprefix("core/"), before, after, changed)


def is_no_code(node: Any) -> bool:
    """Whether a syntax node is part of an annotation, or the star before keyword-only arguments."""
    child, parent = node, node.parent
    if parent is not None and parent.type == "parameters":
        return True
    while parent is not None:
        if parent.type in ("annassign", "tfpdef") and child is not parent.children[0]:
            is_default = parent.type == "annassign" and len(parent.children) > 3 and child is parent.children[3]
            return not is_default
        if parent.type == "funcdef" and child is parent.annotation:
            return True
        if parent.type == "param" and child is parent.annotation:
            return True
        child, parent = parent, parent.parent
    return False


def first_difference(before: str, after: str, near: int) -> tuple[int, str, str]:
    """(line number, old line, new line) of the change."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    for number, (old, new) in enumerate(pairs, start=1):
        if old != new:
            return number, old.strip(), new.strip()
    return near, "", ""


class MutationLoop:
    """A pytest plug-in that runs the collected tests once per mutant, each time in a fork.

    Tests are collected once. A fork puts the mutant's code into the loaded functions. For a change outside of functions, or
    in one that runs while lossbook is imported, a slower child imports everything again.
    """

    def __init__(self, mutants: Sequence[Mutant], report: Callable[[int, bool], None]) -> None:
        self.mutants = mutants
        self.report = report

    def pytest_runtestloop(self, session: Any) -> bool:
        """Judge every mutant."""
        # Tests that fail without a mutation would kill every mutant: check those of one module.
        sound = relevant(self.mutants[0].module, session.items) if self.mutants else []
        if not in_fork(lambda: runs_clean(sound), timeout=3600):
            raise RuntimeError("the tests fail without any mutation")
        _functions.extend(one for one in gc.get_objects() if type(one) is FunctionType)
        gc.collect()
        gc.freeze()  # without it, garbage collection in each fork copies every page
        for i, mutant in enumerate(self.mutants):
            self.report(i, self.is_noticed(mutant, session.items))
        return True

    def is_noticed(self, mutant: Mutant, items: Sequence[Any]) -> bool:
        """Whether some test fails with the mutant in place."""
        chosen = relevant(mutant.module, items)
        if not in_fork(lambda: put_in_place(mutant) and runs_clean(chosen)):
            return in_fork(lambda: put_in_place(mutant)) or not runs_anew(mutant, chosen)
        return Path(mutant.module).name in IMPORT_TIME and not runs_anew(mutant, chosen)


def relevant(module: str, items: Sequence[Any]) -> list[Any]:
    """The tests that may notice a change of a module: its own, and those over all losses that concern it."""
    name, is_family = Path(module).stem, Path(module).parts[1] in FAMILIES
    files = {name, *BESIDE.get(name, ())}
    ids: Sequence[str] = () if name in BESIDE else REPRESENTATIVES
    if is_family:
        files |= {Path(module).parts[1], "golden", "reference"}
        ids = re.findall(r'@register_loss\(\s*"([^"]+)"', (ROOT / module).read_text(encoding="utf-8"))
    elif name not in BESIDE:
        files |= {*CORE, *ALSO.get(name, ()), "golden", "reference"}
    own = re.compile(rf"/({'|'.join(files)})/test_|/test_({'|'.join(files)})\w*\.py")
    about = re.compile("|".join(rf"(?<![a-z]){re.escape(one)}(?![a-z])" for one in ids) or "(?!)")
    shared = [item for item in items if any(one in item.nodeid for one in SHARED) and about.search(item.nodeid)]
    rest = [item for item in items if own.search(item.nodeid) and not any(one in item.nodeid for one in SHARED)]
    return sorted([*rest, *shared], key=lambda item: (f"test_{name}" not in item.nodeid, _slowness(item)))


def _slowness(item: Any) -> int:
    """Sort order: golden numbers, comparisons with NumPy, the rest, and the kit's many examples last."""
    order = ("test_golden", "test_numpy_twins", "test_reference", "")
    last = ("test_conformance", "test_kit", "test_laws", "test_card")
    if any(name in item.nodeid for name in last):
        return len(order)
    return next(i for i, name in enumerate(order) if name in item.nodeid)


def in_fork(judge: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
    """The result of `judge` in a child process; False if it crashes or takes longer than `timeout` seconds."""
    child = os.fork()
    if child == 0:
        verdict = False
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (1, 2):
                os.dup2(null, stream)
            verdict = judge()
        finally:
            os._exit(0 if verdict else 1)
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def runs_clean(items: Sequence[Any]) -> bool:
    """Run collected tests until one fails."""
    from _pytest.runner import runtestprotocol

    for i, item in enumerate(items):
        following = items[i + 1] if i + 1 < len(items) else None
        if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
            return False
    return True


def put_in_place(mutant: Mutant) -> bool:
    """Give the functions of a loaded module the mutant's code. False if no loaded function changes."""
    path = str(ROOT / mutant.module)
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


def runs_anew(mutant: Mutant, items: Sequence[Any]) -> bool:
    """Whether tests pass in a process that imports lossbook with the mutant."""
    _to_nursery.send((mutant.module, mutant.source, [item.nodeid for item in items]))
    return _to_nursery.recv()


def nursery(orders: Any) -> None:
    """A process with torch and pytest but without lossbook, whose children run tests on mutants."""
    import hypothesis.strategies
    import torch

    assert hypothesis
    assert torch
    gc.freeze()
    while True:
        module, source, chosen = orders.recv()
        orders.send(in_fork(lambda order=(module, source, chosen): run_one(*order) == 0))


def run_one(module: str, source: str, chosen: Sequence[str]) -> int:
    """pytest's exit code for some tests with one module's source replaced."""
    import pytest

    replace_source(ROOT / module, source)
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


def modules() -> list[Path]:
    """Every module of losses/ that computes, without the conformance kit and the cards."""
    files = sorted((ROOT / "losses").rglob("*.py"))
    return [p for p in files if not {"testing", "cards"}.intersection(p.parts) and p.name != "__init__.py"]


def table(mutants: Sequence[Mutant], verdicts: dict[int, bool]) -> str:
    """The report in Markdown."""
    by_module: dict[str, Counter[bool]] = {}
    for i, noticed in verdicts.items():
        by_module.setdefault(mutants[i].module, Counter())[noticed] += 1
    survivors = [mutants[i] for i in sorted(verdicts) if not verdicts[i]]
    share = 100 * len(survivors) / max(len(verdicts), 1)
    lines = [
        "<!-- Made by tests/mutation/mutate.py (`make mutation`). -->",
        "",
        "# Mutation testing",
        "",
        "One operator, number or comparison of `losses/` is changed at a time, to see whether a test fails. The conformance kit",
        "and the cards are left out.",
        "",
        f"{len(verdicts)} mutants, {len(survivors)} survived ({share:.1f} %).",
        "",
        "| module | mutants | survived |",
        "|---|---|---|",
        *(f"| {name} | {sum(c.values())} | {c[False]} |" for name, c in sorted(by_module.items())),
        "",
        "| survived | change | was | became |",
        "|---|---|---|---|",
    ]
    for m in survivors:
        before, after = (text.replace("|", "\\|") for text in (m.before, m.after))
        lines.append(f"| {m.module}:{m.line} | {m.operator} | `{before}` | `{after}` |")
    return "\n".join(lines) + "\n"


def judge(mutants: Sequence[Mutant], share: int, jobs: int, results: Any) -> None:
    """Judge every `jobs`-th mutant, and put (index, noticed) into a queue."""
    import pytest

    global _to_nursery
    _to_nursery, orders = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=nursery, args=(orders,), daemon=True).start()
    own = list(range(share, len(mutants), jobs))
    loop = MutationLoop([mutants[i] for i in own], lambda k, noticed: results.put((own[k], noticed)))
    code = pytest.main([*OPTIONS, *TESTS, "-m", "not slow"], plugins=[loop])
    results.put((-1, int(code) in (0, 5)))


def verdicts_of(mutants: Sequence[Mutant], jobs: int) -> Iterator[tuple[int, bool]]:
    """(index, noticed) of every mutant, in the order they finish."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=judge, args=(mutants, share, jobs, results)) for share in range(jobs)]
    for worker in workers:
        worker.start()
    finished = 0
    while finished < jobs:
        index, noticed = results.get()
        if index >= 0:
            yield index, noticed
        elif noticed:
            finished += 1
        else:
            sys.exit("a worker stopped early: do the tests pass without any mutation?")


def earlier_verdicts(log: Path) -> dict[tuple[str, ...], bool]:
    """The verdicts of an earlier run, by change."""
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return {tuple(line[key] for key in IDENTITY): line["verdict"] == KILLED for line in lines}


def main() -> None:
    """Run the command line above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", type=Path)
    parser.add_argument("--sample", type=int, help="how many mutants, drawn with a fixed seed")
    parser.add_argument("--again", type=Path, help="the log of an earlier run, whose survivors are judged once more")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, default=ROOT / ".cache" / "mutation.jsonl")
    parser.add_argument("--report", type=Path, default=ROOT / "docs" / "mutation.md")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"CI": "true", "OMP_NUM_THREADS": "1"}  # CI: the same examples for every mutant
    mutants = [m for path in [p.resolve() for p in arguments.modules] or modules() for m in mutants_of(path)]
    if arguments.sample:
        mutants = random.Random(0).sample(mutants, min(arguments.sample, len(mutants)))
    known = earlier_verdicts(arguments.again) if arguments.again else {}
    if arguments.again:
        mutants = [m for m in mutants if m.identity in known]
    verdicts = {i: True for i, m in enumerate(mutants) if known.get(m.identity)}
    waiting = [i for i in range(len(mutants)) if i not in verdicts]
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with arguments.log.open("w", encoding="utf-8") as log:
        for done, (k, noticed) in enumerate(verdicts_of([mutants[i] for i in waiting], arguments.jobs), start=1):
            mutant = mutants[waiting[k]]
            verdicts[waiting[k]] = noticed
            verdict = KILLED if noticed else SURVIVED
            print(json.dumps({**asdict(mutant), "source": None, "verdict": verdict}), file=log, flush=True)
            pace, survived = (time.monotonic() - began) / done, sum(not v for v in verdicts.values())
            print(f"\r{done}/{len(waiting)} survived {survived} ({pace:.2f} s each)", end="", file=sys.stderr)
    arguments.report.write_text(table(mutants, verdicts), encoding="utf-8")
    print(f"\n{arguments.report}: {sum(not v for v in verdicts.values())} of {len(mutants)} survived")


if __name__ == "__main__":
    main()
