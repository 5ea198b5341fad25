"""`lossbook data show` and `lossbook data report`, as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook.cli import main
from lossbook.cookbook.inspect.data_page import with_own_logprobs
from lossbook.datums import datum_from_tokens_weights
from lossbook.losses import get_loss
from lossbook.trainer import ServiceClient

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
PAIR = {"prompt": "a", "chosen": "b </style><script>x</script>", "rejected": "c"}
KTO = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
SAMPLED = {
    "tokens": [72, 101, 108, 108, 111],
    "weights": [0, 0, 1, 1, 1],
    "advantages": [0, 0, 1, 1, -1],
    "sampling_logprobs": [0, 0, -5, -5.5, -6],
}


def write(folder: Path, *rows: dict[str, Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def page(folder: Path, *words: str) -> str:
    html = folder / "out.html"
    assert main(["data", "show", *words, "--html", str(html)]) == 0
    return html.read_text(encoding="utf-8")


def labels(html: str) -> list[str]:
    return re.findall(r"<label[^>]*>([^<]*)</label>", html)


def tips(html: str) -> list[str]:
    return re.findall(r'data-tip="([^"]*)"', html)


class TestShow:
    """data show: as text, and as a page."""

    def test_a_page_of_weights_needs_no_loss(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        html = page(tmp_path, str(write(tmp_path, CHAT, PAIR)))
        assert labels(html) == ["weight", "one colour scale for all sequences"]
        assert re.findall(r"<h3>([^<]*)</h3>", html) == [
            "data.jsonl, line 1",
            "data.jsonl, line 2, chosen",
            "data.jsonl, line 2, rejected",
        ]
        assert "<script" not in html
        assert html.count("</style>") == 1
        assert "token 89 “Y”\nweight 1" in tips(html)
        assert capsys.readouterr().out.strip() == str(tmp_path / "out.html")

    def test_a_loss_adds_its_inputs_value_and_gradient_to_the_columns(self, tmp_path: Path) -> None:
        html = page(tmp_path, str(write(tmp_path, SAMPLED)), "--loss", "ppo", "--loss-config", "clip_high", "1.5")
        assert labels(html) == ["weight", "logprob", "sampling_logprob", "advantage", "ratio", "loss", "gradient"]
        assert "clip_high=1.5" in html
        numbers = dict(line.rsplit(" ", 1) for line in tips(html)[4].replace(" nats", "").splitlines()[1:])
        assert (numbers["advantage"], numbers["sampling_logprob"]) == ("-1", "-6")
        assert float(numbers["loss"]) == pytest.approx(max(float(numbers["ratio"]), 0.8), rel=1e-3)
        assert tips(html)[0].splitlines() == ["token 72 “H”"], "nothing predicts the first token"

    def test_a_pair_is_shown_with_its_loss_under_its_own_reference(self, tmp_path: Path) -> None:
        html = page(tmp_path, str(write(tmp_path, PAIR)), "--loss", "dpo")
        assert labels(html) == ["weight", "logprob", "ref_logprob", "gradient", "one colour scale for all sequences"]
        assert html.count("dpo 0.6931 (of the pair)") == 2
        assert "The data have no ref_logprobs: the model&#39;s own are used" in html
        assert "<script" not in html

    def test_labelled_completions_say_their_label(self, tmp_path: Path) -> None:
        html = page(tmp_path, str(write(tmp_path, *KTO)), "--loss", "kto")
        assert "label 1; kto 0.5 (of the datum)" in html
        assert "label 0; kto 0.5 (of the datum)" in html

    def test_the_weights_of_a_run_can_be_used(self, tmp_path: Path) -> None:
        data = str(write(tmp_path, CHAT))
        run = str(tmp_path / "run")
        assert main(["train", "sft", "--data", data, "--out", run, "--steps", "2", "--learning-rate", "0.02"]) == 0
        before, after = (page(tmp_path, data, "--loss", "cross_entropy", *more) for more in ([], ["--start-from", run]))
        losses = [float(re.search(r"loss (\S+)", tips(html)[-2])[1]) for html in (before, after)]  # type: ignore[index]
        assert losses[1] < losses[0] - 0.01
        assert f"cross_entropy under {run}" in after

    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (["--loss", "dpo"], 2, "--loss applies to the page only: add --html FILE"),
            (["--start-from", "run"], 2, "--start-from applies to the page only"),
            (
                ["--html", "x.html", "--loss-config", "beta", "1"],
                2,
                "--loss-config needs a loss: add --loss ID",
            ),
            (["--html", "x.html", "--start-from", "run"], 2, "--start-from needs a loss: add --loss ID"),
            (["--html", "x.html", "--loss", "cross_entropi"], 2, "Did you mean 'cross_entropy'"),
            (["--html", "no/folder/x.html"], 1, "no/folder/x.html: cannot be written: No such file"),
            (
                ["--html", "x.html", "--loss", "ppo"],
                1,
                "data.jsonl: ppo reads 'advantages', which datum 0 of 1 does not",
            ),
            (["--html", "x.html", "--loss", "info_nce"], 1, "reads embeddings of whole texts"),
            (["--count", "0"], 1, "limit must be a number of rows, at least 1, not 0"),
        ],
    )
    def test_mistakes_are_named(
        self,
        words: list[str],
        code: int,
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path, CHAT)
        assert main(["data", "show", "data.jsonl", *words]) == code
        assert message in capsys.readouterr().err


def test_logprobs_in_the_data_are_kept() -> None:
    client = ServiceClient().create_reference_client(base_model="tiny")
    bare = datum_from_tokens_weights([1, 2, 3], [0, 1, 1])
    filled, names = with_own_logprobs([bare], get_loss("dpo"), client)
    assert names == ["ref_logprobs"]
    own = client.forward([bare], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
    assert filled[0].loss_fn_inputs["ref_logprobs"] == own
    assert with_own_logprobs(filled, get_loss("dpo"), client) == (filled, [])
    assert with_own_logprobs([bare], get_loss("cross_entropy"), client) == ([bare], [])


class TestReport:
    """data report: what becomes of every row."""

    def test_bad_rows_are_counted_and_named_and_the_report_goes_on_at_every_width(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(tmp_path, CHAT, {"messages": []}, CHAT, KTO[0], {"mesages": [1]})
        for columns in (60, 80, 140):
            monkeypatch.setenv("COLUMNS", str(columns))
            assert main(["data", "report", str(path)]) == 0
            place, *lines = capsys.readouterr().out.splitlines()
            assert place == str(path)
            assert max(map(len, lines)) <= columns
            shown = " ".join(" ".join(lines).split())
            assert "rows 5: 3 kept (0 truncated), 2 dropped" in shown
            assert "formats messages 3, labelled completion 1" in shown
            assert "repeated 1: data.jsonl, line 3 repeats data.jsonl, line 1" in shown
            assert "MessageError 1: data.jsonl, line 2: messages is empty" in shown
            assert "DataFileError 1: data.jsonl, line 5: no format is known for a row with the keys mesages" in shown

    def test_held_out_rows_in_the_training_data_are_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train, held_out = write(tmp_path, *KTO, CHAT), write(tmp_path, CHAT, PAIR, name="eval.jsonl")
        words = ["data", "report", str(train), "--eval-data", str(held_out)]
        assert main(words) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "held-out rows that also occur in the training data 1: eval.jsonl, line 1 is data.jsonl, line 3" in shown
        assert main([*words, "--json", "--limit", "2"]) == 0
        reports = json.loads(capsys.readouterr().out)
        assert reports["in_both"] == {"count": 0, "examples": []}, "the third row was not read"
        assert (reports["data"]["rows"], reports["eval_data"]["formats"]) == (2, {"messages": 1, "preference pair": 1})

    def test_lengths_and_truncation_are_reported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(tmp_path, CHAT, {"tokens": [1, 2, 3, 4], "weights": [0, 1, 1, 1]})
        assert main(["data", "report", str(path), "--max-length", "3", "--truncation", "right", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)["data"]
        assert (report["kept"], report["truncated"], report["dropped"]) == (1, 1, 1), "the chat would lose all labels"
        assert report["longest"] == [{"row": "data.jsonl, line 2", "tokens": 3}]

    def test_a_line_that_cannot_be_read_ends_the_report(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text(json.dumps(CHAT) + "\n{", encoding="utf-8")
        assert main(["data", "report", str(path)]) == 1
        assert "DataFileError: data.jsonl, line 2: not JSON" in capsys.readouterr().err
