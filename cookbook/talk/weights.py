"""What `sample` and `chat` sample from: the weights of a run or a checkpoint, or a model as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...datums.errors import ConfigError, LossbookError, RunError
from ..export.export import run_of
from ..run.configs import torch_dtype
from ..run.names import CHECKPOINTS, CONFIG, METRICS
from ..run.runs import find_checkpoint, read_settings
from ..settings.choices import Precision

if TYPE_CHECKING:
    from ...trainer import SamplingClient

#: Prompts as turns of the chat template, or as plain text.
Form = Literal["chat", "raw"]


@dataclass(frozen=True)
class Weights:
    """Weights to sample from.

    sampler      samples from them
    tokenizer    the model's
    max_length   the most tokens of its context; None where it has no limit
    is_chat      whether prompts are turns of the model's chat template, as in the run's training
    """

    sampler: SamplingClient
    tokenizer: Any
    max_length: int | None
    is_chat: bool


def load_weights(
    source: str, *, form: Form | None = None, device: str | None = None, dtype: Precision | None = None
) -> Weights:
    """The weights that a word of the command line names: a run's folder (its newest checkpoint), a checkpoint, or a model.

    form: of prompts; None: as in the run's training.

    Raises RunError for a folder that is none of these, CheckpointError, ModelError, and ConfigError where the chat template
    is asked for and there is none.
    """
    from ...trainer import ServiceClient
    from ...trainer.checkpoint.contents import contents_of
    from ...trainer.checkpoint.folder import read_checkpoint

    checkpoint = checkpoint_of(source)
    options: dict[str, Any] = {"device": device, "dtype": torch_dtype(dtype)}
    if checkpoint is None:
        sampler = ServiceClient(**options).create_sampling_client(base_model=source)
        run = Path(source).parent if is_run(Path(source).parent) else None  # runs/sft/model
    else:
        contents, run = contents_of(read_checkpoint(checkpoint, names=[])), run_of(checkpoint)
        if contents.value_head and run is not None:
            raise RunError(f"{source} holds a reward model, which scores answers and writes none: Scorer({source!r})")
        service = ServiceClient(base_weights=contents.base_weights or "full", **options)
        sampler = service.create_sampling_client(str(checkpoint))
    tokenizer = sampler.get_tokenizer()
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if form == "chat" and not has_template:
        raise ConfigError(f"{source} has no chat template: leave --chat-template out")
    is_chat = has_template and (trained_as_chat(run) if form is None else form == "chat")
    max_length = sampler.in_turn("max_length", lambda frozen: frozen.facts.max_length).result()
    return Weights(sampler, tokenizer, max_length, is_chat)


def checkpoint_of(source: str) -> Path | None:
    """The checkpoint that is meant; None for a model. Raises RunError for a folder that is none of these."""
    folder = Path(source)
    if not folder.is_dir():
        looks_like_a_path = source.startswith((".", "/", "~")) or folder.parts[:1] == ("runs",)
        if looks_like_a_path and not folder.is_file():
            raise RunError(f"there is no folder {source}; `lossbook runs list` shows the runs that there are")
        return None
    from ...trainer.checkpoint.manifest import MANIFEST_NAME

    if (folder / MANIFEST_NAME).exists() or is_run(folder):
        return find_checkpoint(folder)
    if (folder / "adapter_config.json").exists():
        run = f": give its run, {folder.parent}" if is_run(folder.parent) else ", and its run is not beside it"
        raise RunError(f"{folder} is an adapter for peft{run}")
    return None


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run; the folder of a model has a config.json too."""
    return (folder / CONFIG).exists() and any((folder / name).exists() for name in (METRICS, CHECKPOINTS))


def trained_as_chat(run: Path | None) -> bool:
    """Whether the run's prompts were turns of the chat template; so are those of a model by itself.

    Questions of tasks and problems of `train rl` are. In rows of data, messages are, and texts are not: the first row says
    which, as long as the data are there.
    """
    from ...datums.files.sources import read_rows

    settings = {} if run is None else read_settings(run)
    if not settings.get("data") or "group_size" in settings:
        return True
    try:
        row = next(read_rows(str(settings["data"]), limit=1), {})
    except LossbookError:  # they were moved, or need a package that is not here
        return True
    text = next((row[key] for key in ("prompt", "chosen", "completion", "text") if key in row), None)
    return not isinstance(text, str)
