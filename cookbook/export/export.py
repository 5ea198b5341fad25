"""`lossbook export`: write trained weights as a folder that peft or transformers loads, and check it against the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...datums import disk
from ...datums.errors import ConfigError, ExportError
from ...trainer import ServiceClient
from ...trainer.checkpoint.contents import Contents, contents_of
from ...trainer.checkpoint.folder import read_checkpoint
from ..embeddings.sentence_encoder import copy_settings
from ..run.names import CONFIG, MODEL
from ..run.runs import Run, find_checkpoint
from ..settings.choices import ExportDtype, ExportForm
from .check import Verification, kind_of, probe_tokens, trained_outputs, verify_export
from .model_card import model_card

if TYPE_CHECKING:
    from ...trainer import TrainingClient

#: How much a logprob (nats) or a number of an embedding may differ. In float32 only the order of sums differs; in the others
#: every weight is rounded. Measured in docs/export.md.
TOLERANCES: dict[str, float] = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.5}


def export(
    source: Path,
    out: Path,
    *,
    format: ExportForm | None = None,
    dtype: ExportDtype = "float32",
    tolerance: float | None = None,
    overwrite: bool = False,
) -> Verification:
    """Do what the command does, without the hub; returns the comparison. After any error `out` is as it was before.

    Raises ConfigError for options that do not fit, RunError and CheckpointError for a bad source, and ExportError if the
    export is not what was trained.
    """
    checkpoint = find_checkpoint(source)
    contents = contents_of(read_checkpoint(checkpoint, names=[]))
    form, base_weights = _form_of(checkpoint, contents, format, dtype), contents.base_weights or "full"
    _check_free(out, overwrite)
    service = ServiceClient(device="cpu", dtype=torch.float32, base_weights=base_weights)
    training = service.create_training_client_from_state(str(checkpoint))
    base, run = contents.base_model, run_of(checkpoint)
    kind = kind_of(training)
    sequences = probe_tokens(training.get_tokenizer(), run, training.get_info().max_length)
    with _new_folder(out) as folder:
        if form == "adapter":
            training.export_adapter(folder).result()
        else:
            training.export_model(folder, dtype=getattr(torch, dtype)).result()
            if run is not None:
                copy_settings(run / MODEL, folder)
        expected = trained_outputs(training, sequences, kind)
        checked = verify_export(
            expected,
            sequences,
            folder,
            base,
            kind,
            tolerance=TOLERANCES[dtype] if tolerance is None else tolerance,
            base_weights=base_weights,
        )
        loaded = "loading" if base_weights == "full" else "loading onto 4-bit base weights (nf4), as it was trained"
        _write_card(folder, run, training, adapter=form == "adapter", verified=f"After {loaded}, {checked}.")
    return checked


def _form_of(checkpoint: Path, contents: Contents, asked: ExportForm | None, dtype: ExportDtype) -> ExportForm:
    """The form that was asked for, or that was trained. Raises ConfigError for one that does not fit the checkpoint."""
    is_lora = contents.lora is not None
    form: ExportForm = asked or ("adapter" if is_lora else "merged")
    if form == "adapter" and not is_lora:
        raise ConfigError(f"{checkpoint} holds a whole model and no adapter: choose --format merged")
    if form == "adapter" and dtype != "float32":
        raise ConfigError("--dtype is for --format merged; an adapter is written as it was trained, in float32")
    if form == "merged" and contents.base_weights == "4bit":
        raise ConfigError(
            f"{checkpoint} was trained on 4-bit base weights, which are not merged: choose --format adapter"
        )
    return form


def write_weights(run: Run, training: TrainingClient) -> Path:
    """Write a run's adapter, or the whole model if all weights were trained, with a model card; returns the folder.

    Writes the folder whole or not at all. It does not check the result, as `lossbook export` does.
    """
    is_lora = training.get_info().is_lora
    target = run.adapter if is_lora else run.path / MODEL
    with _new_folder(target) as folder:
        (training.export_adapter(folder) if is_lora else training.export_model(folder)).result()
        _write_card(folder, run.path, training, adapter=is_lora)
    return target


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None if it belongs to none."""
    folder = checkpoint.resolve().parent.parent
    return folder if (folder / CONFIG).exists() else None


def check_repository(name: str) -> None:
    """Raise ConfigError unless this is a valid name of a hub repository, owner included."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"--push-to {name!r}: {' '.join(str(error).split())}") from None
    if name.count("/") != 1:
        raise ConfigError(f"--push-to {name!r}: give the owner too, as in owner/name")


def push(folder: Path, repository: str, *, public: bool = False, api: Any = None) -> str:
    """Upload a folder to a hub repository, which is created if it does not exist; returns its address.

    api: a huggingface_hub.HfApi; by default one with the user's login. Never asks for a login.

    Raises ExportError if the hub refuses or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = api or HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Exported by lossbook")
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise ExportError(
            f"{folder} was written and checked, but the upload to {repository} failed: {' '.join(str(error).split())[:300]}. "
            f"Log in with `hf auth login`, then: hf upload {repository} {folder}"
        ) from error
    return f"https://huggingface.co/{repository}"


def _write_card(folder: Path, run: Path | None, training: TrainingClient, *, adapter: bool, verified: str = "") -> None:
    info = training.get_info()
    card = model_card(
        run, info.model_name, adapter=adapter, kind=kind_of(training), value_head=info.value_head, verified=verified
    )
    disk.write_file(folder / "README.md", card)


def _check_free(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ConfigError(f"{out} is not empty: choose another folder, or --overwrite")
        if not any((out / name).exists() for name in ("adapter_config.json", "config.json")):
            raise ConfigError(f"{out} does not hold a model or an adapter, so it is not overwritten")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; an export needs a folder")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """`disk.new_folder`, whose OSError is an ExportError."""
    try:
        with disk.new_folder(target) as folder:
            yield folder
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
