"""Seeds for adapters and samples where the cookbook gives none, so that its runs can be compared number by number.

python seeds.py MODULE ARGUMENTS     as python -m MODULE ARGUMENTS
"""

from __future__ import annotations

import dataclasses
import functools
import os
import runpy
import sys
import zlib
from collections import Counter
from typing import Any

import tinker

SEED = int(os.environ.get("COOKBOOK_SEED", "0"))


def seed_all() -> None:
    """Make SEED the default of `seed` where a ServiceClient creates adapters, and give every request for samples a seed.

    A request's seed depends on its prompt and on how often the program has asked for that prompt, so that the order in
    which requests for different prompts are sent does not matter.
    """
    for name in ("create_lora_training_client", "create_lora_training_client_async"):
        setattr(tinker.ServiceClient, name, _adapter_seeded(getattr(tinker.ServiceClient, name)))
    for name in ("sample", "sample_async"):
        setattr(tinker.SamplingClient, name, _samples_seeded(getattr(tinker.SamplingClient, name)))


def _adapter_seeded(method: Any) -> Any:
    @functools.wraps(method)
    def seeded(self: Any, *arguments: Any, **named: Any) -> Any:
        return method(self, *arguments, **{"seed": SEED, **named})

    return seeded


_asked: Counter[str] = Counter()


def _samples_seeded(method: Any) -> Any:
    @functools.wraps(method)
    def seeded(self: Any, prompt: Any, num_samples: int, sampling_params: Any, *others: Any, **named: Any) -> Any:
        if sampling_params.seed is None:
            text = str(prompt.to_ints())
            _asked[text] += 1
            sampling_params = _with_seed(sampling_params, zlib.crc32(f"{SEED} {_asked[text]} {text}".encode()) >> 1)
        return method(self, prompt, num_samples, sampling_params, *others, **named)

    return seeded


def _with_seed(params: Any, seed: int) -> Any:
    """A copy: of the SDK's model, or of lossbook's dataclass."""
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        return dataclasses.replace(params, seed=seed)
    return params.model_copy(update={"seed": seed})


if __name__ == "__main__":
    seed_all()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
