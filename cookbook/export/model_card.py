"""The model card (README.md) of an export: base model, loss, data, metrics, settings, and how to load it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...datums.errors import LossbookError
from ...losses.cards.card import card_of
from ...losses.variants.presets import find_preset
from ..inspect.token_records import read_loss
from ..redaction import redacted
from ..run.configs import mean_over_tokens
from ..run.names import CONFIG, METRICS, REPORT
from ..run.records import read_json, read_metrics, read_settings

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: Metrics shown with their first and last values, if recorded; likewise all that begin with these prefixes.
_SHOWN = ("loss", "nll", "grad_norm", "reward", "accuracy", "margin", "tokens_per_second")
_SHOWN_PREFIXES = ("held_out", "eval", "reward")
_PACKAGES = ("lossbook", "torch", "transformers", "peft", "safetensors")


def model_card(
    run: Path | None, base_model: str, *, adapter: bool, kind: str, value_head: bool = False, verified: str = ""
) -> str:
    """The card's text, with metadata for the hub. Secrets are redacted.

    run        the run's folder; None if only a checkpoint is known
    kind       "decoder", "encoder", or "masked-lm" for an encoder with its masked-LM head
    verified   the result of the comparison with the trainer; "" if none was made
    """
    settings = read_settings(run) if run is not None and (run / CONFIG).exists() else {}
    parts = [
        _metadata(base_model, settings, adapter=adapter, kind=kind),
        f"# {_inline(run.name) if run is not None else 'A model'}\n\n{_summary(base_model, settings, adapter)}",
        _loading(base_model, adapter=adapter, kind=kind, value_head=value_head),
        _section("Checked", verified or "Written at the end of training and not checked; `lossbook export` checks it."),
        _loss_section(settings, run),
        _section("Numbers", _metrics_table(run)),
        _section("Data", _fenced(_report(run))),
        _section("Settings", _fenced(json.dumps(settings, indent=2), "json") if settings else ""),
        _section("Versions", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
    ]
    return redacted("\n\n".join(part for part in parts if part) + "\n")


def _metadata(base_model: str, settings: Mapping[str, Any], *, adapter: bool, kind: str) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=base_model if _HUB_ID.fullmatch(base_model) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation" if kind == "decoder" else "feature-extraction",
        tags=["lossbook", *([str(settings["loss"])] if "loss" in settings else []), *(["lora"] if adapter else [])],
    )
    return f"---\n{data.to_yaml().strip()}\n---"


def _summary(base_model: str, settings: Mapping[str, Any], adapter: bool) -> str:
    content = (
        f"A LoRA adapter for {_code(base_model)}, trained"
        if adapter
        else f"A model with all weights trained from {_code(base_model)}"
    )
    loss = f" with the loss {_code(str(settings['loss']))}" if "loss" in settings else ""
    return f"{content}{loss} by lossbook."


def _loading(base_model: str, *, adapter: bool, kind: str, value_head: bool) -> str:
    auto = {"decoder": "AutoModelForCausalLM", "masked-lm": "AutoModelForMaskedLM"}.get(kind, "AutoModel")
    given = "masked_lm_head=True" if kind == "masked-lm" else ""
    if adapter and base_model in ("tiny", "tiny-encoder"):
        build = "build_tiny_model" if base_model == "tiny" else "build_tiny_encoder"
        code = (
            f"from lossbook.trainer.model.tiny import {build}\nfrom peft import PeftModel\n\n"
            f'model = PeftModel.from_pretrained({build}({given}), "FOLDER")'
        )
    elif adapter and not _HUB_ID.fullmatch(base_model):
        code = (
            "from lossbook.trainer.model.load import load_model  # reads directories and .gguf files\n"
            "from peft import PeftModel\n\n"
            f'model = PeftModel.from_pretrained(load_model({", ".join([json.dumps(Path(base_model).name), *([given] if given else [])])}).module, "FOLDER")'
        )
    elif adapter:
        code = (
            f"from peft import PeftModel\nfrom transformers import {auto}\n\n"
            f'model = PeftModel.from_pretrained({auto}.from_pretrained("{base_model}"), "FOLDER")'
        )
    else:
        code = (
            f"from transformers import {auto}, AutoTokenizer\n\n"
            f'model = {auto}.from_pretrained("FOLDER", dtype="auto")\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )
    notes = ["FOLDER is this folder, or its name on the hub."]
    if not adapter and kind == "decoder":
        notes.append("vLLM reads this layout too (`vllm serve FOLDER`), but that was not tested here.")
    if kind == "encoder":
        notes.append(
            "An embedding is the mean of `last_hidden_state` over the tokens, unless the settings name another pooling."
        )
    if kind == "masked-lm":
        notes.append("A text's vector over the vocabulary has the largest log(1 + relu(logit)) of its tokens (SPLADE).")
    if value_head:
        notes.append(
            "`value_head.safetensors` holds the weight [1, d] and the bias [1] that map hidden states to values."
        )
    return _section("Loading", _fenced(code, "python") + "\n\n" + " ".join(notes))


def _loss_section(settings: Mapping[str, Any], run: Path | None) -> str:
    if "loss" not in settings:
        return ""
    name, config = str(settings["loss"]), settings.get("loss_config") or {}
    module, colon, _ = name.partition(":")
    try:
        if colon and module not in sys.modules and find_preset(name) is None:  # no code runs that a run's folder names
            text = _recorded_loss(run, name)
        else:
            text = "\n\n".join(str(card_of(part)) for _, part in mean_over_tokens(name, dict(config)).parts)
    except (
        LossbookError,
        ImportError,
        TypeError,
        ValueError,
    ) as error:  # a function that is missing here, other settings
        text = f"{name} {config or ''}\n({type(error).__name__}: its card needs the module it is defined in)"
    return _section(f"Loss: {_inline(name)}", _fenced(text))


def _recorded_loss(run: Path | None, name: str) -> str:
    """What loss.json says of a loss whose module is not imported here."""
    recorded = read_loss(run) if run is not None else {}
    parts = [f"{part['name']}\n  {part['formula']}\n\n{part['description']}" for part in recorded.get("parts", ())]
    return "\n\n".join([str(recorded.get("loss", name)), *parts])


def _metrics_table(run: Path | None) -> str:
    rows = read_metrics(run / METRICS) if run is not None else []
    rows = [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in rows]
    names = sorted({key for row in rows for key in row if key in _SHOWN or key.startswith(_SHOWN_PREFIXES)})
    if not names:
        return ""
    lines = ["| | first | last | step |", "|---|---|---|---|"]
    for name in names:
        values = [(row["step"], row[name]) for row in rows if name in row]
        lines.append(f"| {_inline(name)} | {values[0][1]:.4g} | {values[-1][1]:.4g} | {values[-1][0]} |")
    return "\n".join(lines)


def _report(run: Path | None) -> str:
    report = None if run is None else read_json(run / REPORT)
    counts = report.items() if isinstance(report, dict) else ()
    return "\n".join(f"{key}: {value}" for key, value in counts if isinstance(value, int | float))


def _inline(text: str) -> str:
    """Data inside a line of Markdown: no markup, one line."""
    return re.sub(r"([\\`\[\]|])", r"\\\1", escape(" ".join(text.split()), quote=False))


def _code(text: str) -> str:
    plain = " ".join(text.replace("`", "'").split())
    return f"`{plain}`"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _fenced(text: str, language: str = "") -> str:
    """A block of code; its fence is longer than any in the text."""
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text))) if "`" in text else "```"
    return f"{fence}{language}\n{text}\n{fence}" if text else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
