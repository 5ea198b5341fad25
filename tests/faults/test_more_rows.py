"""Rows of `rows.py` that have no other home."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lossbook as lb

from ..trainer.conftest import random_datums


def stepped(folder: Path, clip: float, **settings: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """The gradient norm and the trained weights after one clipped step."""
    training = lb.ServiceClient(device="cpu", checkpoint_dir=folder, **settings).create_training_client("tiny")
    training.forward_backward(random_datums(8), "cross_entropy").result()
    norm = training.optim_step(lb.AdamParams(learning_rate=1e-2, grad_clip_norm=clip)).result().metrics["grad_norm"]
    snapshot = training.save_state("after").result().path
    from lossbook.trainer.checkpoint.folder import read_checkpoint

    return norm, read_checkpoint(Path(snapshot)).tensors["optimizer"]


@pytest.mark.parametrize("settings", [{"batching": "single"}, {"tokens_per_micro_batch": 16}, {"batching": "padded"}])
def test_a_clipped_step_does_not_depend_on_how_the_batch_is_cut(settings: dict[str, Any], tmp_path: Path) -> None:
    """Moments after one step are the clipped gradient times 1 - beta, so that they show what was clipped to what."""
    norm, moments = stepped(tmp_path / "whole", 0.5)
    other_norm, others = stepped(tmp_path / "cut", 0.5, **settings)
    assert norm > 1.0, "the clip must act"
    assert other_norm == pytest.approx(norm, rel=1e-5)
    assert moments.keys() == others.keys()
    for name, value in moments.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("advantage", [-1.0, 2.0])
def test_gspo_on_answers_of_one_token_is_ppo_with_its_bounds(advantage: float) -> None:
    """The mean of one log-ratio is that log-ratio (arXiv:2507.18071 eq. 7 against 1707.06347 eq. 7)."""
    results = []
    for loss in ("gspo", "ppo"):
        logprobs = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-1.0, -2.0, -0.5)]
        inputs = {"target_tokens": [2], "weights": [1.0], "sampling_logprobs": [-1.2], "advantages": [advantage]}
        data = [lb.Datum(lb.ModelInput.from_ints([1]), inputs) for _ in logprobs]
        bounds = {"clip_low": 0.9, "clip_high": 1.1, "reduction": "sum"}
        value, _ = lb.get_loss(loss, **bounds)(data, logprobs)
        value.backward()
        results.append([value.item(), *(one.grad.item() for one in logprobs)])  # type: ignore[union-attr]
    assert results[0] == pytest.approx(results[1], rel=1e-12)
