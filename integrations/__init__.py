"""Doors to code that people have: trainers that call a loss of ours, and programs written for other training APIs.

Each module is imported by its name, and imports the library that it is for where it is used.
"""

if "." not in __name__:
    raise ImportError("integrations/ is a part of the lossbook package: write `import lossbook.integrations`")

from ..datums.lazy import lazy

#: `lossbook.remote` is `remote` here; it is imported at its first use.
__getattr__, __dir__ = lazy(__name__, {".remote": ("RemoteClient",)}, ())
