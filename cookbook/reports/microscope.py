"""The earlier path of `lossbook.cookbook.inspect.token_records`."""

from ..inspect.token_records import examine

__all__ = ["examine"]
