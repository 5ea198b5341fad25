"""Tinker's protobuf messages, from the file that its SDK ships."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from functools import cache
from types import ModuleType

from ....datums.errors import MissingExtraError

_FILE, _NEEDS = "tinker_public_pb2.py", "lossbook serve needs Tinker's messages: pip install 'lossbook[serve]'"


@cache
def messages() -> ModuleType:
    """The SDK's generated module `tinker_public_pb2`, loaded alone: the package around it takes seconds to import.

    Its classes are not those of `tinker.proto.tinker_public_pb2`; what they read and write is the same. Raises MissingExtraError
    where the SDK is not installed.
    """
    try:
        files = importlib.metadata.files("tinker") or []
        path = next(file for file in files if file.name == _FILE).locate()
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        raise MissingExtraError(_NEEDS) from None
    spec = importlib.util.spec_from_file_location("lossbook_tinker_public_pb2", str(path))
    if spec is None or spec.loader is None:
        raise MissingExtraError(_NEEDS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
