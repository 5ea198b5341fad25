"""Runs that are killed, or whose disk fails, at every operation: what is there is whole, and going on loses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SWEEP = Path(__file__).with_name("sweep.py")
ROWS = [("red", "rose"), ("blue", "sky"), ("green", "grass"), ("white", "snow"), ("black", "coal")]
SFT = [
    *("train", "sft", "--data", "train.jsonl", "--eval-data", "train.jsonl", "--steps", "4", "--batch-size", "2"),
    *("--rank", "2", "--save-every", "2", "--eval-every", "2", "--sample-prompts", "red", "--sample-tokens", "4"),
]
DPO = [
    *("train", "dpo", "--data", "pairs.jsonl", "--steps", "2", "--batch-size", "2", "--rank", "2", "--save-every", "1"),
]
RL = [
    *("train", "rl", "--task", "spell_backward", "--task-config", "min_word_len", "3", "max_word_len", "3"),
    *(
        "--task-size",
        "16",
        "--held-out",
        "2",
        "--all-weights",
        "--max-tokens",
        "4",
        "--steps",
        "2",
        "--save-every",
        "1",
    ),
    *("--off-policy-steps", "1", "--device", "cpu"),
]
#: One place of each kind that the run of `SFT` writes to.
KINDS = [
    *("rename .*config.json", "write .*metrics.jsonl", "write .*MANIFEST", "rename .*step-000002$"),
    *("rename .*kept.*4.json", "rename .*adapter$"),
]
#: Operations that may fail without harm, so that the run goes on: `references` is a cache, for one.
OPTIONAL = (
    "sync whole",
    "remove ",
    "curve.png",
    "/references",
)


@pytest.fixture
def swept(tmp_path: Path) -> Any:
    """swept(flags, actions=[...], damage=[...], only=[...]): what came of each case, and the operations of the run."""
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in ROWS]
    pairs = [{"prompt": prompt, "chosen": answer, "rejected": "mud"} for prompt, answer in ROWS]
    for name, lines in (("train.jsonl", rows), ("pairs.jsonl", pairs)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in lines))

    def sweep(flags: list[str], **order: Any) -> tuple[list[dict[str, Any]], list[str]]:
        done = subprocess.run(
            [sys.executable, str(SWEEP)],
            input=json.dumps({"flags": flags, **order}),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            timeout=1100,
        )
        assert done.returncode == 0, done.stderr
        first, *cases = map(json.loads, done.stdout.splitlines())
        return cases, first["operations"]

    return sweep


def problems(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each case in which something was lost, half, applied twice, or said in more than one line."""
    for one in cases:
        operation = re.sub(r" \S*/whole", " whole", one["operation"])
        where = f"{one['action']} at operation {one['number']} ({operation})"
        if one["action"] in ("kill", "torn"):
            if one["code"] != -9:
                yield f"{where}: it was not killed: exit {one['code']} {one['error']}"
        elif one["code"] == 1:
            last = one["error"].splitlines()[-1]
            if "Traceback" in one["error"] or "Error: " not in last:
                yield f"{where}: the error is not one line: {one['error']}"
        elif one["code"] != 0 or not any(word in operation for word in OPTIONAL):
            yield f"{where}: exit {one['code']}: {one['error']}"
        if one["resumed"] != 0 or not one["equal"]:
            yield f"{where}: going on gives exit {one['resumed']}, other {one['differs']}: {one['resume_error']}"
        if one["checkpoints"][1] or one["hidden"] or one["leftovers"]:
            yield f"{where}: half of something is left: {one['checkpoints']} {one['hidden']} {one['leftovers']}"
        if one["steps_lost"] or one["steps_twice"]:
            yield f"{where}: {one['steps_lost']} steps lost, {one['steps_twice']} applied twice"


def report(what: str, cases: list[dict[str, Any]], done: list[str]) -> None:
    """Print the counts; `pytest -s` shows them."""
    counts = Counter(one["action"] for one in cases)
    verified = sum(one["checkpoints"][0] for one in cases)
    lost, twice = (sum(one[key] for one in cases) for key in ("steps_lost", "steps_twice"))
    print(
        f"{what}: {len(done)} operations; {dict(counts)}; {verified} checkpoints verified after them; "
        f"steps lost {lost}, applied twice {twice}"
    )


@pytest.mark.slow
def test_a_run_that_is_killed_or_has_no_space_at_one_place_of_each_kind_goes_on_to_the_same_numbers(swept: Any) -> None:
    cases, done = swept(SFT, actions=["kill", "enospc"], only=KINDS)
    assert len(cases) == 2 * len(KINDS)
    assert not list(problems(cases))
    report("train sft", cases, done)


@pytest.mark.slow
@pytest.mark.parametrize("actions", [("kill", "enospc"), ("torn", "short")], ids="-".join)
def test_at_every_operation_of_a_run_nothing_is_lost_half_or_applied_twice(
    actions: tuple[str, str], swept: Any
) -> None:
    every = "LOSSBOOK_EVERY_FAILPOINT" in os.environ  # both actions at each operation: twice the time
    cases, done = swept(SFT, actions=actions, turns=not every)
    count = sum(line.startswith("write") for line in done) if "torn" in actions else len(done)
    assert len(cases) == (2 if every else 1) * count
    assert len(cases) > 25
    assert not list(problems(cases))
    report("train sft", cases, done)


#: What other recipes write beside what `SFT` does: reference logprobs, rollouts sampled ahead, a whole model.
OTHERS = {
    "dpo": (
        DPO,
        ["make .*references", "write .*references.*outputs", "write .*references.*MANIFEST", "rename .*references/"],
    ),
    "rl": (RL, ["write .*kept/.step-000001", "rename .*kept/step-000002", "write .*model.tmp", "rename .*/model$"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_what_other_recipes_write_is_whole_or_not_there_too(name: str, swept: Any) -> None:
    flags, only = OTHERS[name]
    cases, done = swept(flags, actions=["kill", "enospc", "torn"], only=only)
    assert len(cases) >= 2 * len(only)
    assert not list(problems(cases))
    report(f"train {name}", cases, done)


# --- damaged files ----------------------------------------------------------------------------------------------------


def damage_problems(cases: list[dict[str, Any]]) -> Iterator[str]:
    """A sentence for each damaged file that is neither refused by name, nor passed over in words, nor without effect."""
    for one in cases:
        name = Path(one["file"]).name
        step = next((part for part in Path(one["file"]).parts if part.startswith("step-")), name)
        where = f"{one['file']}, {one['how']}"
        if one["code"] == 1:
            last = one["error"].splitlines()[-1]
            if "Traceback" in one["error"] or "Error: " not in last or not (name in last or step in last):
                yield f"{where}: not refused in one line that names it: {one['error']}"
        elif one["code"] != 0:
            yield f"{where}: exit {one['code']}: {one['error']}"
        elif not one["equal"]:
            yield f"{where}: goes on to other {one['differs']}"
        elif "checkpoints/step-000004" in one["file"] and "skipped damaged checkpoints" not in one["error"]:
            yield f"{where}: passed over without a word"


@pytest.mark.slow
def test_a_damaged_file_of_a_run_is_refused_by_name_or_passed_over_in_words(swept: Any) -> None:
    cases, _ = swept(SFT, damage=["middle bit"], only=["4/weights", "4/MANIFEST", "metrics", "config.json", "kept/.*4"])
    assert len(cases) == 5
    assert not list(damage_problems(cases))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags"), [("sft", SFT), ("rl", RL)], ids=["sft", "rl"])
def test_every_damage_to_every_file_of_a_run_is_refused_by_name_or_passed_over_in_words(
    name: str, flags: list[str], swept: Any
) -> None:
    ways = ["half", "empty", "first bit", "middle bit", "last bit"] if name == "sft" else ["half", "middle bit"]
    cases, _ = swept(flags, damage=ways)
    assert len(cases) > 10 * len(ways)
    assert not list(damage_problems(cases))
    outcomes = Counter("refused" if one["code"] else "equal" for one in cases)
    print(f"train {name}, damaged files: {len(cases)}, of which {dict(outcomes)}")
