"""Datums: one sequence of tokens with what a loss reads about it; how to build, check, count and see them."""

from .builders import datum_from_model_input_weights, datum_from_tokens_weights
from .chat import TemplateCheck, check_template, datum_from_messages
from .files import Row, read_jsonl
from .pairs import datums_from_pairs
from .report import DataReport, build_datums
from .rows import datum_from_row, datums_from_file, datums_from_row
from .sources import read_rows
from .topk import datum_from_teacher_topk, datum_from_topk
from .trajectories import Trajectory, datums_from_trajectories
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
from .validation import check_aligned, check_datum, check_datums
from .view import render_datum, show_file

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
