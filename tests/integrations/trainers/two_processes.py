"""What each of two processes of test_two_processes.py runs: one optimizer step of a Trainer, whose gradients are saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import Trainer, TrainingArguments

from lossbook.integrations.transformers import LossCollator, compute_loss_func, with_loss

from .reference import PAD, catcher, settings, tiny
from .test_transformers import POLICY, ROWS, row
from .test_trl import DPO, SFT, dpo, sft


def main(folder: Path) -> None:
    """Both ways into transformers, and TRL, at two micro-batches of two rows on each process: eight rows in one step."""
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
        run(trainer, caught, folder, name)
    for name, make, loss in (("sft", sft, SFT), ("dpo", dpo, DPO)):
        caught = catcher()
        trainer = make(folder / name, loss, 2, per_device_train_batch_size=2, ddp_backend="gloo")
        trainer.add_callback(caught)
        run(trainer, caught, folder, name)


def run(trainer: Any, caught: Any, folder: Path, name: str) -> None:
    """One step, and its gradients in a file of this process."""
    trainer.train()
    ours = {key.removeprefix("module."): value for key, value in caught.steps[0].items()}
    save_file(ours, folder / f"{name}_{trainer.args.process_index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
