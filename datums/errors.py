"""Every error that lossbook raises on purpose: one class for a kind of mistake.

Each is a `LossbookError` and also the builtin that a reader would catch (`ValueError`, `TypeError`, ...).
Messages say who wanted what, where exactly it was not (datum, key, position), what is there instead, and the
likeliest mend.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LossbookError(Exception):
    """Base of all errors that lossbook raises on purpose."""


class LengthMismatchError(LossbookError, ValueError):
    """Two things that must have one entry per position have different lengths."""


class AlignmentError(LossbookError, ValueError):
    """`target_tokens` are not the input tokens shifted by one."""


class DtypeError(LossbookError, TypeError):
    """A value has a type that would lose information if it were converted."""


class ShapeError(LossbookError, ValueError):
    """A tensor's shape disagrees with its data or with what a loss declared."""


class TokenRangeError(LossbookError, ValueError):
    """A token id is negative or outside the model's vocabulary."""


class MissingInput(LossbookError, KeyError):
    """A loss reads a key that a datum does not carry."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0]) if self.args else ""


class UnknownInput(LossbookError, ValueError):
    """A datum carries a key that the loss does not read (under `strict=True`), or a likely misspelling."""


class NonFiniteLossInput(LossbookError, ValueError):
    """NaN or infinity where a loss would read it."""


class InvalidLogprobError(LossbookError, ValueError):
    """A log-probability above zero by more than rounding (1e-4 nats)."""


class NonFiniteLossError(LossbookError, ArithmeticError):
    """A loss or its gradient came out NaN or infinite."""


class NonDifferentiableLossError(LossbookError, RuntimeError):
    """A loss does not depend on the model's outputs, so nothing would be learned."""


class LossContractError(LossbookError, TypeError):
    """A loss function returned something else than its contract says, or changed its inputs."""


class TraceError(LossbookError, ValueError):
    """A loss has no graph of one datum; the message says why, and on which line."""


class LossConfigError(LossbookError, ValueError):
    """A loss's configuration has an unknown key, a wrong type or a value out of bounds."""


class LossCheckError(LossbookError, AssertionError):
    """A loss breaks a law that `lossbook.losses.testing` checks; the message names the check and an example.

    `report` holds the outcomes of all checks where `check_loss` raised it, else None.
    """

    report: object = None


class UnknownLossError(LossbookError, KeyError):
    """No loss is registered under this name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DuplicateLossError(LossbookError, ValueError):
    """A name is registered already."""


class EmptyLossError(LossbookError, ValueError):
    """Nothing is left to train on: all weights are zero, or there are no datums."""


class LabelError(LossbookError, ValueError):
    """A label or another flag of a datum is neither 0 nor 1."""


class WeightsError(LossbookError, ValueError):
    """Weights are missing, negative or zero in total where a mean needs them positive."""


class TruncationError(LossbookError, ValueError):
    """A sequence is longer than `max_length`, or truncation would remove every label.

    `labels` is how many label tokens the refused sequence had.
    """

    labels: int = 0


class DatumDropped(TruncationError):
    """A sequence is too long and `truncation="drop"` was chosen: `build_datums` counts it and goes on."""


class BiasedLogprobError(LossbookError, ValueError):
    """Sampling logprobs belong to another distribution than the one that was sampled from."""


class MessageError(LossbookError, ValueError):
    """A chat message is malformed; the message says which one."""


class TemplateError(LossbookError, ValueError):
    """A chat template cannot give a trustworthy mask of assistant tokens."""


class DataFileError(LossbookError, ValueError):
    """A row of a data file cannot be read; the message names file and row."""


class OptimizerError(LossbookError, ValueError):
    """An optimizer step was asked for with impossible numbers, or with nothing accumulated."""


class NonFiniteGradientError(LossbookError, ArithmeticError):
    """A gradient is NaN or infinite at `optim_step`; nothing was changed."""


class CheckpointError(LossbookError, RuntimeError):
    """A checkpoint is missing, damaged, unsafe or made for another model."""


class ModelError(LossbookError, ValueError):
    """A model cannot be loaded, or cannot do what was asked of it."""


class WorkerError(LossbookError, RuntimeError):
    """A client was called where its answer could never come: inside one of its own operations, or after a fork."""


class ConfigError(LossbookError, ValueError):
    """A recipe's configuration file cannot be read, or has an unknown key or a value of the wrong kind."""


class RunError(LossbookError, RuntimeError):
    """A run's folder is taken, is no run, or belongs to a run with other settings."""


class ExportError(LossbookError, RuntimeError):
    """What was exported is not what was trained, or could not be written or sent."""


class TaskError(LossbookError, ValueError):
    """A task is unknown, or cannot give the questions asked for."""


class RewardError(LossbookError, ValueError):
    """A reward function or an environment failed, or returned something that is no reward."""


class MissingExtraError(LossbookError, ImportError):
    """An optional package is not installed; the message holds the pip command."""


class UnseenFailureWarning(UserWarning):
    """A call failed, and its future and client went away before anybody looked at the failure."""


def located(error: LossbookError, place: str) -> LossbookError:
    """The same error with the place where it happened (`pair 3`, `data.jsonl, line 7`) put before its message."""
    moved = type(error)(f"{place}: {error}")
    moved.__dict__.update(error.__dict__)
    return moved


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """` Did you mean 'weights'?` when a known name is close, else the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""
