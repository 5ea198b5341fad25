"""Losses in TRL's SFTTrainer, DPOTrainer and GRPOTrainer, in place of the one that the trainer has.

from lossbook.integrations.trl import with_loss
with_loss(SFTTrainer, "dft")(model, args, train_dataset=rows).train()
"""

from .with_loss import with_loss

__all__ = ["with_loss"]
