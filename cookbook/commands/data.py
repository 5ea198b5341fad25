"""`lossbook data ...`: show and report on data files."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ...datums import disk
from ...datums.choices import TrainOn, Truncation
from ...datums.errors import ConfigError, DataFileError, LossbookError, located
from ..settings.choices import Setting
from ..terminal import Column, console, table

if TYPE_CHECKING:
    from ...datums.files.report import DataReport

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
    """Print rows of a data file as the trainer sees them: learned tokens in colour, or in «» without colour.

    --html FILE writes a self-contained page instead. There --loss ID colours the tokens by logprob, loss, gradient and the
    other numbers that the loss reads, under the model.

    Args:
        file: the data: .jsonl, .parquet, a pattern, or datasets:NAME:SPLIT.
        model: the model whose tokenizer and chat template to use: hub id, local directory, .gguf file, or 'tiny'.
        count: number of rows.
        train_on: the turns that are learned.
        max_length: the most tokens of a sequence.
        truncation: how longer sequences are handled.
        html: write a page to this file.
        loss: a registered loss (`lossbook losses list`) or module:function to colour the page's tokens by.
        loss_config: settings of the loss, such as --loss-config beta 0.5.
        start_from: a run's folder or a checkpoint of this model, whose weights replace the base model's.
    """
    from ...datums.files.show import show_file
    from ...trainer.model.load import load_model

    options: dict[str, Any] = {"train_on": train_on, "max_length": max_length, "truncation": truncation}
    if html is None:
        if loss is not None or start_from is not None:
            raise ConfigError(f"--{'loss' if loss else 'start-from'} applies to the page only: add --html FILE")
        show_file(file, load_model(model).tokenizer, count, console=console(), **options)
        return
    if loss is None and (loss_config or start_from is not None):
        raise ConfigError(f"--{'loss-config' if loss_config else 'start-from'} needs a loss: add --loss ID")
    page = _page(file, model, count, options, loss, loss_config, start_from)
    try:
        disk.write_file(html, page)
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
    from ...datums.files.show import more_rows, named_datums
    from ...datums.files.sources import first_rows
    from ...losses.registry import get_loss
    from ...trainer import ServiceClient
    from ...trainer.model.load import load_model
    from ..inspect.data_page import loss_page, weights_page
    from ..run.runs import find_checkpoint

    first, is_more = first_rows(file, count)
    if is_more:
        print(more_rows(count), file=sys.stderr)
    if loss_id is None:
        tokenizer = load_model(model).tokenizer
        rows = [named for row in first for named in named_datums(row, tokenizer, **options)]
        return weights_page(Path(file).name, rows, tokenizer)
    loss = get_loss(loss_id, **loss_config)  # fails for a misspelt one before the model is loaded
    checkpoint = None if start_from is None else str(find_checkpoint(start_from))
    client = ServiceClient().create_reference_client(base_model=model, model_path=checkpoint)
    tokenizer = client.get_tokenizer()
    rows = [named for row in first for named in named_datums(row, tokenizer, **options)]
    under = str(start_from) if start_from is not None else Path(model).name if Path(model).exists() else model
    try:
        return loss_page(f"{Path(file).name}: {loss.name} under {under}", rows, loss, client)
    except LossbookError as error:  # errors of the loss name datums; add the file
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
    """Report on the rows of a data file: how many are kept, truncated and dropped and why, lengths, labels, repetitions.

    Nothing is trained. Bad rows are counted and named, and the report goes on.

    Args:
        file: the data: .jsonl, .parquet, a pattern, or datasets:NAME:SPLIT.
        eval_data: held-out data; reported too, with the held-out rows that also occur in the training data.
        model: the model whose tokenizer and chat template to use: hub id, local directory, .gguf file, or 'tiny'.
        train_on: the turns that are learned.
        max_length: the most tokens of a sequence.
        truncation: how longer sequences are handled.
        limit: the most rows to read from each file.
        json: print JSON instead.
    """
    from ...trainer.model.load import load_model

    tokenizer = load_model(model).tokenizer
    options: dict[str, Any] = {"train_on": train_on, "max_length": max_length, "truncation": truncation}
    sources = {"data": file} if eval_data is None else {"data": file, "eval_data": eval_data}
    reports = {name: _report(source, tokenizer, limit, options) for name, source in sources.items()}
    both = reports["eval_data"].repeated_from(reports["data"]) if eval_data is not None else None
    if json:
        values = {name: report.as_dict() for name, report in reports.items()}
        print(json_format.dumps(values if both is None else {**values, "in_both": both.as_dict()}, indent=2))
        return
    out = console()
    for name, source in sources.items():
        out.print(source, style="bold", soft_wrap=True)
        out.print(table(["", Column(text=True)], reports[name].lines(), heads=False))
        out.print()
    if both is not None:
        sentence = f"held-out rows that also occur in the training data  {both}"
        out.print(table([Column(text=True)], [(sentence,)], heads=False))


def _report(source: str, tokenizer: Any, limit: int | None, options: dict[str, Any]) -> DataReport:
    from ...datums.files.report import DataReport, survey
    from ...datums.files.rows import datums_from_row
    from ...datums.files.sources import read_rows

    report = DataReport()
    rows = read_rows(source, limit=limit)
    for _ in survey(rows, lambda row: datums_from_row(row, tokenizer, **options), report, on_error="drop"):
        pass
    return report
