"""Files of adapters that somebody changed: a key too many or too few, or a number that is none, is refused and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lossbook.datums.errors import CheckpointError
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora, export_adapter, load_adapter_into

Tensors = dict[str, torch.Tensor]
CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a key too many": (lambda t: t.update(more=torch.zeros(2)), r"at more the file has \[2\], the model nothing"),
    "a key too few": (lambda t: t.pop(min(t)), r"the file has nothing, the model \[\d+, \d+\]"),
    "another shape": (lambda t: t.update({min(t): torch.zeros(2)}), r"the file has \[2\], the model"),
    "NaN": (lambda t: t[min(t)].fill_(float("nan")), "holds NaN or infinite numbers at"),
    "infinity": (lambda t: t[max(t)].fill_(float("inf")), "holds NaN or infinite numbers at"),
}


@pytest.mark.parametrize("is_adapted", [True, False])
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_adapter_file_is_refused_and_changes_nothing(
    change: Callable[[Tensors], object], message: str, is_adapted: bool, tmp_path: Path
) -> None:
    export_adapter(add_lora(load_model("tiny", device="cpu"), rank=2, seed=0), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    model = load_model("tiny", device="cpu")
    if is_adapted:
        add_lora(model, rank=2, seed=1)
    before = {name: p.clone() for name, p in model.module.named_parameters()}
    with pytest.raises(CheckpointError, match=message):
        load_adapter_into(model, tmp_path)
    after = dict(model.module.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
