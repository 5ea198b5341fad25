"""What the weights at the start of a run say about data: computed once, kept on disk, and found again by its key.

The key is a hash of the weights themselves, of every datum's tokens, targets and weights, and of lossbook's version. So
another model, another checkpoint to start from, or a changed row has another key, and runs that differ in their loss alone
share what one of them computed. Files are those of a checkpoint (safetensors and a manifest with hashes): what is damaged,
or was put there by something else, is noticed and computed again.
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
#: Raised when what is computed, or how it is stored, changes: older files are then not found.
FORMAT_VERSION = 1
#: Datums of one forward, so that a large data set shows progress and its outputs do not pile up in one call.
DATUMS_A_CALL = 256


class References:
    """The weights that `training` has now, and what they say. Make it before the first step, and before resuming.

    folder   where results are kept; several runs may share it
    notice   told what was found, computed and mended, in a line each
    """

    def __init__(self, training: TrainingClient, folder: Path, notice: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._notice = notice
        self._training = training
        self._client: ReferenceClient = training.create_reference_client()

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights at the start."""
        return self._client.fingerprint().result()

    def logprobs(self, datums: Sequence[Datum]) -> list[np.ndarray]:
        """Each datum's logprobs at every position, nats, float32 in the shape of its target_tokens."""
        shapes = [tuple(datum.loss_fn_inputs["target_tokens"].shape) for datum in datums]
        flat = self._cached("logprobs", datums, self._compute_logprobs)["logprobs"].numpy()
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        return [piece.reshape(shape) for piece, shape in zip(np.split(flat, ends), shapes, strict=True)]

    def attached(self, datums: Sequence[Datum]) -> list[Datum]:
        """The datums with `ref_logprobs`, as losses against a reference read them."""
        return [
            Datum(datum.model_input, {**datum.loss_fn_inputs, "ref_logprobs": TensorData.from_numpy(found)})
            for datum, found in zip(datums, self.logprobs(datums), strict=True)
        ]

    def likeliest(self, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
        """The k likeliest next tokens at every position that is learned; see `ReferenceClient.top_logprobs`."""

        def compute(datums: Sequence[Datum]) -> dict[str, Tensor]:
            found = self._client.top_logprobs(datums, k).result()
            return {
                "tokens": torch.from_numpy(np.concatenate([one.tokens for one in found])),
                "logprobs": torch.from_numpy(np.concatenate([one.logprobs for one in found])),
            }

        kept = self._cached(f"top {k}", datums, compute)
        ends = np.cumsum([datum.model_input.length for datum in datums])[:-1]
        pieces = zip(np.split(kept["tokens"].numpy(), ends), np.split(kept["logprobs"].numpy(), ends), strict=True)
        return [TopLogprobs(tokens, logprobs) for tokens, logprobs in pieces]

    def _compute_logprobs(self, datums: Sequence[Datum]) -> dict[str, Tensor]:
        pieces = []
        for start in range(0, len(datums), DATUMS_A_CALL):
            output = self._client.forward(datums[start : start + DATUMS_A_CALL], "cross_entropy").result()
            pieces += [one["logprobs"].to_torch().reshape(-1) for one in output.loss_fn_outputs]
        return {"logprobs": torch.cat(pieces).float()}

    def _cached(
        self, what: str, datums: Sequence[Datum], compute: Callable[[Sequence[Datum]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        key = cache_key(what, self.fingerprint, datums)
        path = self.folder / f"{what.replace(' ', '-')}-{key[:32]}"
        found = self._read(path, key)
        if found is not None:
            self._notice(f"reference {what} of {len(datums)} datums: taken from {path}")
            return found
        found = {name: tensor.contiguous() for name, tensor in compute(datums).items()}
        manifest = {"kind": KIND, "key": key, "what": what, "datums": len(datums)}
        try:
            write_checkpoint(self.folder, path.name, tensors={"outputs": found}, manifest=manifest, overwrite=True)
        except CheckpointError as error:
            self._notice(f"reference {what} of {len(datums)} datums: computed, but not kept: {error}")
        else:
            self._notice(f"reference {what} of {len(datums)} datums: computed, kept in {path}")
        return found

    def _read(self, path: Path, key: str) -> dict[str, Tensor] | None:
        """What is kept under a key; None where there is nothing, or nothing that can be trusted."""
        if not path.exists():
            return None
        try:
            kept = read_checkpoint(path)
        except CheckpointError as error:
            self._notice(f"computing the reference again: {error}")
            return None
        if kept.manifest.get("kind") != KIND or kept.manifest.get("key") != key or "outputs" not in kept.tensors:
            self._notice(f"computing the reference again: {path} holds something else, although its files are whole")
            return None
        return kept.tensors["outputs"]


def cache_key(what: str, fingerprint: str, datums: Sequence[Datum]) -> str:
    """sha256, in hex, of all that the numbers depend on: the weights, the exact datums, and the library's version."""
    version = installed_version("lossbook")
    digest = hashlib.sha256(f"{KIND} {FORMAT_VERSION} {version} {what} {fingerprint} {len(datums)}".encode())
    for datum in datums:
        digest.update(np.asarray(datum.model_input.to_ints(), dtype=np.int64).tobytes())
        for name in ("target_tokens", "weights"):
            given = datum.loss_fn_inputs.get(name)
            array = np.zeros(0) if given is None else np.ascontiguousarray(given.to_numpy())
            digest.update(f" {name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()
