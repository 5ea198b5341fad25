"""A sweep: everything is checked, then its runs are run, and their final numbers compared."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...datums import disk
from ...datums.errors import LossbookError, RunError, located
from ...datums.files.sources import source_files
from ...trainer.workers.torchrun_group import under_torchrun
from ..compare.show import print_comparison
from ..compare.summary import summarize
from ..redaction import redacted
from ..run.configs import adam_params
from ..run.names import CONFIG, LOCK, OWNER
from ..run.opening import FolderLock, Opening
from ..run.runs import find_checkpoint, read_settings, writing_run
from ..run.trackers import check_trackers
from ..settings.base import EXTENDABLE
from .grid import Combination, named
from .record import SWEEP, RunRecord, State, SweepRecord, new_record, read_sweep
from .runners import run_at_once, run_in_turn

LOGS = "logs"


def run_sweep(
    command: Sequence[str],
    main: Callable[[Any], Any],
    check: Callable[[Any], None],
    base: Any,
    grid: Mapping[str, Sequence[Any]],
    runs: Sequence[Combination],
    jobs: int = 1,
) -> int:
    """Run every combination in a folder of its own below `base.out`; returns 0, or 1 where a run failed.

    command: of the recipe; main: trains one run; check: raises for settings that the recipe cannot use.

    Raises the errors of any combination, naming it, before the first run; RunError for a folder that holds something else.
    After Ctrl-C the run at work saves, and SystemExit is raised.
    """
    folder = Path(base.out)
    if under_torchrun():
        raise RunError("a sweep under torchrun is not supported: use --workers, or a torchrun for each run")
    _check_folder(folder, resume=base.resume, overwrite=base.overwrite)
    for run in runs:
        _check(run, check)
    record = new_record(
        command, grid, base.settings(), [RunRecord(folder=run.name, values=_plain(run)) for run in runs]
    )
    configs = _left(runs, record, base)
    with writing_run(folder):
        disk.make_folder(folder)
    lock = FolderLock(folder)
    lock.take()
    lock.busy = True
    try:
        log = _Log(record, folder)
        record.write(folder)
        if jobs == 1:
            run_in_turn(main, configs, log)
        else:
            run_at_once(command, configs, log, jobs=jobs, logs=folder / LOGS)
    except (SystemExit, KeyboardInterrupt):
        print(f"the sweep in {folder} was stopped: {_counts(record)}; --resume goes on with it", file=sys.stderr)
        raise
    finally:
        lock.release()
    return _conclude(record, folder)


class _Log:
    """Notes the states of runs in the sweep's record, and prints a line for each."""

    def __init__(self, record: SweepRecord, folder: Path) -> None:
        self.record, self.folder = record, folder

    def begin(self, number: int) -> None:
        self.record.begin(number)
        self.record.write(self.folder)
        _rule(f"run {number + 1} of {len(self.record.runs)}: {named(self.record.runs[number].values)}")

    def end(self, number: int, state: State, error: str = "") -> None:
        self.record.end(number, state, error)
        self.record.write(self.folder)
        if state != "finished":
            print(f"{state}: {named(self.record.runs[number].values)}{': ' if error else ''}{error}", file=sys.stderr)


def _rule(text: str) -> None:
    """A heading between runs."""
    width = min(shutil.get_terminal_size().columns, 100)
    print(f"\n{f'── {text} ':─<{width}}", flush=True)


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raise RunError unless a sweep can begin, or go on, in the folder."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; a sweep needs a folder")
    if (folder / CONFIG).exists():
        raise RunError(f"{folder} is the folder of a run: choose another one for the sweep with --out")
    has_content = folder.exists() and any(path.name not in (LOCK, OWNER) for path in folder.iterdir())
    if (resume or (overwrite and has_content)) and read_sweep(folder) is None:
        raise RunError(f"{folder} holds no sweep: there is no {SWEEP} in it. Is --out the folder of the sweep?")
    if has_content and not resume and not overwrite:
        raise RunError(
            f"{folder} is not empty. Choose --resume to go on with the sweep in it, --overwrite to begin it again, or "
            "another folder with --out"
        )


def _check(run: Combination, check: Callable[[Any], None]) -> None:
    """Raise, naming the combination, what can be known of its run before it begins."""
    config = run.config
    try:
        check(config)
        check_trackers(config.log_to)
        for source in (getattr(config, "data", None), getattr(config, "eval_data", None)):
            if source is not None:
                source_files(source)
        if config.start_from is not None:
            find_checkpoint(config.start_from)
        if getattr(config, "steps", None):
            adam_params(config, 1, config.steps)
        if config.resume and _has_run(config.out):
            Opening(config.settings(), True, False, EXTENDABLE, config.defaults()).check(config.out)
    except LossbookError as error:
        raise located(error, named(run.values)) from None


def _left(runs: Sequence[Combination], record: SweepRecord, base: Any) -> list[tuple[int, Any]]:
    """The runs that are not finished yet, numbered, with their final settings."""
    numbered = list(enumerate(runs))
    if base.resume:
        return [(i, _as_it_goes_on(run.config)) for i, run in numbered if not _is_done(run, record.runs[i])]
    if base.overwrite:
        return [(i, run.config.model_copy(update={"overwrite": _has_run(run.config.out)})) for i, run in numbered]
    return [(i, run.config) for i, run in numbered]


def _has_run(folder: Path) -> bool:
    return (folder / CONFIG).exists()


def _as_it_goes_on(config: Any) -> Any:
    """The settings that continue a run which was begun, or begin one that was not."""
    return config.model_copy(update={"resume": _has_run(config.out), "overwrite": False})


def _is_done(run: Combination, record: RunRecord) -> bool:
    """Whether a resumed sweep's run is finished with these settings; then its record says so."""
    folder = Path(run.config.out)
    if not _has_run(folder) or summarize(folder).state != "finished":
        return False
    before, now = read_settings(folder), redacted(run.config.settings())
    if any(before.get(key, run.config.defaults().get(key)) != value for key, value in now.items()):
        return False  # such as more steps
    record.state = "finished"
    return True


def _plain(run: Combination) -> dict[str, Any]:
    """A combination's values as JSON has them."""
    settings = run.config.settings()
    return {name: value if "." in name else settings[name] for name, value in run.values.items()}


def _counts(record: SweepRecord) -> str:
    states = [run.state for run in record.runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _conclude(record: SweepRecord, folder: Path) -> int:
    """Print the comparison of the runs, what failed, and what to open next; returns the exit code."""
    summaries = [summarize(folder / run.folder) for run in record.runs if run.state == "finished"]
    readable = [summary for summary in summaries if summary.numbers]
    _rule(f"{folder}: {_counts(record)}")
    if readable:
        print_comparison(readable)
        print(f"\nlossbook runs compare {folder}\nlossbook runs report {folder}")
    failed = [run for run in record.runs if run.state == "failed"]
    for run in failed:
        print(f"failed: {named(run.values)}: {run.error}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(record.runs)} runs failed; --resume tries them again", file=sys.stderr)
    return 1 if failed else 0
