"""The door of this package keeps every promise; a door that breaks one is told so, by that promise and related ones alone."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path

import pytest

from lossbook.datums.errors import ConfigError
from lossbook.integrations import tinker
from lossbook.integrations.conform import PROMISES, ConformSettings, Connection, check_server

from .doors import BROKEN, OneTarget, door

#: What is checked in the fast suite, one promise of most kinds.
#: Broken doors that are held to all promises, and those that any other is held to beside the ones it may break.
WHOLE = ("normalises by tokens", "has samplers that follow training")
UNRELATED = ["loss.sum", "gradient.batching", "sample.stop", "error.shape"]
FEW = ["loss.sum", "gradient.batching", "sample.stop", "error.shape"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_our_door_keeps_every_promise(own_door: Connection, seed: int) -> None:
    report = check_server(own_door, ConformSettings(seed=seed))
    assert not report.failed, report.table()
    for one in report.findings:
        assert one.verdict == ("does not apply" if PROMISES[one.id].raw else "holds"), one


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_door_that_breaks_a_promise_is_told_so_by_that_promise_and_related_ones(
    name: str, small: ConformSettings
) -> None:
    service, must, may = BROKEN[name]
    only = ["*"] if name in WHOLE else sorted({*must, *(one for one in may if "*" not in one), *UNRELATED})
    report = check_server(Connection(name, tinker, service), small, only)
    failed = {one.id for one in report.failed}
    assert must <= failed, report.table()
    unrelated = {one for one in failed - must if not any(fnmatch.fnmatch(one, pattern) for pattern in may)}
    assert not unrelated, report.table()


def test_a_few_promises_tell_a_broken_door_from_ours(own_door: Connection, small: ConformSettings) -> None:
    service, must, _ = BROKEN["normalises by tokens"]
    heard = []
    assert not check_server(own_door, small, FEW, heard.append).failed
    assert [one.id for one in heard] == FEW
    report = check_server(Connection("a door", tinker, service), small, FEW)
    assert {one.id for one in report.failed} == must & set(FEW), report.table()
    assert report.exit_code == 1


def test_what_a_server_refuses_clearly_is_not_offered(small: ConformSettings) -> None:
    report = check_server(Connection("one target", tinker, door(OneTarget)), small, ["*.multi_target"])
    assert {one.verdict for one in report.findings} == {"not offered"}
    assert report.exit_code == 0
    assert "one per position" in report.findings[0].figure


def test_a_server_that_trains_nothing_is_an_error_that_quotes_it(own_door: Connection) -> None:
    with pytest.raises(ConnectionError, match=r"could not be trained.*no-such-model"):
        check_server(own_door, ConformSettings(model="./no-such-model"))


def test_a_pattern_without_a_promise_names_those_there_are(own_door: Connection) -> None:
    with pytest.raises(ConfigError, match=r"'los\.sum'.*loss\.sum"):
        check_server(own_door, only=["los.sum"])


def test_the_report_says_of_what_is_broken_what_was_promised_and_what_to_look_at(small: ConformSettings) -> None:
    service, _, _ = BROKEN["ignores stop tokens"]
    report = check_server(Connection("a door", tinker, service), small, ["sample.stop", "sample.max_tokens"])
    text = report.table(100)
    assert "fails           sample.stop" in text
    assert "A stop token ends a sequence" in " ".join(text.split())
    assert "Look at: stop ids" in " ".join(text.split())
    assert text.endswith("1 holds, 1 fails")
    read = json.loads(report.as_json())
    assert read["summary"]["fails"] == 1
    assert {one["id"]: one["verdict"] for one in read["findings"]} == {
        "sample.max_tokens": "holds",
        "sample.stop": "fails",
    }
    assert read["settings"]["seed"] == 0


def test_every_promise_is_one_sentence_with_a_hint() -> None:
    for one in PROMISES.values():
        assert one.sentence.endswith("."), one.id
        assert one.look_at, one.id


def test_the_page_has_every_promise() -> None:
    page = (Path(__file__).parents[3] / "docs/serve/conform.md").read_text(encoding="utf-8")
    for one in PROMISES.values():
        assert f"| `{one.id}` | {one.sentence} |" in page, f"{one.id}: run docs/serve/promises_table.py"
