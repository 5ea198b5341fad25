"""transformers' and TRL's trainers under torchrun: two processes on gloo have the gradient of all rows together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lossbook import get_loss

from .reference import assert_same, wanted_gradients
from .test_transformers import POLICY, wanted
from .test_trl import DPO, ROUNDING, SFT, dpo, dpo_data, model, sft, sft_datum, unwarned

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@unwarned
def test_two_processes_have_the_gradient_of_all_rows(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])}
    ran = subprocess.run(
        [*torchrun, "-m", "tests.integrations.trainers.two_processes", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    whole = {
        "compute_loss_func": wanted(get_loss("dft")),
        "with_loss": wanted(get_loss("gspo"), POLICY),
        "sft": wanted_gradients(model(), SFT, [sft_datum(row) for row in sft(tmp_path, SFT, 1).train_dataset]),
        "dpo": wanted_gradients(model(), DPO, dpo_data(dpo(tmp_path, DPO, 1))),
    }
    for name, gradients in whole.items():
        for process in range(2):
            assert_same(load_file(tmp_path / f"{name}_{process}.safetensors"), gradients, ROUNDING)
