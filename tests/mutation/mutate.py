"""Mutation testing of `losses/`: change one operator, number or comparison at a time, and see whether a test notices.

    python tests/mutation/mutate.py                       # all of losses/ that decides a number; hours of CPU
    python tests/mutation/mutate.py losses/policy/*.py    # some modules
    python tests/mutation/mutate.py --sample 300          # a random sample, the same one every time

cosmic-ray finds the places and writes the mutants. They are run here rather than by its own runner, because importing torch
and collecting the tests takes longer than most tests: here it is done once, and each mutant is judged in a fork. Nothing on
disk is changed. The table of what survived goes to `--report`.
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
#: Of the dozens of replacements of an operator, those that are a plausible slip; any other is killed at least as easily.
BINARY = {"Add": {"Sub"}, "Sub": {"Add"}, "Mul": {"Div"}, "Div": {"Mul"}, "Pow": {"Mul"}, "FloorDiv": {"Mul"}}
BINARY |= {"Mod": {"Add"}, "BitAnd": {"BitOr"}, "BitOr": {"BitAnd"}, "BitXor": {"BitAnd"}}
COMPARISON = {"Lt": {"LtE", "GtE"}, "LtE": {"Lt", "Gt"}, "Gt": {"GtE", "LtE"}, "GtE": {"Gt", "Lt"}, "Eq": {"NotEq"}}
COMPARISON |= {"NotEq": {"Eq"}, "Is": {"IsNot"}, "IsNot": {"Is"}, "In": {"NotIn"}, "NotIn": {"In"}}
#: Seconds that a mutant may take: an endless loop is noticed too.
TIMEOUT = 300
KILLED, SURVIVED = "killed", "survived"
IDENTITY = ("module", "operator", "before", "after")
#: Modules whose functions run while lossbook is imported.
IMPORT_TIME = {"spec.py", "settings.py", "registry.py", "family.py"}
#: Tests that are parametrized over all losses, and the losses that speak for all in them when the core is changed.
SHARED = ("test_conformance", "test_numpy_twins", "test_reference")
SPOKESMEN = ("cross_entropy", "gspo", "dpo", "kto", "info_nce", "topk_forward_kl")
#: Tests of what all losses go through.
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
#: Folders of loss functions; their tests lie in folders of the same names.
FAMILIES = ("supervised", "policy", "preference", "distillation", "embedding", "value")
#: The filter: in the nursery hypothesis is imported before pytest could rewrite its assertions.
QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
#: Modules that no loss goes through, and the tests that are about them beside their own.
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
#: Families that try a core module's refusals.
ALSO = {"checks": ("distillation", "unpaired"), "settings": ("distillation",)}
TESTS = ("tests/losses", "tests/peers/test_tinker_trace.py")
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", *QUIET)


@dataclass(frozen=True)
class Mutant:
    """One change: what, where, and the module's whole source with it."""

    module: str
    line: int
    operator: str
    before: str
    after: str
    source: str

    @property
    def identity(self) -> tuple[str, ...]:
        """What was changed, wherever it stands by now."""
        return tuple(getattr(self, name) for name in IDENTITY)


def is_plausible(operator: str) -> bool:
    """Whether an operator of cosmic-ray is among those that are run."""
    found = re.fullmatch(r"core/Replace(Binary|Comparison|Unary)Operator_([A-Za-z]+)_(\w+)", operator)
    if found is None:
        return True
    kind, old, new = found.groups()
    if kind == "Unary":
        return old == "Delete"
    return new in (BINARY if kind == "Binary" else COMPARISON).get(old, set())


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module, apart from those that change what is never evaluated, such as an annotation."""
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
    """Whether a syntax node is part of an annotation, or the star behind which arguments are by name only."""
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
    """(line number, old line, new line) of what was changed."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    for number, (old, new) in enumerate(pairs, start=1):
        if old != new:
            return number, old.strip(), new.strip()
    return near, "", ""


class MutationLoop:
    """A pytest plug-in that, in place of running the collected tests once, runs them once a mutant, each in a fork.

    Tests are collected once. A fork puts the mutant's code into the functions that are there already; where the change
    is outside of functions, or in one that runs while lossbook is imported, a slower child imports everything anew.
    """

    def __init__(self, mutants: Sequence[Mutant], report: Callable[[int, bool], None]) -> None:
        self.mutants = mutants
        self.report = report

    def pytest_runtestloop(self, session: Any) -> bool:
        """Judge every mutant."""
        # A suite that fails anyway would kill every mutant; one module's tests show that it does not.
        sound = relevant(self.mutants[0].module, session.items) if self.mutants else []
        if not in_fork(lambda: runs_clean(sound), timeout=3600):
            raise RuntimeError("the tests fail without any mutation")
        _functions.extend(one for one in gc.get_objects() if type(one) is FunctionType)
        gc.collect()
        gc.freeze()  # else a collection in each fork would copy every page
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
    """The tests that may notice a change of a module: its own, and of those over all losses the ones that are about it."""
    name, is_family = Path(module).stem, Path(module).parts[1] in FAMILIES
    files = {name, *BESIDE.get(name, ())}
    ids: Sequence[str] = () if name in BESIDE else SPOKESMEN
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
    """Golden numbers first, then comparisons with NumPy, then the rest, the kit's many examples last."""
    order = ("test_golden", "test_numpy_twins", "test_reference", "")
    last = ("test_conformance", "test_kit", "test_laws", "test_card")
    if any(name in item.nodeid for name in last):
        return len(order)
    return next(i for i, name in enumerate(order) if name in item.nodeid)


def in_fork(judge: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
    """The judgement of a child process; False where it crashes or takes longer than `timeout` seconds."""
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
    """Give the functions of a loaded module the mutant's code. False when nothing that is loaded would change."""
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
#: Every function there is, found once before the first fork.
_functions: list[FunctionType] = []


def code_objects(code: CodeType) -> Iterator[CodeType]:
    """A code object and those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def differs(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects do something else, wherever they stand in the file."""
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
    """Whether tests pass in a process that has not imported lossbook yet, and imports the mutant."""
    _to_nursery.send((mutant.module, mutant.source, [item.nodeid for item in items]))
    return _to_nursery.recv()


def nursery(orders: Any) -> None:
    """A process that has torch and pytest but not lossbook, and has its children run tests on mutants of it."""
    import hypothesis.strategies
    import torch

    assert hypothesis
    assert torch
    gc.freeze()
    while True:
        module, source, chosen = orders.recv()
        orders.send(in_fork(lambda order=(module, source, chosen): run_one(*order) == 0))


def run_one(module: str, source: str, chosen: Sequence[str]) -> int:
    """pytest's verdict on some tests with one module's source replaced."""
    import pytest

    replace_source(ROOT / module, source)
    files = dict.fromkeys(nodeid.partition("::")[0] for nodeid in chosen)
    return int(pytest.main([*OPTIONS, "-x", *files], plugins=[Only(chosen)]))


class Only:
    """A pytest plug-in: these tests, in this order."""

    def __init__(self, chosen: Sequence[str]) -> None:
        self.order = {nodeid: i for i, nodeid in enumerate(chosen)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Drop all others."""
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


def replace_source(path: Path, source: str) -> None:
    """From now on importing the module at `path` runs `source` instead of the file."""
    original = SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        if Path(self.get_filename(fullname)).resolve() == path:
            return compile(source, str(path), "exec", dont_inherit=True)
        return original(self, fullname)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def modules() -> list[Path]:
    """Every module of losses/ that decides a number, so neither the conformance kit nor the cards."""
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
        "One operator, number or comparison of `losses/` changed at a time, and whether a test notices. Without the conformance",
        "kit, whose subject is other people's losses, and without what draws and words the cards.",
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
    """(index, noticed) of every mutant, as they come."""
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
    """What an earlier run found, by what was changed."""
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
            pace, alive = (time.monotonic() - began) / done, sum(not v for v in verdicts.values())
            print(f"\r{done}/{len(waiting)} survived {alive} ({pace:.2f} s each)", end="", file=sys.stderr)
    arguments.report.write_text(table(mutants, verdicts), encoding="utf-8")
    print(f"\n{arguments.report}: {sum(not v for v in verdicts.values())} of {len(mutants)} survived")


if __name__ == "__main__":
    main()
