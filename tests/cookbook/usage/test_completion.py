"""Completion: a shell that has read the script completes commands, flags and choices."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from lossbook.cookbook.cli import main


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_flags_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    lines = {
        "lossbook tr": "train",
        "lossbook train d": "distill dpo",
        "lossbook train sft --learning": "--learning-rate",
        "lossbook train sft --steps 5 --dtype b": "bfloat16",
        "lossbook losses di": "diff",
        "lossbook doctor p": "parity plan",
        "lossbook data show x.jsonl --trunc": "--truncation",
        "lossbook --vers": "--version",
    }
    for line, expected in lines.items():
        asked = f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _lossbook; echo ${{COMPREPLY[@]}}"
        shown = subprocess.run(
            ["bash", "-c", f"{script}\n{asked}"], check=True, capture_output=True, text=True, timeout=60
        ).stdout.split()
        assert sorted(shown) == expected.split(), line
    assert main(["--completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert main(["--completion", "fish"]) == 2
