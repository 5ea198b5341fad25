"""Secrets in the environment, in URLs and in settings reach no file of a run, no report, no export and no message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.cookbook import cli
from lossbook.cookbook.redaction import REDACTED, redacted
from lossbook.cookbook.run.runs import open_run
from lossbook.datums.errors import RunError

#: What tokens and passwords are made of, and what JSON and HTML write in another way.
SECRETS = st.text(st.sampled_from("abcXYZ0189-_./+=\"\\'<&é "), min_size=8, max_size=30).filter(
    lambda text: text.strip() == text and text not in REDACTED
)
NAMES = st.sampled_from(["HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "AWS_SECRET", "GOOGLE_CREDENTIALS"])


def files_with(folder: Path, secret: str) -> list[str]:
    """The files below a folder that hold a text, as it is or as JSON or HTML write it."""
    forms = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    forms |= {form.replace("&", "&amp;").replace("<", "&lt;") for form in forms}
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return [str(path) for path, content in contents.items() if any(form.encode() in content for form in forms)]


@given(name=NAMES, secret=SECRETS, before=st.text(max_size=5), after=st.text(max_size=5))
def test_a_secret_of_the_environment_reaches_no_file_of_a_run(
    tmp_path_factory: pytest.TempPathFactory, name: str, secret: str, before: str, after: str
) -> None:
    text = before + secret + after
    folder = tmp_path_factory.mktemp("run")
    with mock.patch.dict(os.environ, {name: secret}):
        run = open_run(folder / "run", {"model": text, "nested": [{"deep": text}], text: 1})
        run.append("samples.jsonl", {"step": 1, "prompt": text, "pieces": [text, "x"], "reward": 0.5})
        run.write("loss.json", json.dumps({"loss": text}))
        run.log(1, {"loss": 1.5})
        run.release()
    assert files_with(folder, secret) == []
    assert json.loads((folder / "run" / "samples.jsonl").read_text())["reward"] == 0.5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:hunter2@host/x", f"https://{REDACTED}@host/x"),
        ("https://ghp_x@host/x", f"https://{REDACTED}@host/x"),
        ("s3://bucket/x?token=abc&step=3", f"s3://bucket/x?token={REDACTED}&step=3"),
        ("http://h/?a=1&X_Signature=abc", f"http://h/?a=1&X_Signature={REDACTED}"),
        ("http://h/?api_key=a/b+c=#top", f"http://h/?api_key={REDACTED}#top"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("mail me@host about http://host", "mail me@host about http://host"),
        ("max_tokens=5&key", "max_tokens=5&key"),
    ],
)
def test_secrets_in_urls_are_replaced_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_setting_that_is_called_a_secret_is_replaced_and_names_of_columns_and_tokens_are_not() -> None:
    secret = "0123456789abcdef"
    settings = {"api_key": secret, "wandb_token": secret, "label_key": secret, "pad_token": "<|pad|>", "tokens": 5}
    shown = {"api_key": REDACTED, "wandb_token": REDACTED, "label_key": secret, "pad_token": "<|pad|>", "tokens": 5}
    assert redacted(settings) == shown


def test_a_run_whose_settings_hold_a_secret_resumes_and_its_settings_are_compared(tmp_path: Path) -> None:
    settings = {"data": "https://me:first@host/x", "rank": 8}
    open_run(tmp_path / "run", settings).release()
    open_run(tmp_path / "run", settings, resume=True).release()
    with pytest.raises(RunError, match="rank was 8, is 9"):
        open_run(tmp_path / "run", {**settings, "rank": 9}, resume=True)


def test_a_secret_is_in_nothing_that_the_command_line_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training, its trackers, a report and an export, with the secret where a careless user may have put it."""
    secret = "s3cr3t-v4lue"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", secret)
    row = {"messages": [{"role": "user", "content": f"Say {secret}"}, {"role": "assistant", "content": secret}]}
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row) + "\n")
    train = ["train", "sft", "--model", "tiny", "--data", str(data), "--out", "run", "--steps", "2", "--rank", "2"]
    assert cli.main([*train, "--sample-prompts", secret, "--sample-tokens", "2", "--log-to", "tensorboard"]) == 0
    assert cli.main(["runs", "report", "run"]) == 0
    assert cli.main(["export", "run", "exported"]) == 0
    assert cli.main([*train, "--resume", "--start-from", f"https://me:{secret}@host/x"]) == 1
    data.unlink()
    assert files_with(tmp_path, secret) == []
    assert {path.name for path in tmp_path.iterdir()} >= {"run", "exported"}
    shown = capfd.readouterr()
    assert secret not in shown.out + shown.err
