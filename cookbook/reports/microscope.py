"""The earlier path of `lossbook.cookbook.inspect.token_losses`."""

from ..inspect.token_losses import token_losses as examine

__all__ = ["examine"]
