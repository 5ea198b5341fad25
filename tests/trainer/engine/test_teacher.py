"""A teacher beside the model in training: whole distributions through the engine, against the same from dense logits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from lossbook import AdamParams, Datum, ModelInput, ServiceClient, get_loss
from lossbook.datums.errors import (
    LengthMismatchError,
    LossContractError,
    MissingInput,
    ModelError,
    NonFiniteLossError,
    NonFiniteLossInput,
    TokenRangeError,
)
from lossbook.trainer.head import whole

TOKENS = [[5, 6, 7, 8, 9], [5, 6, 7, 11], [12, 13, 14]]
WEIGHTS = [[0.0, 1.0, 1.0, 2.0], [1.0, 0.0, 0.5], [0.0, 1.0]]
#: What a teacher reads instead, and where in it the student's positions are.
OTHERS = [[90, 91, 5, 6, 7, 8], [5, 6, 7], [30, 31, 32, 12, 13]]
PLACES = [[-1, 3, 4, 5], [0, -1, 2], [-1, 4]]


def datums(**extra: Any) -> list[Datum]:
    made = []
    for i, (tokens, weights) in enumerate(zip(TOKENS, WEIGHTS, strict=True)):
        inputs = {"target_tokens": tokens[1:], "weights": weights, **{key: one[i] for key, one in extra.items()}}
        made.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return made


def dense(student: Any, teacher: Any, loss: Any, *, others: bool = False) -> torch.Tensor:
    """The loss from whole logits of transformers' own forward, one sequence at a time."""
    own, given = [], []
    for tokens, instead, places in zip(TOKENS, OTHERS, PLACES, strict=True):
        own.append(student(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1))
        read = instead if others else tokens[:-1]
        table = teacher(torch.tensor([read])).logits[0].log_softmax(-1).detach()
        given.append(table[places] if others else table)
    outputs = {"vocab_logprobs": own, "teacher_vocab_logprobs": given}
    if "logprobs" in loss.outputs:
        outputs["logprobs"] = [t[range(len(t)), one[1:]] for t, one in zip(own, TOKENS, strict=True)]
    return loss(datums(), outputs)[0]


def moved(client: Any, seed: int, size: float = 0.3) -> Any:
    """The client with other weights."""
    generator = torch.Generator().manual_seed(seed)
    client.local.model.before_writing()
    with torch.no_grad():
        for parameter in client.local.model.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return client


def taken(client: Any) -> dict[str, torch.Tensor]:
    """The gradients, taken off."""
    parameters = client.local.model.trainable()
    own = {name: p.grad.clone() for name, p in parameters.items()}
    client.discard_gradients().result()
    return own


def teacher_of(service: ServiceClient) -> tuple[Any, Any]:
    """A client of frozen weights, and its module."""
    trained = moved(service.create_training_client("tiny"), 2)
    return trained.create_reference_client(), trained.local.model.module


def check(student: Any, teacher: Any, module: Any, loss: Any, data: list[Datum], *, others: bool = False) -> Any:
    """Value and gradients are those of dense logits; returns the output."""
    output = student.forward_backward(data, loss, teacher=teacher).result()
    seen = student.forward(data, loss, teacher=teacher).result()
    own, model = taken(student), student.local.model
    expected = dense(model.module, module, loss, others=others)
    wanted = torch.autograd.grad(expected, list(model.trainable().values()))
    assert output.metrics["loss:sum"] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert seen.metrics["loss:sum"] == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in zip(model.trainable(), wanted, strict=True):
        torch.testing.assert_close(own[name], gradient, rtol=2e-4, atol=2e-6)
    return output


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "WHOLE_BYTES", {"cpu": 3000, "other": 3000})  # two positions


@pytest.mark.parametrize(("batching", "tokens"), [("packed", 8), ("packed", 100), ("padded", 8), ("single", 100)])
@pytest.mark.usefixtures("small_tiles")
def test_value_and_gradients_are_those_of_dense_logits(batching: Any, tokens: int) -> None:
    service = ServiceClient(batching=batching, tokens_per_micro_batch=tokens)
    student, (teacher, module) = service.create_training_client("tiny"), teacher_of(ServiceClient())
    output = check(student, teacher, module, get_loss("full_gkd", beta=0.3), datums())
    assert (output.metrics["micro_batches"] > 1) == (tokens == 8)
    assert {"teacher_entropy", "agreement"} <= set(output.metrics)
    assert output.metrics["datums_without_grad"] == 0
    assert output.loss_fn_outputs == [{}, {}, {}]


@pytest.mark.usefixtures("small_tiles")
def test_adapters_also_on_the_head_and_a_teacher_that_reads_another_prompt() -> None:
    service = ServiceClient(tokens_per_micro_batch=8)
    student = moved(service.create_lora_training_client("tiny", rank=4, seed=0), 3, 0.1)
    teacher, module = teacher_of(service)  # of the same service
    data = datums(teacher_tokens=OTHERS, teacher_positions=PLACES)
    check(student, teacher, module, get_loss("full_reverse_kl", reduction="seq-mean-token-mean"), data, others=True)


def test_a_mixture_has_the_gradients_of_its_parts() -> None:
    service = ServiceClient()
    student, (teacher, _) = service.create_training_client("tiny"), teacher_of(service)
    parts = [get_loss("full_forward_kl"), get_loss("cross_entropy", reduction="token-mean")]
    student.forward_backward(datums(), 0.5 * parts[0] + 2 * parts[1], teacher=teacher).result()
    together = taken(student)
    student.forward_backward(datums(), parts[0], teacher=teacher).result()
    first = taken(student)
    student.forward_backward(datums(), parts[1]).result()
    second = taken(student)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, 0.5 * first[name] + 2 * second[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_student_taught_by_its_own_past_keeps_its_weights_and_moves_back(rank: int) -> None:
    student = ServiceClient().create_training_client("tiny", rank)
    past = student.create_reference_client()
    loss = get_loss("full_forward_kl")
    assert student.forward(datums(), loss, teacher=past).result().metrics["loss:sum"] == pytest.approx(0, abs=1e-6)
    moved(student, 1, 0.1)
    before = {name: p.detach().clone() for name, p in student.local.model.trainable().items()}
    first = student.forward_backward(datums(), loss, teacher=past).result().metrics["loss:sum"]
    assert all(torch.equal(p, before[name]) for name, p in student.local.model.trainable().items())
    last = first
    for _ in range(8):
        student.optim_step(AdamParams(learning_rate=3e-3))
        last = student.forward_backward(datums(), loss, teacher=past).result().metrics["loss:sum"]
    assert last < first / 2


def test_the_async_twins_take_a_teacher_too() -> None:
    service = ServiceClient()
    student, (teacher, _) = service.create_training_client("tiny"), teacher_of(service)

    async def both() -> list[float]:
        loss = get_loss("full_gkd")
        seen = await (await student.forward_async(datums(), loss, teacher=teacher))
        trained = await (await student.forward_backward_async(datums(), loss, teacher=teacher))
        return [seen.metrics["loss:sum"], trained.metrics["loss:sum"]]

    seen, trained = asyncio.run(both())
    assert seen == pytest.approx(trained)


def test_numbers_that_are_not_finite_change_nothing_and_name_the_model() -> None:
    student, (teacher, module) = ServiceClient().create_training_client("tiny"), teacher_of(ServiceClient())
    module.lm_head.weight.data[7] = torch.inf
    with pytest.raises(NonFiniteLossError, match="Are all weights of student and teacher finite"):
        student.forward_backward(datums(), "full_gkd", teacher=teacher).result()
    module.model.norm.weight.data[0] = torch.nan
    with pytest.raises(NonFiniteLossInput, match="the model's teacher_vocab_logprobs of datum 0 are nan at position 1"):
        student.forward_backward(datums(), "full_gkd", teacher=teacher).result()
    assert all(p.grad is None for p in student.local.model.trainable().values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher_tokens": OTHERS}, MissingInput, "datum 0 of 3 carries teacher_tokens but no teacher_positions"),
        ({"teacher_tokens": OTHERS, "teacher_positions": [[-1, -1, 3, 4], *PLACES[1:]]}, MissingInput,
         "datum 0 of 3: teacher_positions is -1 at position 1, where the weight is not 0"),
        ({"teacher_tokens": OTHERS, "teacher_positions": [PLACES[0], [0, 1, 3], PLACES[2]]}, TokenRangeError,
         "datum 1 of 3: teacher_positions is 3 at position 2, but the teacher reads 3 tokens"),
        ({"teacher_tokens": [*OTHERS[:2], [260]], "teacher_positions": [*PLACES[:2], [0, 0]]}, TokenRangeError,
         "datum 2 of 3: teacher_tokens has token 260 at position 0, but the teacher knows tokens 0 to 259"),
        ({"teacher_positions": [[0, 1, 2], [0, 1, 2], [0, 1]]}, LengthMismatchError, "datum 0 of 3: teacher_positions has 3"),
    ],
)  # fmt: skip
def test_what_a_teacher_is_to_read_is_checked_by_datum_and_key(change: Any, error: Any, message: str) -> None:
    service = ServiceClient()
    student, teacher = service.create_training_client("tiny"), service.create_reference_client("tiny")
    with pytest.raises(error, match=message):
        student.forward_backward(datums(**change), "full_gkd", teacher=teacher).result()


def test_what_cannot_be_taught_is_refused_in_one_line() -> None:
    service = ServiceClient()
    student, teacher = service.create_training_client("tiny"), service.create_reference_client("tiny")
    with pytest.raises(
        LossContractError, match=r"full_gkd compares with a teacher's whole distribution: give teacher="
    ):
        student.forward_backward(datums(), "full_gkd").result()
    with pytest.raises(LossContractError, match="cross_entropy reads no teacher's distributions: leave teacher= out"):
        student.forward_backward(datums(), "cross_entropy", teacher=teacher).result()
    with pytest.raises(ModelError, match="teacher is a str: give what create_reference_client returns"):
        student.forward_backward(datums(), "full_gkd", teacher="tiny")  # type: ignore[arg-type]
    head: Any = student.local.model.module.lm_head
    head.weight = torch.nn.Parameter(head.weight[:200].detach().clone())
    with pytest.raises(
        ModelError, match=r"the student's head has 200 tokens and the teacher's 260: choose a teacher of"
    ):
        student.forward_backward(datums(), "full_gkd", teacher=teacher).result()
