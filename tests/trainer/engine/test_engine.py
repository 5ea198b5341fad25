"""A failed call changes nothing, whatever fails and wherever; and no call holds [tokens, vocabulary] for its backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lossbook as lb
from lossbook.datums.errors import (
    InvalidLogprobError,
    LossbookError,
    MissingInput,
    NonFiniteLossError,
    NonFiniteLossInput,
    TokenRangeError,
)
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.engine import forward
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model

MakeDatums = Callable[..., list[lb.Datum]]
StateOf = Callable[[TrainingClient], dict[str, Any]]
GradientsOf = Callable[[TrainingClient], dict[str, Tensor]]
SMALL = 24
PARAMS = lb.AdamParams(learning_rate=1e-2)


def small_client(base_model: str = "tiny", **settings: Any) -> TrainingClient:
    """All weights of a small decoder in training, a few datums a micro-batch."""
    return lb.ServiceClient(device="cpu", tokens_per_micro_batch=SMALL, **settings).create_training_client(base_model)


def fail_at(client: TrainingClient, k: int, error: BaseException, times: int = 1) -> list[int]:
    """Let the forward of micro-batch k (from 0) raise, `times` times; returns a list with an entry for each that ran."""
    ran, left = [], [times]

    def failing(*_: Any) -> None:
        if len(ran) >= k and left[0]:
            left[0] -= 1
            raise error
        ran.append(len(ran))

    client.local.model.backbone.register_forward_pre_hook(failing)
    return ran


def total(data, logprobs_list):
    return sum(-logprobs.sum() for logprobs in logprobs_list), {}


def raises(data, logprobs_list):
    raise RuntimeError("a mistake in the user's own function")


def is_nan(data, logprobs_list):
    return sum(logprobs.sum() for logprobs in logprobs_list) * float("nan"), {}


def has_a_nan_gradient(data, logprobs_list):
    return logprobs_list[0].sum() + (logprobs_list[1] - logprobs_list[1]).abs().sqrt().sum(), {}


def with_bad_token(datums: list[lb.Datum]) -> list[lb.Datum]:
    return [*datums, lb.Datum(lb.ModelInput.from_ints([1, 999]), {"target_tokens": [1, 2], "weights": [1.0, 1.0]})]


FAILURES: dict[str, tuple[Callable[[TrainingClient, list[lb.Datum]], Any], type[BaseException]]] = {
    "the custom function raises": (lambda c, d: c.forward_backward_custom(d, raises), RuntimeError),
    "the loss is NaN": (lambda c, d: c.forward_backward_custom(d, is_nan), NonFiniteLossError),
    "the gradient is NaN": (lambda c, d: c.forward_backward_custom(d, has_a_nan_gradient), NonFiniteLossError),
    "a token is unknown to the model": (
        lambda c, d: c.forward_backward(with_bad_token(d), "cross_entropy"),
        TokenRangeError,
    ),
    "an input is missing": (
        lambda c, d: c.forward_backward(
            [lb.Datum(x.model_input, {"target_tokens": [1] * x.model_input.length}) for x in d], "ppo"
        ),
        MissingInput,
    ),
}


@pytest.mark.parametrize(("call", "error"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failed_call_leaves_all_as_it_was_and_the_client_usable(
    call: Callable[[TrainingClient, list[lb.Datum]], Any],
    error: type[BaseException],
    make_datums: MakeDatums,
    state_of: StateOf,
) -> None:
    client, datums = small_client(), make_datums(8)
    client.forward_backward(datums, "cross_entropy").result()
    client.optim_step(PARAMS).result()
    client.forward_backward(datums, "cross_entropy").result()
    before = state_of(client)
    with pytest.raises(error):
        call(client, datums).result()
    assert state_of(client) == before
    client.forward_backward(datums, "cross_entropy").result()
    assert client.optim_step(PARAMS).result().metrics["accumulated_calls"] == 2


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("loss", ["cross_entropy", "info_nce", total], ids=["streamed", "coupled", "custom"])
def test_a_model_that_fails_halfway_leaves_no_half_gradient(
    loss: Any, k: int, make_datums: MakeDatums, state_of: StateOf
) -> None:
    client, datums = small_client(), make_datums(8)
    client.forward_backward(datums, "cross_entropy").result()
    before = state_of(client)
    ran = fail_at(client, k, RuntimeError("the device fell over"))
    with pytest.raises(RuntimeError, match="the device fell over"):
        client.forward_backward(datums, loss).result()
    assert len(ran) == k
    assert state_of(client) == before
    client.forward_backward(datums, loss).result()


def test_a_backward_that_fails_halfway_leaves_no_half_gradient(make_datums: MakeDatums, state_of: StateOf) -> None:
    client, datums = small_client(), make_datums(8)
    calls = []

    def failing(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("at the end of the second backward")

    embedding = client.local.model.module.get_input_embeddings().weight  # type: ignore[operator]
    embedding.register_post_accumulate_grad_hook(failing)
    before = state_of(client)
    with pytest.raises(RuntimeError, match="at the end of the second backward"):
        client.forward_backward(datums, "cross_entropy").result()
    assert state_of(client) == before


def test_gradients_of_several_calls_are_added_by_one_operation_for_all_parameters(make_datums: MakeDatums) -> None:
    class Additions(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counted.extend([len(args[0])] if func.name() == "aten::_foreach_add_.List" else [])
            return func(*args, **(kwargs or {}))

    counted: list[int] = []
    model, loss = (
        load_model("tiny", device="cpu", dtype=torch.float64).train_all_weights(),
        lb.get_loss("cross_entropy"),
    )
    engine, parts = (
        Engine(model, EngineSettings()),
        [make_datums(3, seed=1), make_datums(4, seed=2), make_datums(5, seed=3)],
    )
    weights = list(model.trainable().values())
    alone = []
    for part in parts:
        engine.forward_backward(part, loss)
        alone.append([p.grad for p in weights])
        for p in weights:
            p.grad = None
    with Additions():
        for part in parts:
            engine.forward_backward(part, loss)
    assert counted == [len(weights)] * 2
    for p, *gradients in zip(weights, *alone, strict=True):
        torch.testing.assert_close(p.grad, sum(gradients), rtol=1e-12, atol=1e-15)


def test_an_interrupt_leaves_no_half_gradient(make_datums: MakeDatums, state_of: StateOf) -> None:
    client, datums = small_client(), make_datums(8)
    before = state_of(client)
    fail_at(client, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        client.forward_backward(datums, "cross_entropy").result()
    assert state_of(client) == before


def test_out_of_memory_in_a_micro_batch_is_retried_with_finer_ones_to_the_same_gradient(
    make_datums: MakeDatums, gradients_of: GradientsOf
) -> None:
    datums = make_datums(8)
    expected = small_client(dtype=torch.float64)
    expected.forward_backward(datums, "cross_entropy").result()
    client = small_client(dtype=torch.float64)
    ran = fail_at(client, 2, torch.OutOfMemoryError("simulated"))
    with pytest.warns(RuntimeWarning, match="out of memory: micro-batches now hold 12 tokens"):
        output = client.forward_backward(datums, "cross_entropy").result()
    assert output.metrics["micro_batches"] == len(ran) - 2
    for name, gradient in gradients_of(expected).items():
        torch.testing.assert_close(gradients_of(client)[name], gradient, rtol=1e-9, atol=1e-12)


def test_out_of_memory_that_no_finer_cut_can_mend_fails_and_leaves_all_as_it_was(
    make_datums: MakeDatums, state_of: StateOf
) -> None:
    client, datums = small_client(), make_datums(8)
    client.forward_backward(datums, "cross_entropy").result()
    before = state_of(client)
    fail_at(client, 0, torch.OutOfMemoryError("simulated"), times=100)
    with pytest.warns(RuntimeWarning, match="out of memory"), pytest.raises(torch.OutOfMemoryError):
        client.forward_backward(datums, "cross_entropy").result()
    assert state_of(client) == before


def test_out_of_memory_of_a_loss_over_the_whole_batch_is_not_cut_finer(
    make_datums: MakeDatums, state_of: StateOf
) -> None:
    client, datums = small_client(), make_datums(8)
    before = state_of(client)
    fail_at(client, 1, torch.OutOfMemoryError("simulated"))
    with pytest.raises(torch.OutOfMemoryError):
        client.forward_backward(datums, "info_nce").result()
    assert state_of(client) == before


def test_a_failed_call_gives_back_the_random_numbers_it_drew(
    model_with_dropout: str, make_datums: MakeDatums, state_of: StateOf
) -> None:
    client, datums = small_client(model_with_dropout, dropout=True), make_datums(8)
    before = state_of(client)
    fail_at(client, 2, RuntimeError("the device fell over"))
    with pytest.raises(RuntimeError, match="the device fell over"):
        client.forward_backward(datums, "cross_entropy").result()
    assert state_of(client) == before
    client.forward_backward(datums, "cross_entropy").result()
    assert state_of(client)["random"] != before["random"]


def test_a_forward_between_two_calls_touches_nothing(
    model_with_dropout: str, make_datums: MakeDatums, state_of: StateOf
) -> None:
    client, datums = small_client(model_with_dropout, dropout=True), make_datums(8)
    client.forward_backward(datums, "cross_entropy").result()
    before = state_of(client)
    outputs = [client.forward(datums, "cross_entropy").result().loss_fn_outputs for _ in range(2)]
    client.forward(datums[:4], "dpo").result()
    assert outputs[0] == outputs[1], "nothing is dropped in a forward"
    assert state_of(client) == before


def poison(client: TrainingClient, token: int) -> None:
    """Let the model give NaN wherever it reads `token`."""
    embedding = client.local.model.module.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[token] = float("nan")


def plain(tokens: list[int]) -> lb.Datum:
    return lb.datum_from_tokens_weights(tokens, [1.0] * len(tokens))


def test_a_datum_for_which_the_model_gives_nan_is_named_and_nothing_changes(state_of: StateOf) -> None:
    client = small_client()
    poison(client, 77)
    before = state_of(client)
    datums = [plain([1, 2, 3, 4, 5, 6, 7, 8, 9]), plain([5, 6, 77, 8, 9]), plain([1, 2, 3])]
    with pytest.raises(NonFiniteLossInput, match=r"logprobs of datum 1 are nan at position"):
        client.forward_backward(datums, "cross_entropy").result()
    assert state_of(client) == before


def test_a_forward_still_returns_the_other_datums_beside_one_with_nan() -> None:
    client = small_client()
    sane = client.forward([plain([1, 2, 3])]).result().loss_fn_outputs[0]["logprobs"]
    poison(client, 77)
    with pytest.warns(RuntimeWarning, match="datum 1 are nan"):
        output = client.forward([plain([1, 2, 3]), plain([5, 77, 8])]).result()
    assert output.loss_fn_outputs[0]["logprobs"].data == pytest.approx(sane.data, abs=1e-6)
    assert torch.isnan(output.loss_fn_outputs[1]["logprobs"].to_torch()[1])
    assert torch.isnan(torch.tensor(output.metrics["loss:sum"]))


def test_positive_logprobs_from_the_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = forward.linear_logprobs

    def shifted(*args: Any, **kwargs: Any) -> Any:
        outputs = real(*args, **kwargs)
        return replace(outputs, logprobs=outputs.logprobs + 100.0)

    monkeypatch.setattr(forward, "linear_logprobs", shifted)
    with pytest.raises((InvalidLogprobError, NonFiniteLossInput), match="datum 0"):
        small_client().forward_backward([plain([1, 2, 3])], "cross_entropy").result()


def test_no_tensor_of_tokens_times_vocabulary_is_kept_for_the_backward(make_datums: MakeDatums) -> None:
    model = load_model("tiny", device="cpu").train_all_weights()
    engine, shapes = Engine(model, EngineSettings()), []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        for loss in ("cross_entropy", total):
            engine.forward_backward(make_datums(6), lb.get_loss(loss))
    assert shapes, "the hooks saw nothing"
    assert not [shape for shape in shapes if shape and shape[-1] == model.vocab_size]


def test_positions_of_weight_zero_never_reach_the_head_and_read_zero(
    make_datums: MakeDatums, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, datums, rows = small_client(), make_datums(6), []
    real = forward.linear_logprobs

    def counting(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(hidden))
        return real(hidden, *args, **kwargs)

    monkeypatch.setattr(forward, "linear_logprobs", counting)
    output = client.forward_backward(datums, "cross_entropy").result()
    weights = [torch.tensor(d.loss_fn_inputs["weights"].data) for d in datums]
    assert sum(rows) == sum(int((w != 0).sum()) for w in weights) == output.metrics["response_tokens"]
    for fields, w in zip(output.loss_fn_outputs, weights, strict=True):
        assert torch.equal(fields["logprobs"].to_torch() == 0.0, w == 0)

    rows.clear()
    everywhere = client.forward(datums, "cross_entropy").result()
    assert sum(rows) == sum(len(w) for w in weights)
    assert all(bool((o["logprobs"].to_torch() < 0).all()) for o in everywhere.loss_fn_outputs)


@pytest.mark.parametrize("call", ["forward", "custom"])
def test_a_masked_target_beyond_the_vocabulary_is_refused_by_name_where_its_logprob_is_looked_up(call: str) -> None:
    client = small_client()
    datum = lb.Datum(lb.ModelInput.from_ints([1, 2]), {"target_tokens": [999, 3], "weights": [0.0, 1.0]})
    client.forward_backward([datum], "cross_entropy").result()  # here the masked target is never looked up
    with pytest.raises(TokenRangeError, match=r"datum 0 of 1.*target_tokens.*999.*position 0"):
        (client.forward([datum]) if call == "forward" else client.forward_backward_custom([datum], total)).result()


def test_a_slot_of_weight_zero_may_hold_any_id_beside_one_that_counts(gradients_of: GradientsOf) -> None:
    gradients = []
    for unused in (0, 999):
        targets, weights = [[3, 4], [5, unused]], [[1.0, 1.0], [1.0, 0.0]]
        client = small_client()
        datum = lb.Datum(lb.ModelInput.from_ints([1, 2]), {"target_tokens": targets, "weights": weights})
        client.forward_backward([datum], "cross_entropy").result()
        gradients.append(gradients_of(client))
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient)


@pytest.mark.parametrize("loss", ["cross_entropy", total], ids=["by name", "custom"])
def test_a_loss_over_logprobs_needs_targets_and_says_so(loss: Any) -> None:
    datums = [plain([1, 2, 3]), lb.Datum(lb.ModelInput.from_ints([1, 2]), {"weights": [1.0, 1.0]})]
    with pytest.raises(MissingInput, match=r"datum 1 of 2 carries no target_tokens"):
        small_client().forward_backward(datums, loss).result()


def test_datums_of_weight_zero_alone_in_a_micro_batch_are_no_trouble(gradients_of: GradientsOf) -> None:
    silent = lb.datum_from_tokens_weights(list(range(20)), [0.0] * 20)
    one = small_client(dtype=torch.float64)
    service = lb.ServiceClient(device="cpu", dtype=torch.float64, tokens_per_micro_batch=2)  # one datum per micro-batch
    both = service.create_training_client("tiny")
    one.forward_backward([plain([1, 2, 3])], "cross_entropy").result()
    output = both.forward_backward([silent, plain([1, 2, 3])], "cross_entropy").result()
    assert output.metrics["micro_batches"] == 2
    assert output.metrics["datums_without_grad"] == 1
    assert output.loss_fn_outputs[0]["logprobs"].data == [0.0] * 19
    for name, gradient in gradients_of(one).items():
        torch.testing.assert_close(gradients_of(both)[name], gradient, rtol=1e-12, atol=1e-12)


def test_outputs_come_back_in_the_order_of_the_datums(make_datums: MakeDatums) -> None:
    datums = make_datums(8)
    whole = lb.ServiceClient(device="cpu").create_training_client("tiny")
    for call in ("forward", "forward_backward"):
        expected = getattr(whole, call)(datums, "cross_entropy").result().loss_fn_outputs
        cut = getattr(small_client(), call)(datums, "cross_entropy").result().loss_fn_outputs
        for one, other in zip(cut, expected, strict=True):
            assert one["logprobs"].data == pytest.approx(other["logprobs"].data, abs=1e-5)


def test_a_gradient_that_is_not_finite_is_located(make_datums: MakeDatums) -> None:
    def square_root_of_nothing(data, logprobs_list):
        second = logprobs_list[1]
        return logprobs_list[0].sum() + (second[2] - second[2].detach()).abs().sqrt(), {}

    with pytest.raises(NonFiniteLossError, match=r"at position 2 of datum 1, where logprobs is -\d.*exp or log"):
        small_client().forward_backward_custom(make_datums(4), square_root_of_nothing).result()


def test_a_mode_that_a_user_set_comes_back(make_datums: MakeDatums) -> None:
    client = small_client(dropout=True)
    assert not client.local.model.module.training
    client.forward_backward(make_datums(3), "cross_entropy").result()
    assert not client.local.model.module.training
    with pytest.raises(LossbookError):
        client.forward_backward(make_datums(2), is_nan).result()
    assert not client.local.model.module.training
