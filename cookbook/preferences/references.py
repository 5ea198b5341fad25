"""Outputs of the weights at the start of a run, computed once and cached on disk.

The key is a hash of the weights, of every datum's tokens, targets and weights, and of lossbook's version. So another
model, another start or a changed row has another key, and runs that differ only in their loss share one computation.
Files have a checkpoint's form (safetensors and a manifest with hashes): a damaged or foreign one is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import CheckpointError
from ...datums.types import Datum, TensorData
from ...trainer.checkpoint.files import installed_version
from ...trainer.checkpoint.folder import read_checkpoint, write_checkpoint
from ...trainer.responses import TopLogprobs

if TYPE_CHECKING:
    from ...trainer import TrainingClient
    from ...trainer.clients.reference import ReferenceClient

KIND = "reference outputs"
#: Increased when the computation or the files' form changes, so that older files are ignored.
FORMAT_VERSION = 1
#: Datums per forward: the outputs of a large data set are not all held by one call.
DATUMS_PER_CALL = 256


class References:
    """Cached outputs of the weights that `training` has now. Make it before the first step, and before resuming.

    folder   where results are kept; several runs may share it
    notice   called with a line for each result that was read or computed
    """

    def __init__(self, training: TrainingClient, folder: Path, notice: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._notice = notice
        self._training = training
        self._client: ReferenceClient = training.create_reference_client()

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the weights at the start."""
        return self._client.fingerprint().result()

    def logprobs(self, datums: Sequence[Datum]) -> list[np.ndarray]:
        """Each datum's logprobs at every position, nats, float32, in the shape of its target_tokens."""
        shapes = [tuple(datum.loss_fn_inputs["target_tokens"].shape) for datum in datums]
        flat = self._cached("logprobs", datums, self._compute_logprobs)["logprobs"].numpy()
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        return [piece.reshape(shape) for piece, shape in zip(np.split(flat, ends), shapes, strict=True)]

    def attached(self, datums: Sequence[Datum]) -> list[Datum]:
        """The datums with `ref_logprobs`."""
        return [
            Datum(datum.model_input, {**datum.loss_fn_inputs, "ref_logprobs": TensorData.from_numpy(logprobs)})
            for datum, logprobs in zip(datums, self.logprobs(datums), strict=True)
        ]

    def likeliest(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position of nonzero weight; see `ReferenceClient.top_logprobs`."""

        def compute(datums: Sequence[Datum]) -> dict[str, Tensor]:
            tops = self._client.top_logprobs(datums, k).result()
            return {
                "tokens": torch.from_numpy(np.concatenate([top.tokens for top in tops])),
                "logprobs": torch.from_numpy(np.concatenate([top.logprobs for top in tops])),
            }

        kept = self._cached(f"top {k}", datums, compute)
        ends = np.cumsum([datum.model_input.length for datum in datums])[:-1]
        pieces = zip(np.split(kept["tokens"].numpy(), ends), np.split(kept["logprobs"].numpy(), ends), strict=True)
        return [TopLogprobs(tokens, logprobs) for tokens, logprobs in pieces]

    def _compute_logprobs(self, datums: Sequence[Datum]) -> dict[str, Tensor]:
        pieces = []
        for start in range(0, len(datums), DATUMS_PER_CALL):
            output = self._client.forward(datums[start : start + DATUMS_PER_CALL], "cross_entropy").result()
            pieces += [one["logprobs"].to_torch().reshape(-1) for one in output.loss_fn_outputs]
        return {"logprobs": torch.cat(pieces).float()}

    def _cached(
        self, what: str, datums: Sequence[Datum], compute: Callable[[Sequence[Datum]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        key = cache_key(what, self.fingerprint, datums)
        path = self.folder / f"{what.replace(' ', '-')}-{key[:32]}"
        cached = self._read(path, key)
        if cached is not None:
            self._notice(f"reference {what} of {len(datums)} datums: read from {path}")
            return cached
        outputs = {name: tensor.contiguous() for name, tensor in compute(datums).items()}
        manifest = {"kind": KIND, "key": key, "what": what, "datums": len(datums)}
        try:
            write_checkpoint(self.folder, path.name, tensors={"outputs": outputs}, manifest=manifest, overwrite=True)
        except CheckpointError as error:
            self._notice(f"reference {what} of {len(datums)} datums: computed, but not kept: {error}")
        else:
            self._notice(f"reference {what} of {len(datums)} datums: computed, kept in {path}")
        return outputs

    def _read(self, path: Path, key: str) -> dict[str, Tensor] | None:
        """The outputs kept under a key; None where there are none, or the file is damaged or foreign."""
        if not path.exists():
            return None
        try:
            kept = read_checkpoint(path)
        except CheckpointError as error:
            self._notice(f"computing the reference again: {error}")
            return None
        if kept.manifest.get("kind") != KIND or kept.manifest.get("key") != key or "outputs" not in kept.tensors:
            self._notice(f"computing the reference again: {path} is intact but holds something else")
            return None
        return kept.tensors["outputs"]


def cache_key(what: str, fingerprint: str, datums: Sequence[Datum]) -> str:
    """sha256 (hex) of all that the outputs depend on: the weights, the datums, and the library's version."""
    version = installed_version("lossbook")
    digest = hashlib.sha256(f"{KIND} {FORMAT_VERSION} {version} {what} {fingerprint} {len(datums)}".encode())
    for datum in datums:
        digest.update(np.asarray(datum.model_input.to_ints(), dtype=np.int64).tobytes())
        for name in ("target_tokens", "weights"):
            given = datum.loss_fn_inputs.get(name)
            array = np.zeros(0) if given is None else np.ascontiguousarray(given.to_numpy())
            digest.update(f" {name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
