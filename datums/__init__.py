"""A datum is one sequence of tokens with the inputs of a loss. Here datums are built, checked, counted and shown."""

from typing import TYPE_CHECKING

if "." not in __name__:
    raise ImportError("datums/ is a part of the lossbook package: write `import lossbook.datums`")

from .lazy import lazy

if TYPE_CHECKING:
    from .builders.pairs import datums_from_pairs
    from .builders.tokens import datum_from_model_input_weights, datum_from_tokens_weights
    from .builders.topk import datum_from_teacher_topk, datum_from_topk
    from .builders.trajectories import Trajectory, datums_from_trajectories
    from .chat.masks import TemplateCheck, check_template, datum_from_messages
    from .checks.validation import check_aligned, check_datum, check_datums
    from .files.jsonl import Row, read_jsonl
    from .files.report import DataReport, build_datums
    from .files.rows import datum_from_row, datums_from_file, datums_from_row
    from .files.show import render_datum, show_file
    from .files.sources import read_rows
    from .types import (
        AdamParams,
        Datum,
        EncodedTextChunk,
        ModelInput,
        SamplingParams,
        TensorData,
        as_datum,
        as_model_input,
        as_tensor_data,
    )

__all__ = [
    "AdamParams",
    "DataReport",
    "Datum",
    "EncodedTextChunk",
    "ModelInput",
    "Row",
    "SamplingParams",
    "TemplateCheck",
    "TensorData",
    "Trajectory",
    "as_datum",
    "as_model_input",
    "as_tensor_data",
    "build_datums",
    "check_aligned",
    "check_datum",
    "check_datums",
    "check_template",
    "datum_from_messages",
    "datum_from_model_input_weights",
    "datum_from_row",
    "datum_from_teacher_topk",
    "datum_from_tokens_weights",
    "datum_from_topk",
    "datums_from_file",
    "datums_from_pairs",
    "datums_from_row",
    "datums_from_trajectories",
    "read_jsonl",
    "read_rows",
    "render_datum",
    "show_file",
]

#: Where each name comes from at its first use; type checkers read the imports above.
_HOMES = {
    ".builders.pairs": ("datums_from_pairs",),
    ".builders.tokens": ("datum_from_model_input_weights", "datum_from_tokens_weights"),
    ".builders.topk": ("datum_from_teacher_topk", "datum_from_topk"),
    ".builders.trajectories": ("Trajectory", "datums_from_trajectories"),
    ".chat.masks": ("TemplateCheck", "check_template", "datum_from_messages"),
    ".checks.validation": ("check_aligned", "check_datum", "check_datums"),
    ".files.jsonl": ("Row", "read_jsonl"),
    ".files.report": ("DataReport", "build_datums"),
    ".files.rows": ("datum_from_row", "datums_from_file", "datums_from_row"),
    ".files.show": ("render_datum", "show_file"),
    ".files.sources": ("read_rows",),
    ".types": (
        "AdamParams",
        "Datum",
        "EncodedTextChunk",
        "ModelInput",
        "SamplingParams",
        "TensorData",
        "as_datum",
        "as_model_input",
        "as_tensor_data",
    ),
}
__getattr__, __dir__ = lazy(__name__, _HOMES, __all__)
