"""Looking at data from the command line."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

import tyro

from ...datums.builders.truncation import Truncation
from ...datums.chat.masks import TrainOn
from ...datums.errors import ConfigError, DataFileError, LossbookError, located
from ...datums.files.report import DataReport
from ..run.configs import Setting

DataFile = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]


def show_data(
    file: DataFile,
    model: str = "tiny",
    count: int = 3,
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    html: Path | None = None,
    loss: str | None = None,
    loss_config: dict[str, Setting] = {},  # noqa: B006
    start_from: Path | None = None,
) -> None:
    """Print rows of a data file as the trainer will see them: learned tokens coloured, or in «» without colour.

    With --html FILE a page that needs nothing else is written instead; there --loss ID colours the tokens by logprob,
    loss, gradient and what else the loss reads under the model.

    Args:
        file: the data: .jsonl, .parquet, a pattern, or datasets:NAME:SPLIT.
        model: whose tokenizer and chat template to use: hub id, local directory, .gguf file, or 'tiny'.
        count: how many rows.
        train_on: which turns are learned.
        max_length: tokens a sequence may have.
        truncation: what happens to longer sequences.
        html: write a page into this file.
        loss: a registered loss (`lossbook losses list`) or module:function, to colour the page's tokens by.
        loss_config: settings of the loss, such as --loss-config beta 0.5.
        start_from: a run's folder or a checkpoint of this model, whose weights are taken in place of the base model's.
    """
    from ...datums.files.show import show_file
    from ...trainer.model.load import load_model

    options: dict[str, Any] = {"train_on": train_on, "max_length": max_length, "truncation": truncation}
    if html is None:
        if loss is not None or start_from is not None:
            raise ConfigError(f"--{'loss' if loss else 'start-from'} is for the page: give --html FILE too")
        show_file(file, load_model(model).tokenizer, count, **options)
        return
    if loss is None and (loss_config or start_from is not None):
        raise ConfigError(f"--{'loss-config' if loss_config else 'start-from'} belongs to a loss: give --loss ID too")
    page = _page(file, model, count, options, loss, loss_config, start_from)
    try:
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DataFileError(f"{html}: cannot be written: {error.strerror or error}") from error
    print(html)


def _page(
    file: str,
    model: str,
    count: int,
    options: dict[str, Any],
    loss_id: str | None,
    loss_config: dict[str, Setting],
    start_from: Path | None,
) -> str:
    from ...datums.files.show import named_datums
    from ...datums.files.sources import read_rows
    from ...losses.registry import get_loss
    from ...trainer import ServiceClient
    from ...trainer.model.load import load_model
    from ..inspect.data_page import loss_page, weights_page
    from ..run.runs import find_checkpoint

    if loss_id is None:
        tokenizer = load_model(model).tokenizer
        rows = [one for row in read_rows(file, limit=count) for one in named_datums(row, tokenizer, **options)]
        return weights_page(Path(file).name, rows, tokenizer)
    loss = get_loss(loss_id, **loss_config)  # a misspelt one ends here, before anything is loaded
    checkpoint = None if start_from is None else str(find_checkpoint(start_from))
    client = ServiceClient().create_reference_client(base_model=model, model_path=checkpoint)
    rows = [one for row in read_rows(file, limit=count) for one in named_datums(row, client.get_tokenizer(), **options)]
    under = str(start_from) if start_from is not None else Path(model).name if Path(model).exists() else model
    try:
        return loss_page(f"{Path(file).name}: {loss.name} under {under}", rows, loss, client)
    except LossbookError as error:  # what the loss cannot use: it knows datums, which are the rows in their order
        raise located(error, file) from error


def report_data(
    file: DataFile,
    eval_data: str | None = None,
    model: str = "tiny",
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
    limit: int | None = None,
    json: bool = False,
) -> None:
    """Print what becomes of every row: how many are kept, cut and dropped and why, lengths, labels, formats, repetitions.

    Nothing is trained on, and a bad row does not end it: it is counted and named.

    Args:
        file: the data: .jsonl, .parquet, a pattern, or datasets:NAME:SPLIT.
        eval_data: held-out data; reported too, with the rows of it that are trained on.
        model: whose tokenizer and chat template to use: hub id, local directory, .gguf file, or 'tiny'.
        train_on: which turns are learned.
        max_length: tokens a sequence may have.
        truncation: what happens to longer sequences.
        limit: how many rows of each to read.
        json: print it as JSON instead.
    """
    from ...trainer.model.load import load_model

    tokenizer = load_model(model).tokenizer
    options: dict[str, Any] = {"train_on": train_on, "max_length": max_length, "truncation": truncation}
    sources = {"data": file} if eval_data is None else {"data": file, "eval_data": eval_data}
    reports = {name: _report(source, tokenizer, limit, options) for name, source in sources.items()}
    both = reports["eval_data"].repeated_from(reports["data"]) if eval_data is not None else None
    if json:
        found = {name: report.as_dict() for name, report in reports.items()}
        print(json_format.dumps(found if both is None else {**found, "in_both": both.as_dict()}, indent=2))
        return
    for name, source in sources.items():
        print(f"{source}\n{reports[name].render()}\n")
    if both is not None:
        print(f"held-out rows that are trained on  {both}")


def _report(source: str, tokenizer: Any, limit: int | None, options: dict[str, Any]) -> DataReport:
    from ...datums.files.report import survey
    from ...datums.files.rows import datums_from_row
    from ...datums.files.sources import read_rows

    report = DataReport()
    rows = read_rows(source, limit=limit)
    for _ in survey(rows, lambda row: datums_from_row(row, tokenizer, **options), report, on_error="drop"):
        pass
    return report
