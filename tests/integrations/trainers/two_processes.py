"""What each of two processes of test_two_processes.py runs: one optimizer step of a Trainer, whose gradients are saved."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from lossbook.integrations.transformers import LossCollator, compute_loss_func, with_loss

from .reference import PAD, catcher, settings, tiny
from .test_transformers import POLICY, ROWS, row


def main(folder: Path) -> None:
    """Both ways in, at two micro-batches of two rows on each process: eight rows in one step."""
    whole = {"remove_unused_columns": False, "train_sampling_strategy": "sequential", "ddp_backend": "gloo"}
    for name in ("compute_loss_func", "with_loss"):
        arguments = TrainingArguments(**settings(folder / name, 2, rows=4, **whole))
        caught, names = catcher(), () if name == "compute_loss_func" else POLICY
        rows = [row(i, names) for i in range(len(ROWS))]
        given = {"train_dataset": rows, "data_collator": LossCollator(PAD), "callbacks": [caught]}
        if name == "compute_loss_func":
            trainer = Trainer(tiny(), arguments, compute_loss_func=compute_loss_func("dft"), **given)
        else:
            trainer = with_loss(Trainer, "gspo")(tiny(), arguments, **given)
        trainer.train()
        ours = {key.removeprefix("module."): value for key, value in caught.steps[0].items()}
        save_file(ours, folder / f"{name}_{arguments.process_index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
