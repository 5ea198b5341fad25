"""The checks of `lossbook doctor`. Each yields findings and changes nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..redaction import is_secret_name, redacted
from .finding import Finding

#: With less free space than this (bytes), the checkpoints of a small model may not fit.
LITTLE_SPACE = 2 * 10**9
REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "safetensors",
    "pydantic",
    "numpy",
    "tyro",
    "rich",
    "huggingface_hub",
    "httpx2",
)
#: By import name: the extra that installs the package, and its purpose.
OPTIONAL: dict[str, tuple[str, str]] = {
    "hypothesis": ("testing", "testing losses (check_loss, lossbook losses check)"),
    "reasoning_gym": ("data", "tasks that check their own answers (--task)"),
    "math_verify": ("data", "comparing mathematical answers (--reward math_verify)"),
    "datasets": ("data", "data sets from the hub or saved on disk (datasets:NAME:SPLIT)"),
    "pyarrow": ("data", "Parquet and .zst files"),
    "matplotlib": ("plot", "plots of curves"),
    "gguf": ("gguf", "reading .gguf models"),
    "tensorboard": ("tensorboard", "--log-to tensorboard"),
    "wandb": ("wandb", "--log-to wandb"),
    "mlflow": ("mlflow", "--log-to mlflow"),
    "ray": ("workers", "--workers"),
    "trackio": ("trackio", "--log-to trackio"),
}
#: GPU kernels, and what uses them.
KERNELS = {
    "cut_cross_entropy": "a head that is used only on request: ServiceClient(head_backend='cut-cross-entropy')",
    "bitsandbytes": "frozen weights in 4 bits, on request: --base-weights 4bit, ServiceClient(base_weights='4bit')",
    "triton": "the GPU compiler behind liger-kernel, cut-cross-entropy and torch.compile",
    "liger_kernel": "fused norms, rotations and MLPs on a GPU; a head on request: ServiceClient(head_backend='liger')",
}
#: Environment variables that change what lossbook does, with their effect.
VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "which GPUs are visible",
    "HF_ENDPOINT": "where models are downloaded from",
    "HF_HOME": "where downloaded models are kept",
    "HF_HUB_CACHE": "where downloaded models are kept",
    "HF_HUB_OFFLINE": "1: nothing is downloaded",
    "HF_TOKEN": "login to the hub",
    "LOSSBOOK_CACHE": "where converted GGUF models are kept",
    "LOSSBOOK_SAMPLER_API_KEY": "login to the server of --sampler-url",
    "MLFLOW_EXPERIMENT_NAME": "experiment for --log-to mlflow",
    "MLFLOW_TRACKING_URI": "server for --log-to mlflow",
    "NO_COLOR": "plain output",
    "OMP_NUM_THREADS": "number of threads for torch",
    "PYTORCH_CUDA_ALLOC_CONF": "how GPU memory is allocated",
    "TRACKIO_SPACE_ID": "Space for --log-to trackio",
    "TRANSFORMERS_OFFLINE": "1: nothing is downloaded",
    "WANDB_API_KEY": "login for --log-to wandb",
    "WANDB_MODE": "with offline, --log-to wandb only writes files",
    "WANDB_PROJECT": "project for --log-to wandb",
}


def machine() -> Iterator[Finding]:
    """Python, the processor, torch and its devices."""
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Finding("FAIL" if old else "ok", "Python", f"{version} on {platform.system()} {platform.machine()}")
    yield Finding("ok", "torch", f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"{threads} threads on {cores} cores"
    more = threads > cores
    yield Finding(
        "warn" if more else "ok", "CPU", text + (": more threads than cores, set OMP_NUM_THREADS" if more else "")
    )
    yield from _accelerators()


def _accelerators() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: pass dtype float32"
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding("ok", f"GPU {index}", f"{device.name}, {memory}, {bf16}, CUDA {torch.version.cuda}")
    if torch.cuda.device_count():
        return
    if torch.backends.mps.is_available():
        yield Finding("note", "GPU", "Apple MPS is available (--device mps) but not covered by lossbook's tests")
    elif shutil.which("nvidia-smi"):
        built = "is built without CUDA" if torch.version.cuda is None else "sees no device"
        yield Finding("warn", "GPU", f"nvidia-smi is installed, but torch {torch.__version__} {built}")
    else:
        yield Finding("note", "GPU", "none; everything runs on the CPU")


def packages() -> Iterator[Finding]:
    """Required packages, optional ones, and GPU kernels."""
    from ... import __version__

    yield Finding("ok", "lossbook", f"{__version__} in {redacted(str(Path(__file__).resolve().parents[2]))}")
    for name in REQUIRED:
        try:
            importlib.import_module(name)
            yield Finding("ok", name, _version(name))
        except Exception as error:  # it may be installed but broken
            yield Finding("FAIL", name, f"cannot be imported: {type(error).__name__}: {error}")
    for name, (extra, purpose) in OPTIONAL.items():
        if _is_installed(name):
            yield Finding("ok", name, f"{_version(name)}: {purpose}")
        else:
            yield Finding("note", name, f"not installed: pip install 'lossbook[{extra}]' for {purpose}")
    for name, purpose in KERNELS.items():
        installed = _is_installed(name)
        text = f"{_version(name)}: {purpose}" if installed else f"not installed ('lossbook[cuda]'): {purpose}"
        yield Finding("ok" if installed else "note", name, text)


def losses() -> Iterator[Finding]:
    """The number of registered losses, and plug-ins that failed to load."""
    from ...losses import list_losses, list_presets, plugin_errors

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a broken plug-in is a finding below
        names = list_losses()
    yield Finding("ok" if names else "FAIL", "registered", f"{len(names)} losses, {len(list_presets())} presets")
    for name, reason in plugin_errors().items():
        yield Finding("warn", f"plug-in {name}", f"failed to load: {redacted(reason)}")


def files() -> Iterator[Finding]:
    """Whether runs can be written to the current folder, the free space, and the cached models."""
    here = Path.cwd()
    try:
        with tempfile.NamedTemporaryFile(dir=here, prefix=".lossbook-doctor-"):
            pass
        yield Finding("ok", "writing here", str(here))
    except OSError as error:
        yield Finding("FAIL", "writing here", f"{here}: {error.strerror or error}; choose another folder with --out")
    free = shutil.disk_usage(here).free
    little = free < LITTLE_SPACE
    more = ": checkpoints may not fit" if little else ""
    yield Finding("warn" if little else "ok", "free space here", f"{free / 10**9:.1f} GB{more}")
    from huggingface_hub.constants import HF_HUB_CACHE

    own = Path(os.environ.get("LOSSBOOK_CACHE") or "~/.cache/lossbook").expanduser()
    yield _cache("converted models", own, own.glob("gguf/*/config.json"))
    hub = Path(HF_HUB_CACHE)
    yield _cache("models from the hub", hub, hub.glob("models--*/refs"))


def _cache(subject: str, folder: Path, models: Iterator[Path]) -> Finding:
    names = sorted(path.parent.name.removeprefix("models--").replace("--", "/")[:40] for path in models)
    nearest = folder if folder.exists() else next(parent for parent in folder.parents if parent.exists())
    if not os.access(nearest, os.W_OK):
        return Finding("warn", subject, f"{folder} is not writable: no model can be added to it")
    return Finding("ok", subject, f"{folder}: {', '.join(names) or 'none yet'}")


def environment() -> Iterator[Finding]:
    """Environment variables that change what lossbook does. Values of secrets are not shown."""
    present = [name for name in VARIABLES if os.environ.get(name)]
    for name in present:
        value = "set, not shown" if is_secret_name(name) else redacted(os.environ[name])
        yield Finding("ok", name, f"{value}  ({VARIABLES[name]})")
    if not present:
        yield Finding("ok", "variables", f"none of {', '.join(VARIABLES)} is set")


def _is_installed(name: str) -> bool:
    """Whether the package has code: a folder of that name in the working directory has none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _version(name: str) -> str:
    for distribution in (name, name.replace("_", "-")):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"
