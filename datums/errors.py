"""Every error that lossbook raises on purpose: one class for each kind of mistake.

Each is a `LossbookError` and also the builtin that a reader would catch (`ValueError`, `TypeError`, ...). A message says
what was expected, where it is missing or wrong (datum, key, position), what is there instead, and the likeliest fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LossbookError(Exception):
    """Base of all errors that lossbook raises on purpose."""


class LengthMismatchError(LossbookError, ValueError):
    """Two things that must have one entry per position have different lengths."""


class AlignmentError(LossbookError, ValueError):
    """`target_tokens` are not the input tokens shifted by one, or two tokenizations are of different texts."""


class DtypeError(LossbookError, TypeError):
    """A value has a type whose conversion would lose information."""


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
    """A loss function returned something other than its contract says, or changed its inputs."""


class TraceError(LossbookError, ValueError):
    """A loss cannot be traced for one datum; the message says why, and on which line."""


class LossConfigError(LossbookError, ValueError):
    """A loss's configuration has an unknown key, a wrong type or a value out of bounds."""


class LossCheckError(LossbookError, AssertionError):
    """A loss breaks a law that `lossbook.losses.testing` checks; the message names the law and an example.

    `report` holds the outcomes of all checks where `check_loss` raised it, else None.
    """

    report: object = None


class UnknownArgument(LossbookError, TypeError):
    """A public call got an argument that it does not take, or lacks one that it needs."""


class UnknownLossError(LossbookError, KeyError):
    """No loss is registered under this name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DuplicateLossError(LossbookError, ValueError):
    """A loss is already registered under this name."""


class EmptyLossError(LossbookError, ValueError):
    """There is nothing to train on: all weights are zero, or there are no datums."""


class RowLeftOut(EmptyLossError):
    """A row says that nothing of it is to be learned (`weight` 0): `build_datums` counts it and goes on."""


class LabelError(LossbookError, ValueError):
    """A label or another flag of a datum is neither 0 nor 1."""


class WeightsError(LossbookError, ValueError):
    """Weights are missing, negative or add up to 0 where a mean needs a positive sum."""


class TruncationError(LossbookError, ValueError):
    """A sequence is longer than `max_length`, or truncation would remove every label.

    `labels` is how many label tokens the refused sequence had.
    """

    labels: int = 0


class DatumDropped(TruncationError):
    """A sequence is too long under `truncation="drop"`: `build_datums` counts it and goes on."""


class BiasedLogprobError(LossbookError, ValueError):
    """Sampling logprobs are not those of the distribution that was sampled from."""


class MessageError(LossbookError, ValueError):
    """A chat message is malformed; the message says which one."""


class TemplateError(LossbookError, ValueError):
    """A chat template cannot give a trustworthy mask of assistant tokens."""


class DataFileError(LossbookError, ValueError):
    """A row of a data file cannot be read; the message names file and row."""


class OptimizerError(LossbookError, ValueError):
    """An optimizer step with invalid numbers, or without accumulated gradients."""


class NonFiniteGradientError(LossbookError, ArithmeticError):
    """A gradient is NaN or infinite at `optim_step`; nothing was changed."""


class CheckpointError(LossbookError, RuntimeError):
    """A checkpoint is missing, damaged, unsafe or made for another model."""


class CheckpointNotFoundError(CheckpointError, LookupError):
    """There is no session, training run or checkpoint of that name, or not any more."""


class CheckpointExistsError(CheckpointError):
    """A checkpoint has that name already, or is already as it was to be made."""


class ModelError(LossbookError, ValueError):
    """A model cannot be loaded, or does not support the call."""


class WorkerError(LossbookError, RuntimeError):
    """A client was called where it cannot answer: inside one of its own operations, or after a fork."""


class WorkerDiedError(LossbookError, RuntimeError):
    """A worker process died or did not answer in time. All of its group were ended, and nothing of the call was applied."""


class SamplerError(LossbookError, RuntimeError):
    """A sampling server is away, refuses a request, or answers with something that cannot be trained on."""


class ConfigError(LossbookError, ValueError):
    """A recipe's configuration file cannot be read, or has an unknown key or a value of the wrong kind."""


class RunError(LossbookError, RuntimeError):
    """A run's folder is in use, holds no run, or belongs to a run with other settings."""


class ExportError(LossbookError, RuntimeError):
    """An export differs from the trained model, or could not be written or uploaded."""


class TaskError(LossbookError, ValueError):
    """A task is unknown, or cannot provide the requested questions."""


class RewardError(LossbookError, ValueError):
    """A reward function or an environment failed, or returned something other than a reward."""


class MissingExtraError(LossbookError, ImportError):
    """An optional package is not installed; the message gives the pip command."""


class UnseenFailureWarning(UserWarning):
    """A call failed, and its future and client were discarded before anyone read the failure."""


def located(error: LossbookError, location: str) -> LossbookError:
    """The same error with its location (`pair 3`, `data.jsonl, line 7`) before its message."""
    copy = type(error)(f"{location}: {error}")
    copy.__dict__.update(error.__dict__)
    return copy


@contextmanager
def panics_as(kind: type[LossbookError], what: str) -> Iterator[None]:
    """Raise a panic of a library in Rust, such as tokenizers, as an error of this kind.

    A panic is a BaseException, which `except Exception` lets through. A regular expression that takes too many steps is one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300]
        raise kind(
            f"{what} gave up: {reason}. Its tokenizer.json is damaged, or a regular expression in it too slow for this text"
        ) from None


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """` Did you mean 'weights'?` when a known name is close, else the empty string."""
    return nearest(name, known, count=1, cutoff=cutoff)


def nearest(name: str, known: Iterable[str], *, count: int = 3, cutoff: float = 0.6) -> str:
    """The same with up to `count` names, the likeliest first."""
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
