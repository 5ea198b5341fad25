"""`lossbook export`: what a run learned, as a folder that peft or transformers loads, proven equal to what was trained."""

from __future__ import annotations

import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import tyro

from ...datums.errors import ConfigError, ExportError
from ...trainer import ServiceClient
from ...trainer.checkpoint.folder import read_checkpoint
from ..embeddings.sentence_encoder import copy_pooling
from ..run.loggers import quiet_libraries
from ..run.names import CONFIG, MODEL
from ..run.runs import Run, find_checkpoint
from .check import Verification, probe_tokens, trained_outputs, verify_export
from .model_card import model_card

if TYPE_CHECKING:
    from ...trainer import TrainingClient

Format = Literal["adapter", "merged"]
Dtype = Literal["float32", "float16", "bfloat16"]
#: How much a logprob (nats) or a number of an embedding may differ. float32: two orders of summation; the others: the
#: rounding of every weight, measured in docs/export.md.
TOLERANCES: dict[str, float] = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.5}


def main(
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    format: Format | None = None,
    dtype: Dtype = "float32",
    tolerance: float | None = None,
    overwrite: bool = False,
    push_to: str | None = None,
    public: bool = False,
) -> None:
    """Write what a run learned as a folder that peft ("adapter") or transformers ("merged") loads, and check it.

    Args:
        source: a run's folder, of which the last checkpoint is taken, or a checkpoint.
        out: the folder to write; it must not exist yet.
        format: adapter: the LoRA adapter alone; merged: a whole model. By default what was trained: an adapter, or all.
        dtype: of a merged model's weights.
        tolerance: nats that a logprob may differ from the trainer's; by default 0.001 for float32, more for the others.
        overwrite: replace `out` if it is there.
        push_to: upload the checked folder to this hub repository, owner/name.
        public: make a new hub repository public; else it is private.
    """
    quiet_libraries()
    if push_to is not None:
        check_repository(push_to)
    if tolerance is not None and not tolerance > 0:
        raise ConfigError(f"--tolerance must be above 0, not {tolerance}")
    checked = export(source, out, format=format, dtype=dtype, tolerance=tolerance, overwrite=overwrite)
    print(f"{out}: {checked}")
    if push_to is not None:
        print(f"pushed to {push(out, push_to, public=public)}")


def export(
    source: Path,
    out: Path,
    *,
    format: Format | None = None,
    dtype: Dtype = "float32",
    tolerance: float | None = None,
    overwrite: bool = False,
) -> Verification:
    """As the command, without the hub; returns what was compared. On any error `out` is as it was before.

    Raises ConfigError for impossible choices, RunError and CheckpointError for a source that is none, and ExportError
    when the export is not what was trained.
    """
    checkpoint = find_checkpoint(source)
    manifest = read_checkpoint(checkpoint, names=[]).manifest
    is_lora = manifest.get("lora") is not None
    form: Format = format or ("adapter" if is_lora else "merged")
    if form == "adapter" and not is_lora:
        raise ConfigError(f"{checkpoint} holds all weights of a model and no adapter: choose --format merged")
    if form == "adapter" and dtype != "float32":
        raise ConfigError("--dtype is for --format merged; an adapter is written as it was trained, in float32")
    _check_free(out, overwrite)
    service = ServiceClient(device="cpu", dtype=torch.float32)
    training = service.create_training_client_from_state(str(checkpoint))
    base, run = str(manifest["base_model"]), run_of(checkpoint)
    kind = training.get_info().kind
    sequences = probe_tokens(training.get_tokenizer(), run, training.get_info().max_length)
    with _new_folder(out) as folder:
        if form == "adapter":
            training.export_adapter(folder).result()
        else:
            training.export_model(folder, dtype=getattr(torch, dtype)).result()
            if run is not None:
                copy_pooling(run / MODEL, folder)
        expected = trained_outputs(training, sequences, kind)
        checked = verify_export(
            expected, sequences, folder, base, kind, tolerance=TOLERANCES[dtype] if tolerance is None else tolerance
        )
        _write_card(folder, run, training, adapter=form == "adapter", verified=f"After loading, {checked}.")
    return checked


def write_weights(run: Run, training: TrainingClient) -> Path:
    """The end of a run: its adapter, or where all weights were trained the whole model, with a model card; returns where.

    Written whole or not at all. It is not loaded again here: `lossbook export` does that.
    """
    is_lora = training.get_info().is_lora
    target = run.adapter if is_lora else run.path / MODEL
    with _new_folder(target) as folder:
        (training.export_adapter(folder) if is_lora else training.export_model(folder)).result()
        _write_card(folder, run.path, training, adapter=is_lora)
    return target


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint lies in, None where it lies elsewhere."""
    folder = checkpoint.resolve().parent.parent
    return folder if (folder / CONFIG).exists() else None


def check_repository(name: str) -> None:
    """Raise ConfigError unless the hub could have a repository of this name, with an owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to {name!r}: {' '.join(str(error).split())}") from None
    if name.count("/") != 1:
        raise ConfigError(f"--push-to {name!r}: give the owner too, as in owner/name")


def push(folder: Path, repository: str, *, public: bool = False, api: Any = None) -> str:
    """Upload a folder to the hub, into a new private repository or one that is there; returns its address.

    api: a huggingface_hub.HfApi; by default one with the user's own login, which is never asked for here. Raises
    ExportError when the hub refuses or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = api or HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Exported by lossbook")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ExportError(
            f"{folder} is written and checked, but {repository} did not take it: {' '.join(str(error).split())[:300]}. "
            f"Log in with `hf auth login`, then: hf upload {repository} {folder}"
        ) from error
    return f"https://huggingface.co/{repository}"


def _write_card(folder: Path, run: Path | None, training: TrainingClient, *, adapter: bool, verified: str = "") -> None:
    info = training.get_info()
    card = model_card(
        run, info.model_name, adapter=adapter, kind=info.kind, value_head=info.value_head, verified=verified
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _check_free(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ConfigError(f"{out} is not empty: choose another folder, or --overwrite")
        if not any((out / name).exists() for name in ("adapter_config.json", "config.json")):
            raise ConfigError(f"{out} holds something else than a model or an adapter, so it is not overwritten")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; an export needs a folder")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end; on any error it is removed and `target` is as before."""
    scratch = target.with_name(f".{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if target.exists():
            aside = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
            os.replace(target, aside)
            os.replace(scratch, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.replace(scratch, target)
        for left in target.parent.glob(f".{glob.escape(target.name)}.*-*"):  # of a program that was killed
            shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
