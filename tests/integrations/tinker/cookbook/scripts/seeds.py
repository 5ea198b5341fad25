"""Seeds for adapters where the cookbook gives none, so that its runs can be compared number by number.

python seeds.py MODULE ARGUMENTS     as python -m MODULE ARGUMENTS
"""

from __future__ import annotations

import functools
import runpy
import sys
from typing import Any

import tinker

SEED = 0


def seed_adapters() -> None:
    """Make SEED the default of `seed` where a ServiceClient creates adapters."""
    for name in ("create_lora_training_client", "create_lora_training_client_async"):
        setattr(tinker.ServiceClient, name, _seeded(getattr(tinker.ServiceClient, name)))


def _seeded(method: Any) -> Any:
    @functools.wraps(method)
    def seeded(self: Any, *arguments: Any, **named: Any) -> Any:
        return method(self, *arguments, **{"seed": SEED, **named})

    return seeded


if __name__ == "__main__":
    seed_adapters()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
