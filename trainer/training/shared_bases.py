"""`SharedBases`: base models that several adapters and frozen models of a process have in common."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

from ...datums.errors import ModelError
from ..model.load import BUILT_IN, load_model
from ..model.model import LoadedModel
from ..model.verdict import Verdict
from ..model.weights.sharing import sharing_copy
from ..ranks import ALONE, Ranks

#: What a file is recognized by: where it is, and when and at which size it was written.
Stamp = tuple[tuple[str, int, int, int, int, int], ...]


class SharedBases:
    """Loads base models, each from the disk only while no copy of it is in use.

    Weights are shared between models of the same name, device, dtype and kind of base weights, as long as the files are those
    that were read: after a change of a file the next model is read anew. Models of several ranks are loaded on their own.
    The last model that is dropped frees the weights.
    """

    def __init__(self) -> None:
        self._loaded: weakref.WeakValueDictionary[Any, LoadedModel] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[SharedBases], tuple[()]]:
        return SharedBases, ()  # another process shares nothing with this one

    def load(self, base_model: str, *, ranks: Ranks = ALONE, **options: Any) -> LoadedModel:
        """As `load_model`; the weights must stay as they are. Raises what it raises."""
        if ranks.size > 1:
            return load_model(base_model, ranks=ranks, **options)
        with self._lock:
            before = stamp_of(base_model)
            key = (base_model, *sorted(options.items(), key=lambda item: item[0]))
            base = self._loaded.get((key, before)) if before is not None else None
            if base is None:
                base = load_model(base_model, **options)
                after = stamp_of(base_model)
                if after is None or before not in (None, after):  # it was written while it was read
                    return base
                try:
                    first = sharing_copy(base)
                except ModelError as error:
                    base.verdicts["shared weights"] = Verdict(False, str(error))
                    return base
                self._loaded[key, after] = base
                return first
        return sharing_copy(base)


def stamp_of(base_model: str) -> Stamp | None:
    """What tells whether a model's files are those of before; None for a model of the hub that was not fetched yet."""
    if base_model in BUILT_IN:
        return ()
    path = Path(os.path.expanduser(base_model))
    if not path.exists():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(base_model, "config.json")
        except HFValidationError:
            return None
        if not isinstance(config, str):
            return None
        path = Path(config).parent
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    states = [(str(file.absolute()), file.stat()) for file in files]
    return tuple((name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states)
