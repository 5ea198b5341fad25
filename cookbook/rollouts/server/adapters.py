"""A policy in training, sampled on a server: after each change its adapters are loaded there under a new name.

The name is new each time because servers keep what they computed of a prompt under the adapter's name. An adapter is unloaded
once no sampler of it is left, and those that an earlier process of the same run left behind when this one begins.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import warnings
import weakref
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from ....datums import disk
from ....datums.errors import SamplerError
from ....datums.types import SamplingParams
from ...steps.samples import prompt_tokens
from ..parity import PROMPTS, measure_parity
from .sampler import SamplingServer, ServerSampler

if TYPE_CHECKING:
    from ....trainer import TrainingClient

ADAPTER_FILE = "adapter_model.safetensors"
#: Adapters of a run that are compared with the trainer: the first, and the first that an update has changed.
COMPARED = 2
#: Of the noise in the adapter that must change the server's answers: far above rounding, also in bfloat16. And by how much it
#: must change a logprob, nats.
NOISE, CHANGE = 0.1, 0.25
MENDS = (
    "Likely causes: another dtype there (start both with the same --dtype); another model or revision; adapters scaled in another "
    "way; logprobs at the sampling temperature and not at 1 (vLLM: --logprobs-mode raw_logprobs; SGLang: "
    "SGLANG_RETURN_ORIGINAL_LOGPROB=1). The server's chat template plays no part: prompts are sent as token ids. If the difference "
    "is meant to be there, accept it with --sampler-bound and correct for it with --rollout-correction"
)


class ServedPolicy:
    """Gives samplers of the weights in training, from a server that loads their adapters; use it in a `with` block.

    folder    where adapters are written, which the server reads under the same path
    run       what the adapters' names are made of, so that a run that continues unloads what it left behind
    bound     the largest mean difference between trainer and server, nats; see `Parity`
    compared  how many different adapters of the run are compared with the trainer before they are sampled from

    Before the first sampler is handed out, an adapter of noise must change the server's answers. Raises SamplerError where it
    does not, and where the compared adapters give other logprobs than the trainer.
    """

    def __init__(
        self,
        training: TrainingClient,
        server: SamplingServer,
        folder: Path,
        *,
        run: str,
        bound: float | None = None,
        compared: int = COMPARED,
    ) -> None:
        self.training, self.server, self.folder, self.bound = training, server, folder.absolute(), bound
        digest = hashlib.sha256(run.encode()).hexdigest()[:8]
        self._ours = re.compile(rf"lossbook-{digest}-[0-9a-f]{{8}}-\d+")
        self._prefix = f"lossbook-{digest}-{secrets.token_hex(4)}"
        self._number, self._left = 0, compared
        self._content: bytes | None = None
        self._current: ServerSampler | None = None
        self._loaded: set[str] = set()
        self._unused: list[str] = []

    def __enter__(self) -> ServedPolicy:
        disk.make_folder(self.folder)
        for name in filter(self._ours.fullmatch, self.server.adapters()):
            self._unload(name)
        for path in self.folder.iterdir():
            if self._ours.fullmatch(path.name):
                disk.remove(path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._current = None
        try:
            for name in sorted(self._loaded):
                if not self._unload(name) and error is not None:
                    break  # the server is probably away, which the error says already
        finally:
            self.server.close()

    def save_weights_and_get_sampling_client(self) -> ServerSampler:
        """A sampler of the current weights; the last one, where they have not changed. Raises SamplerError."""
        self._unload_unused()
        name, folder = self._new()
        self.training.export_adapter(folder).result()
        content = hashlib.sha256((folder / ADAPTER_FILE).read_bytes()).digest()
        if self._current is not None and content == self._content:
            disk.remove(folder)
            return self._current
        if self._current is None:
            self._check_that_adapters_count(folder)
        sampler = self._load(name, folder)
        if self._left:
            self._check_parity(sampler)
        self._current, self._content = sampler, content
        return sampler

    def _new(self) -> tuple[str, Path]:
        """A name that no adapter has had, and its folder."""
        self._number += 1
        name = f"{self._prefix}-{self._number}"
        return name, self.folder / name

    def _load(self, name: str, folder: Path) -> ServerSampler:
        self.server.load(name, str(folder))
        self._loaded.add(name)
        sampler = self.server.sampler(self.training.get_tokenizer(), name)
        weakref.finalize(sampler, self._unused.append, name)
        return sampler

    def _unload_unused(self) -> None:
        while self._unused:
            self._unload(self._unused.pop())

    def _unload(self, name: str) -> bool:
        """Unload an adapter and remove its folder; whether that went well. What stays on the server does this run no harm: a warning."""
        self._loaded.discard(name)
        disk.remove(self.folder / name)
        try:
            self.server.unload(name)
        except SamplerError as error:
            warnings.warn(str(error), stacklevel=2)
            return False
        return True

    def _check_that_adapters_count(self, folder: Path) -> None:
        """Raise SamplerError where the server answers alike with an adapter of noise and without any.

        The first adapters of a run change nothing, because B is 0: a server that ignored them would agree with the trainer.
        """
        name, noisy = self._new()
        _write_noise(folder, noisy)
        plain, changed = self.server.sampler(self.training.get_tokenizer()), self._load(name, noisy)
        if _difference(plain, changed, self.training) < CHANGE:
            raise SamplerError(
                f"{self.server.connection.url} answers alike with an adapter of noise and without one: it loads adapters, but "
                "does not use them. Does a proxy or router stand between, or does the server not support LoRA for this model?"
            )

    def _check_parity(self, sampler: ServerSampler) -> None:
        parity = measure_parity(self.training, max_tokens=16, sampler=sampler, bound=self.bound)
        if not parity.agrees:
            largest, mean = parity.limits
            raise SamplerError(
                f"{self.server.connection.url} and the trainer give other logprobs to the same {parity.tokens} tokens: mean "
                f"difference {parity.mean:.2g} nats (at most {mean:g}), largest {parity.largest:.2g} (at most {largest:g}). {MENDS}"
            )
        self._left -= 1


def _write_noise(source: Path, target: Path) -> None:
    """Write an adapter like the one in `source`, with noise for every B."""
    from safetensors.torch import load_file, save_file

    disk.make_folder(target)
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(source / ADAPTER_FILE)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensors[name] = (NOISE * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
    with disk.writing(target / ADAPTER_FILE):
        save_file(tensors, target / ADAPTER_FILE, metadata={"format": "pt"})
    disk.write_file(target / "adapter_config.json", (source / "adapter_config.json").read_bytes())


def _difference(one: ServerSampler, other: ServerSampler, training: TrainingClient) -> float:
    """The largest difference, nats, of greedy answers' first logprobs; infinite where the first tokens differ."""
    prompts = [prompt_tokens(prompt, training.get_tokenizer()) for prompt in PROMPTS]
    greedy = SamplingParams(max_tokens=1, temperature=0.0)
    answers = [[r.sequences[0] for r in s.sample_batch(prompts, greedy).result()] for s in (one, other)]
    if any(a.tokens != b.tokens for a, b in zip(*answers, strict=True)):
        return float("inf")
    return float(np.max([abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(*answers, strict=True)]))
