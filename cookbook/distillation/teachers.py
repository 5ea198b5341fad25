"""Teachers: opening one, and its logprobs of a student's tokens.

Student and teacher may read different prompts before the same answer (a teacher with a hint). In both datums nonzero
weights mark the answer's tokens, which are compared in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datums.builders.topk import datum_from_teacher_topk
from ...datums.errors import LengthMismatchError, ModelError, panics_as
from ...datums.types import Datum, TensorData
from ...losses.returns import teacher_advantages
from ..run.names import CHECKPOINTS, METRICS
from ..run.runs import find_checkpoint
from ..settings.choices import SELF

if TYPE_CHECKING:
    import torch

    from ...trainer import ReferenceClient, TrainingClient

#: Text that tokenizers of one vocabulary but different rules cut differently.
PROBE = "The quick brown fox's 1,234 jumps:\n\tdef f(x): return x**2  # naïve Übung, 日本語 🙂"


def open_teacher(
    name: str,
    training: TrainingClient,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    tokens_per_micro_batch: int | None = None,
    any_tokenizer: bool = False,
) -> ReferenceClient:
    """A client of the teacher, whose weights do not change; the keywords are those of `ServiceClient`.

    name: "self", a run's folder, a checkpoint, or a model as `load_model` takes it. any_tokenizer: the loss takes a teacher
    with another tokenizer. Raises ModelError when it cannot be
    loaded or has another tokenizer, RunError for a run without a checkpoint, and CheckpointError.
    """
    from ...trainer import ServiceClient

    if name == SELF:
        return training.create_reference_client()
    service = ServiceClient(device=device, dtype=dtype, tokens_per_micro_batch=tokens_per_micro_batch)
    path = Path(name)
    if _is_run(path) or (path / "MANIFEST.json").exists():
        teacher = service.create_reference_client(model_path=str(find_checkpoint(path)))
    else:
        teacher = service.create_reference_client(base_model=name)
    if not any_tokenizer:
        check_same_tokenizer(training.get_tokenizer(), teacher.get_tokenizer(), name)
    return teacher


def check_same_tokenizer(student: Any, teacher: Any, name: str) -> None:
    """Raise ModelError with the first token that the tokenizers do not share; `name` is the teacher's."""
    own, other = student.get_vocab(), teacher.get_vocab()
    if own != other:
        tokens, others = ({i: token for token, i in vocabulary.items()} for vocabulary in (own, other))
        first = next(i for i in sorted(tokens.keys() | others.keys()) if tokens.get(i) != others.get(i))
        shown = [repr(known[first]) if first in known else "nothing" for known in (tokens, others)]
        raise ModelError(
            f"the teacher {name!r} has another tokenizer: token {first} is {shown[0]} for the student and {shown[1]} for "
            f"the teacher ({len(own)} and {len(other)} tokens). Logprobs can only be compared token by token: choose a "
            "teacher of the student's family"
        )
    pieces = []
    for whose, tokenizer in (("the student", student), (f"the teacher {name!r}", teacher)):
        with panics_as(ModelError, f"the tokenizer of {whose}"):
            pieces.append(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    if pieces[0] != pieces[1]:
        first = next((i for i, (a, b) in enumerate(zip(*pieces, strict=False)) if a != b), min(map(len, pieces)))
        raise ModelError(
            f"the teacher {name!r} has the student's vocabulary but cuts texts differently: of {PROBE[:20]!r}... token "
            f"{first} differs. Choose a teacher of the student's family"
        )


def shared_vocabulary(training: TrainingClient, teacher: ReferenceClient, *, samples: bool) -> int:
    """How many token ids both have: the heads of one family are padded to different sizes (Qwen2.5's 7B and 0.5B).

    samples: whether the student answers itself. Raises ModelError where it could then say tokens that the teacher lacks.
    """
    own, other = training.get_info().vocab_size or len(training.get_tokenizer()), teacher.vocab_size
    if samples and own > other:
        raise ModelError(
            f"the student's head has {own} rows and the teacher's {other}, so the student may sample tokens that the teacher "
            "does not know. Choose --mode off_policy, or a teacher with as wide a head"
        )
    return min(own, other, len(training.get_tokenizer()))


def with_teacher_logprobs(
    teacher: ReferenceClient, students: Sequence[Datum], teachers: Sequence[Datum]
) -> list[Datum]:
    """The students' datums with `teacher_logprobs` [N]: nats of their target tokens under the teacher, 0 on the prompt."""
    outputs = teacher.forward(teachers, "cross_entropy").result().loss_fn_outputs
    made = []
    for i, (student, other, output) in enumerate(zip(students, teachers, outputs, strict=True)):
        logprobs = _moved(output["logprobs"].to_numpy(), student, other, 0.0, i)
        made.append(Datum(student.model_input, {**student.loss_fn_inputs, "teacher_logprobs": TensorData(logprobs)}))
    return made


def with_teacher_advantages(datums: Sequence[Datum], cap: float | None) -> tuple[list[Datum], dict[str, float]]:
    """Datums with `sampling_logprobs` and `teacher_logprobs` [N], with `advantages` [N] as well; and metrics of them.

    cap: advantages are held within ±cap nats; None: as they are. `teacher_kl`: mean of sampling_logprobs -
    teacher_logprobs over answer tokens, an estimate of KL(student || teacher) in nats. `advantage_capped`: share beyond.
    """
    keys = ("sampling_logprobs", "teacher_logprobs", "weights")
    own, of_teacher, weights = ([d.loss_fn_inputs[key].to_numpy() for d in datums] for key in keys)
    rows = teacher_advantages(own, of_teacher, weights=weights, cap=cap)
    made = [
        Datum(d.model_input, {**d.loss_fn_inputs, "advantages": TensorData(row.float())})
        for d, row in zip(datums, rows, strict=True)
    ]
    gaps = np.concatenate([(p - t)[w != 0] for p, t, w in zip(own, of_teacher, weights, strict=True)])
    metrics = {"teacher_kl": float(gaps.mean())}
    return made, metrics if cap is None else {**metrics, "advantage_capped": float((np.abs(gaps) > cap).mean())}


def with_candidates(
    teacher: ReferenceClient,
    students: Sequence[Datum],
    teachers: Sequence[Datum],
    k: int,
    vocabulary: int | None = None,
) -> list[Datum]:
    """Datums of the students' tokens whose targets are the teacher's k likeliest tokens at each answer position.

    vocabulary: how many token ids the student has, if fewer than the teacher; others are no candidates. Logprobs stay those
    under the teacher's whole distribution.

    returns: as `datum_from_teacher_topk`: target_tokens and teacher_logprobs [N, k], weights [N] unchanged.
    """
    unknown = 0 if vocabulary is None else max(0, teacher.vocab_size - vocabulary)
    tops = teacher.top_logprobs(teachers, k + unknown).result()
    made = []
    for i, (student, other, top) in enumerate(zip(students, teachers, tops, strict=True)):
        tokens, values = (top.tokens, top.logprobs) if not unknown else _known(top.tokens, top.logprobs, k, vocabulary)
        ids = _moved(tokens, student, other, 0, i)
        logprobs = _moved(values, student, other, -np.inf, i)
        weights = student.loss_fn_inputs["weights"].to_numpy()
        made.append(datum_from_teacher_topk(all_tokens(student), ids, logprobs, weights))
    return made


def _known(tokens: np.ndarray, logprobs: np.ndarray, k: int, vocabulary: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first k candidates [N, k] of [N, more] whose ids are below `vocabulary`, in their order."""
    order = np.argsort(tokens >= (vocabulary or 0), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(tokens, order, 1), np.take_along_axis(logprobs, order, 1)


def all_tokens(datum: Datum) -> list[int]:
    """The N + 1 tokens of a datum: its input and its last target."""
    return [*datum.model_input.to_ints(), int(datum.loss_fn_inputs["target_tokens"].to_numpy()[-1])]


def answer_positions(datum: Datum) -> np.ndarray:
    """The positions of nonzero weight, in order: those that predict the answer's tokens."""
    return np.flatnonzero(datum.loss_fn_inputs["weights"].to_numpy())


def _moved(values: np.ndarray, student: Datum, teacher: Datum, fill: float, index: int) -> np.ndarray:
    """Values [N_teacher, ...] at the teacher's answer positions, moved to the student's [N_student, ...]; else `fill`.

    Raises LengthMismatchError when the two answers differ.
    """
    to, of = answer_positions(student), answer_positions(teacher)
    targets, others = (
        datum.loss_fn_inputs["target_tokens"].to_numpy()[rows] for datum, rows in ((student, to), (teacher, of))
    )
    if not np.array_equal(targets, others):
        first = next((k for k, (a, b) in enumerate(zip(targets, others, strict=False)) if a != b), len(targets))
        raise LengthMismatchError(
            f"pair {index}: the answers of student and teacher must have the same tokens, but have {len(targets)} and "
            f"{len(others)}, and differ from token {first} of the answer on. Does the prompt change how the answer is cut?"
        )
    moved = np.full((student.model_input.length, *values.shape[1:]), fill, dtype=values.dtype)
    moved[to] = values[of]
    return moved


def _is_run(path: Path) -> bool:
    return (path / CHECKPOINTS).is_dir() or (path / METRICS).exists()
