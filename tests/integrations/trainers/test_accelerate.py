"""Accelerate's loop, as examples/accelerate_loop.py has it: its gradient is that of all rows, whatever the accumulation."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from lossbook import get_loss
from lossbook.integrations.transformers import LossCollator

from .reference import PAD, assert_same, datum, gradients, tiny, tokens, wanted_gradients


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_accumulated_micro_batches_have_the_gradient_of_all_rows(accumulation: int) -> None:
    loss, rows = get_loss("dft"), tokens()
    accelerator = Accelerator(gradient_accumulation_steps=accumulation, cpu=True)
    model = accelerator.prepare(tiny())
    columns = [{"input_ids": p + r, "labels": [-100] * len(p) + r} for p, r in rows]
    size = len(rows) // accumulation
    batches = [LossCollator(PAD)(columns[i : i + size]) for i in range(0, len(rows), size)]
    count = accelerator.reduce(sum(loss.count_tensors(labels=batch["labels"][:, 1:]) for batch in batches))
    for batch in batches:
        with accelerator.accumulate(model):
            logits = model(batch["input_ids"], batch["attention_mask"]).logits
            value, _ = loss.on_logits(logits[:, :-1], batch["labels"][:, 1:], denominator=count)
            accelerator.backward(accelerator.gradient_accumulation_steps * value)
    assert_same(gradients(model), wanted_gradients(tiny(), loss, [datum(p, r) for p, r in rows]))
