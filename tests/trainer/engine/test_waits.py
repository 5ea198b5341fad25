"""On a GPU's path a micro-batch is read once and takes two uploads, whatever the loss, and what is wrong is still named.

Run on a CPU, with uploads and reads counted by benchmarks/counting.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.datums.errors import LossContractError, NonFiniteLossError, NonFiniteLossInput, ShapeError
from lossbook.losses.cards.examples import example_batch, kind_of
from lossbook.losses.spec.vocabulary import TEACHER
from lossbook.trainer.clients.reference import ReferenceClient
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.head.backward import Gradients
from lossbook.trainer.model.tiny import HIDDEN
from lossbook.trainer.transfer import counting_transfers

WIDE = {"teacher_embedding"}
NEEDED = {"dr_grpo": {"norm_length": 7}}


def loss_of(function: Callable[..., Any], **registration: Any) -> Any:
    """The loss that registering `function` gives; the registry is left as it was."""
    lb.register_loss(function.__name__, **registration)(function)
    try:
        return lb.get_loss(function.__name__)
    finally:
        lb.unregister_loss(function.__name__)


def shipped() -> list[str]:
    return [name for name in lb.list_losses() if lb.describe_loss(name).defined_in.startswith("lossbook.losses.")]


@pytest.fixture(scope="module")
def on_gpu_path(counting: ModuleType) -> Any:
    """A client of the tiny decoder, with a value head, that takes a GPU's path."""
    with counting.as_on_a_gpu():
        yield lb.ServiceClient(device="cpu", batching="packed").create_training_client("tiny", value_head=True)


def counted(counting: ModuleType, client: TrainingClient, call: Callable[[], Any]) -> Any:
    """The counts of one call, after the same call has warmed up."""
    call().result()
    counts = counting.Counts()
    with counting.watched(client, counts):
        call().result()
    return counts


@pytest.fixture(scope="module")
def teacher(on_gpu_path: TrainingClient) -> ReferenceClient:
    """A frozen copy of the client, in the same thread, where its operations are counted too."""
    return on_gpu_path.create_reference_client()


def with_vectors_as_wide_as_the_model(datums: list[lb.Datum]) -> list[lb.Datum]:
    """The datums with the vectors that a teacher gave as wide as the tiny decoder's."""
    wide = np.linspace(-1, 1, HIDDEN)
    return [
        lb.Datum(d.model_input, {**d.loss_fn_inputs, **dict.fromkeys(WIDE & set(d.loss_fn_inputs), wide)})
        for d in datums
    ]


@pytest.mark.parametrize("name", shipped())
def test_a_micro_batch_is_read_once_and_takes_two_uploads(
    name: str, on_gpu_path: TrainingClient, teacher: ReferenceClient, counting: ModuleType
):
    loss = lb.get_loss(name, **NEEDED.get(name, {}))
    beside = {"teacher": teacher} if TEACHER in loss.outputs else {}
    for count in (4, 6, 2, 3):
        try:
            datums = with_vectors_as_wide_as_the_model(example_batch(loss, kind_of(loss), count)[0])
            counts = counted(counting, on_gpu_path, partial(on_gpu_path.forward_backward, datums, loss, **beside))
            break
        except ShapeError:  # losses over blocks of embeddings want a multiple of two or three
            continue
    else:
        raise AssertionError(f"no example serves {name}")
    assert counts.launches.total() > 100  # the call was seen
    assert len(counts.reads) <= 1, counts.reads
    assert len(counts.uploads) <= 2 + len(beside), counts.uploads  # a teacher's rows are its own
    assert not counts.refused


def mixture() -> Any:
    return 0.5 * lb.get_loss("grpo") + 0.5 * lb.get_loss("cross_entropy")


def tail_only(data: list[lb.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
    """A function with the hosted APIs' signature: the last two tokens of each datum."""
    return -torch.stack([one[-2:].sum() for one in logprobs]).sum(), {"datums": float(len(data))}


@pytest.mark.parametrize(
    "loss",
    [pytest.param(mixture, id="a mixture"), pytest.param(lambda: tail_only, id="a function that reads on the host")],
)
def test_so_is_one_of_a_mixture_and_of_a_loss_on_the_host(
    loss: Callable[[], Any],
    on_gpu_path: TrainingClient,
    counting: ModuleType,
    make_datums: Callable[..., list[lb.Datum]],
):
    own, datums = loss(), make_datums(4)
    submit = on_gpu_path.forward_backward_custom if own is tail_only else on_gpu_path.forward_backward
    counts = counted(counting, on_gpu_path, lambda: submit(datums, own))
    assert len(counts.reads) == 1, counts.reads
    assert len(counts.uploads) <= 2, counts.uploads
    assert not counts.refused


def lengths_squared(embeddings: Tensor) -> Tensor:
    return embeddings.square().sum(1)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_so_is_one_of_pooled_vectors(pooling: Any, on_gpu_path: TrainingClient, counting: ModuleType):
    datums = [lb.Datum(lb.ModelInput.from_ints(range(3 + i)), {"pooled_from": np.array(1)}) for i in range(4)]
    loss = loss_of(lengths_squared, per="datum", reduction="sum")
    counts = counted(counting, on_gpu_path, lambda: on_gpu_path.forward_backward(datums, loss, pooling=pooling))
    assert len(counts.reads) == 1, counts.reads
    assert len(counts.uploads) <= 2, counts.uploads
    assert not counts.refused


def test_each_micro_batch_is_read_once(counting: ModuleType, make_datums: Callable[..., list[lb.Datum]]):
    with counting.as_on_a_gpu():
        service = lb.ServiceClient(device="cpu", batching="packed", tokens_per_micro_batch=16)
        client = service.create_training_client("tiny")
        with counting_transfers() as transfers:
            output = client.forward_backward(make_datums(6), "ppo").result()
    batches = output.metrics["micro_batches"]
    assert batches > 2
    assert transfers.reads == batches
    assert transfers.uploads == 2 * batches


def test_a_forward_is_read_once(on_gpu_path: TrainingClient, make_datums: Callable[..., list[lb.Datum]]):
    with counting_transfers() as transfers:
        on_gpu_path.forward(make_datums(4), "dpo").result()
    assert (transfers.reads, transfers.uploads) == (1, 2)


@pytest.mark.parametrize("strategy", ["keep", "recompute"])
def test_on_a_gpu_the_head_goes_over_those_rows_only_that_a_loss_on_the_host_gave_a_gradient(
    strategy: Any,
    counting: ModuleType,
    make_datums: Callable[..., list[lb.Datum]],
    gradients_of: Callable[[TrainingClient], dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
):
    sizes: list[int] = []
    add = Gradients.add

    def noting(self: Gradients, blocks: Any, *others: Any) -> None:
        sizes.extend(len(block.hidden) for block in blocks)
        add(self, blocks, *others)

    monkeypatch.setattr(Gradients, "add", noting)

    def client() -> TrainingClient:
        service = lb.ServiceClient(device="cpu", batching="packed", dtype=torch.float64, head_strategy=strategy)
        training = service.create_training_client("tiny")
        sizes.clear()
        training.forward_backward_custom(make_datums(5), tail_only).result()
        return training

    expected, on_cpu = client(), sum(sizes)
    with counting.as_on_a_gpu():
        ours = client()
    assert sum(sizes) == on_cpu == 2 * 5
    for name, gradient in gradients_of(expected).items():
        torch.testing.assert_close(gradients_of(ours)[name], gradient, rtol=1e-6, atol=1e-9)


def broken(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """Its gradient is infinite where the advantage is 0."""
    return (logprobs * advantages).abs().sqrt()


def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_changed(
    on_gpu_path: TrainingClient, make_datums: Callable[..., list[lb.Datum]], state_of: Callable[[TrainingClient], Any]
):
    datums = make_datums(4)
    advantages = datums[2].loss_fn_inputs["advantages"].to_numpy().copy()
    advantages[-1] = 0.0
    inputs = {**datums[2].loss_fn_inputs, "advantages": advantages}
    datums[2] = lb.Datum(datums[2].model_input, inputs)
    before = state_of(on_gpu_path)
    with pytest.raises(NonFiniteLossError, match=f"not finite at position {len(advantages) - 1} of datum 2"):
        on_gpu_path.forward_backward(datums, loss_of(broken, per="token", reduction="sum")).result()
    assert state_of(on_gpu_path) == before


def test_an_output_that_is_not_finite_is_named_also_where_the_loss_fails_over_it(
    on_gpu_path: TrainingClient, make_datums: Callable[..., list[lb.Datum]], state_of: Callable[[TrainingClient], Any]
):
    def strict(logprobs: Tensor) -> Tensor:
        if not torch.isfinite(logprobs).all():
            raise ValueError("NaN")
        return -logprobs

    module: Any = on_gpu_path.local.model.module
    embedding = module.get_input_embeddings().weight
    datums = make_datums(4)
    token = int(datums[3].model_input.to_ints()[-1])
    kept = embedding.data[token].clone()
    embedding.data[token] = torch.nan
    try:
        before = state_of(on_gpu_path)
        for loss in ("cross_entropy", loss_of(strict, per="token", reduction="sum")):
            with pytest.raises(NonFiniteLossInput, match=r"the model's logprobs of datum \d are nan at position \d"):
                on_gpu_path.forward_backward(datums, loss).result()
            assert state_of(on_gpu_path) == before
    finally:
        embedding.data[token] = kept


def test_a_loss_that_is_declared_linear_and_is_not_is_refused(
    on_gpu_path: TrainingClient, make_datums: Callable[..., list[lb.Datum]], state_of: Callable[[TrainingClient], Any]
):
    def squared(logprobs: Tensor) -> Tensor:
        return logprobs**2

    before = state_of(on_gpu_path)
    with pytest.raises(
        LossContractError, match="declared linear, but the gradient of its logprobs depends on the logprobs"
    ):
        on_gpu_path.forward_backward(
            make_datums(4), loss_of(squared, per="token", reduction="sum", linear=True)
        ).result()
    assert state_of(on_gpu_path) == before
