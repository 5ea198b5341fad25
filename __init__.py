"""lossbook: the place where the loss functions of language-model training live."""
