"""`train sft` and `train dpo` on two workers are the runs of one process, and go on by themselves where a worker is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import dpo, sft
from lossbook.cookbook.dpo import DPOConfig
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.sft import SFTConfig

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

#: Numbers that say how long something took, or how a step was cut, and so depend on how many workers there are.
OF_THE_RUN = ("tokens_per_second", "micro_batches", "forward_passes")
THINGS = ("rose", "sky", "grass", "snow", "coal", "fog", "a wide and empty sea", "sand")


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def conversation(thing: str) -> dict[str, Any]:
    return {"messages": [turn("user", "What is it?"), turn("assistant", thing)]}


def preference(thing: str) -> dict[str, Any]:
    sides = {"chosen": f"yes {thing}", "rejected": f"no {thing}"}
    return {"prompt": [turn("user", f"Is it {thing}?")]} | {
        side: [turn("assistant", text)] for side, text in sides.items()
    }


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(conversation(thing)) + "\n" for thing in THINGS))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(preference(thing)) + "\n" for thing in THINGS))
    return path


def settings(data: Path, out: str, **changes: Any) -> dict[str, Any]:
    common = {"model": "tiny", "data": data, "eval_data": data, "out": data.with_name(out), "device": "cpu"}
    return {**common, "steps": 4, "batch_size": 4, "learning_rate": 1e-2, "save_every": 2, **changes}


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in OF_THE_RUN} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """Numbers within a thousandth: sums are taken in another order."""
    assert len(metrics(one)) == len(metrics(other)) > 4
    for left, right in zip(metrics(one), metrics(other), strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-4), key


def test_sft_on_two_workers_is_the_run_of_one_process(rows: Path) -> None:
    here, there = (SFTConfig.model_validate(settings(rows, out, all_weights=True)) for out in ("here", "there"))
    sft.main(here)
    sft.main(there.model_copy(update={"workers": 2}))
    assert_same_run(here.out, there.out)
    written = sorted(
        path.relative_to(here.out) for path in here.out.rglob("*.safetensors") if "checkpoints" not in path.parts
    )
    assert written
    assert written == sorted(
        path.relative_to(there.out) for path in there.out.rglob("*.safetensors") if "checkpoints" not in path.parts
    )


def test_sft_on_two_workers_that_share_each_matrix_is_the_run_of_one_process(rows: Path) -> None:
    here, there = (SFTConfig.model_validate(settings(rows, out, all_weights=True)) for out in ("alone", "shared"))
    sft.main(here)
    sft.main(there.model_copy(update={"workers": 2, "tensor_parallel": 2}))
    assert_same_run(here.out, there.out)


def test_dpo_on_two_workers_is_the_run_of_one_process(pairs: Path) -> None:
    here, there = (DPOConfig.model_validate(settings(pairs, out, rank=4)) for out in ("here", "there"))
    dpo.main(here)
    dpo.main(there.model_copy(update={"workers": 2}))
    assert_same_run(here.out, there.out)


def test_sft_goes_on_by_itself_to_the_same_end_where_a_worker_is_killed(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss kills its worker once, at the third step: a file says that it has been."""
    workers = Path(__file__).parents[1] / "trainer" / "workers"
    monkeypatch.syspath_prepend(str(workers))
    whole = SFTConfig.model_validate(settings(rows, "whole", loss="deadly:deadly", workers=2))
    killed = SFTConfig.model_validate(settings(rows, "killed", loss="deadly:deadly_once", workers=2, restarts=1))
    expected = sft.main(whole)
    monkeypatch.setenv("LOSSBOOK_TEST_DEATH", str(rows.with_name("death")))
    got = sft.main(killed)
    assert rows.with_name("death").read_text() == "killed"
    assert "restarting; 0 restarts are left" in capsys.readouterr().err
    timed = {key for key in expected if key in OF_THE_RUN}
    assert {key: got[key] for key in expected if key not in timed} == {
        key: expected[key] for key in expected if key not in timed
    }
