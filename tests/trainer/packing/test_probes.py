"""Probes decide how a model's sequences run: what is chosen gives each sequence its own numbers, and the rest is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.lengths import switch_length
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.packing.hidden import choose_batching, hidden_states, packing_way
from lossbook.trainer.packing.probes import verdict
from lossbook.trainer.sampling.plan import plan_of

from ..kinds import KINDS, SIZES, model_of, own_logprobs


@pytest.fixture(scope="module")
def models() -> dict[str, LoadedModel]:
    return {kind: model_of(config()).train_all_weights() for kind, config in KINDS.items()}


def own_of(model: LoadedModel, datum: lb.Datum) -> torch.Tensor:
    """The logprobs of a datum's targets from the module's own logits."""
    targets = torch.tensor(datum.loss_fn_inputs["target_tokens"].data)
    return own_logprobs(model, datum.model_input.to_ints())[range(len(targets)), targets]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(data=st.data())
def test_each_datum_has_the_numbers_of_its_own_forward(
    models: dict[str, LoadedModel], kind: str, data: st.DataObject
) -> None:
    check_each_datum(models[kind], data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(data=st.data())
def test_each_of_many_datums_has_the_numbers_of_its_own_forward(
    models: dict[str, LoadedModel], kind: str, data: st.DataObject
) -> None:
    check_each_datum(models[kind], data)


def check_each_datum(model: LoadedModel, data: st.DataObject) -> None:
    """Logprobs and the gradient of a batch are those of its datums, each alone."""
    prompt = data.draw(st.lists(st.integers(0, 95), min_size=0, max_size=24))
    answers = data.draw(st.lists(st.lists(st.integers(0, 95), min_size=2, max_size=24), min_size=1, max_size=4))
    tail = data.draw(st.integers(0, 12))
    datums = [
        lb.datum_from_tokens_weights(
            [*prompt, *answer, *range(tail)], [0.0] * len(prompt) + [1.0] * len(answer) + [0.0] * tail
        )
        for answer in answers
    ]
    budget = data.draw(st.sampled_from([None, 40]))
    datums = data.draw(st.permutations(datums))
    engine = Engine(model, EngineSettings(tokens_per_micro_batch=budget))
    output = engine.forward_backward(datums, lb.get_loss("cross_entropy"))
    gradients = {name: p.grad.clone() for name, p in model.trainable().items() if p.grad is not None}
    for parameter in model.trainable().values():
        parameter.grad = None
    total = torch.zeros((), dtype=torch.float64)
    for fields, datum in zip(output.loss_fn_outputs, datums, strict=True):
        own, weights = own_of(model, datum), datum.loss_fn_inputs["weights"].to_torch().double()
        np.testing.assert_allclose((fields["logprobs"].to_torch() * weights), (own * weights).detach(), atol=1e-4)
        total = total - (own * weights).sum()
    total.backward()
    scale = max(float(p.grad.abs().max()) for p in model.trainable().values() if p.grad is not None)
    for name, parameter in model.trainable().items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(gradients.get(name, torch.zeros_like(expected)), expected, rtol=0, atol=2e-4 * scale)
        parameter.grad = None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("attention sinks", "layer 0 has attention sinks"),
        ("a state in some layers", r"layer 0 \(linear_attention\) carries a state along the row"),
        ("a state along the row", r"layer 0 \(linear_attention\) carries a state along the row"),
        ("biases by distance", r"layer 0 \(BloomBlock\) is off by 0\.\d+ of its scale"),
        (
            "tokens chosen by score",
            r"a token sees the 24 tokens of highest score \(index_topk\), and ties fall otherwise",
        ),
    ],
)
def test_packing_that_was_asked_for_and_is_not_right_is_an_error_that_names_the_layer(
    models: dict[str, LoadedModel], kind: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=rf"cannot run with batching='packed': {reason}"):
        Engine(models[kind], EngineSettings(batching="packed"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_chosen_on_a_gpu_gives_the_numbers_of_each_sequence_alone(
    models: dict[str, LoadedModel], kind: str
) -> None:
    model = models[kind]
    sequences = [list(range(3, 9)), list(range(40, 45)), list(range(7, 47))]
    way = packing_way(model)
    if way is None:
        return
    together = hidden_states(model, sequences, "packed")
    apart = torch.cat([model.backbone(input_ids=torch.tensor([s])).last_hidden_state[0] for s in sequences])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_datums_on_both_sides_of_a_switch_give_what_each_gives_alone(models: dict[str, LoadedModel]) -> None:
    model = models["a rotation that switches at 32 tokens"]
    assert switch_length(model) == 32
    datums = [lb.datum_from_tokens_weights([(i * 7) % 96 for i in range(n + 1)], [1.0] * (n + 1)) for n in (40, 20)]
    loss = lb.get_loss("cross_entropy")
    for batching in ("packed", "padded", "single"):
        engine = Engine(model, EngineSettings(batching=batching))
        both = engine.forward(datums, loss).metrics["loss:sum"]
        each = [engine.forward([datum], loss).metrics["loss:sum"] for datum in datums]
        assert both == pytest.approx(sum(each), rel=1e-5)
        own = [-own_of(model, datum).sum().item() for datum in datums]
        assert each == pytest.approx(own, rel=1e-5)


def test_cutting_the_tail_keeps_a_sequence_on_its_side_of_the_switch(models: dict[str, LoadedModel]) -> None:
    model = models["a rotation that switches at 32 tokens"]
    datum = lb.datum_from_tokens_weights([(i * 7) % 96 for i in range(61)], [1.0] * 20 + [0.0] * 41)
    seen: list[int] = []
    hook = model.module.get_input_embeddings().register_forward_pre_hook(lambda _, x: seen.append(x[0].numel()))  # type: ignore[operator]
    loss = Engine(model, EngineSettings()).forward_backward([datum], lb.get_loss("cross_entropy")).metrics["loss:sum"]
    hook.remove()
    assert seen[-1] == 33  # one more than the switch
    assert loss == pytest.approx(-own_of(model, datum)[:19].sum().item(), rel=1e-5)


def test_windows_are_as_before_after_a_probe() -> None:
    model = model_of(transformers.MistralConfig(**SIZES, sliding_window=50))
    before = {name: getattr(part, "sliding_window", None) for name, part in model.module.named_modules()}
    assert choose_batching(model, None) == "packed"
    assert model.config.sliding_window == 50
    assert {name: getattr(part, "sliding_window", None) for name, part in model.module.named_modules()} == before


def test_a_decoder_whose_tokens_see_those_behind_them_is_not_cut_and_not_trained() -> None:
    model = model_of(transformers.BertConfig(**SIZES | {"pad_token_id": 0, "is_decoder": False}))
    assert not verdict(model, "cut")
    assert "tokens change with those behind them" in verdict(model, "cut").reason
    with pytest.raises(ModelError, match="cannot be trained on next tokens"):
        choose_batching(model, None)


@pytest.mark.parametrize("kind", ["grouped queries", "attention sinks", "a state along the row"])
def test_probes_see_the_same_in_bfloat16(models: dict[str, LoadedModel], kind: str) -> None:
    narrow = model_of(KINDS[kind]())
    narrow.module.to(torch.bfloat16)
    assert choose_batching(narrow, None) == choose_batching(models[kind], None)
    assert packing_way(narrow) == packing_way(models[kind])


def test_probes_compute_few_tokens() -> None:
    model = model_of(KINDS["grouped queries"]())
    counted: list[int] = []
    model.module.get_input_embeddings().register_forward_pre_hook(lambda _, x: counted.append(x[0].numel()))  # type: ignore[operator]
    assert choose_batching(model, None) == "packed"
    assert len(counted) <= 4  # three sequences, each alone, and all in a row
    assert sum(counted) <= 40
    counted.clear()
    assert plan_of(model).share
    assert len(counted) <= 4  # two prompts, two tokens for each row, and the rows without a cache
    assert sum(counted) <= 60
