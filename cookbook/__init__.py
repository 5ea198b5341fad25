"""Recipes built from datums, losses and the trainer, and the command line that runs them."""

if "." not in __name__:
    raise ImportError("cookbook/ is a part of the lossbook package: write `import lossbook.cookbook`")
