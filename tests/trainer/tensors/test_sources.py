"""A loss on logits, or on hidden states and a head, is that loss on what torch's log_softmax makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lossbook as lb
from lossbook.errors import DtypeError, LossContractError, MissingInput, ModelError, ShapeError, TokenRangeError
from lossbook.trainer.head.logprobs import Head
from tests.losses.as_tensors import as_tensors
from tests.losses.batches import batch_for
from tests.losses.cases import shipped, with_needed

HEAD_OUTPUTS = {"logprobs", "entropy", "logsumexp", "mean_logprobs", "topk_logprobs"}
VOCABULARY, WIDTH = 11, 4
KINDS = ["cross_entropy", "entropy_bonus", "z_loss", "label_smoothing", "ppo", "gspo", "dpo", "kto", "topk_forward_kl"]
MIXTURE = 0.9 * lb.get_loss("grpo") + 0.1 * lb.get_loss("entropy_bonus")


def head_losses() -> list[Any]:
    """Every shipped loss that reads something made of logits, and a mixture."""
    losses = [one for one in map(with_needed, shipped()) if HEAD_OUTPUTS & set(one.outputs)]
    fewer = [one if one.top_k <= VOCABULARY else with_needed(one.name, top_k=VOCABULARY - 1) for one in losses]
    return [*fewer, MIXTURE]


class Batch:
    """Hidden states with NaN where nothing counts, a head, labels, and what else the loss reads."""

    def __init__(self, loss: Any, *, packed: bool, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        batch = batch_for(loss, 6, seed=seed)
        tensors = as_tensors(loss, batch.data, batch.outputs, packed=packed)
        self.data = tensors.data
        mask = self.data["mask"] * (torch.rand(self.data["mask"].shape, generator=generator) < 0.8)
        if loss.couples in ("pair", "batch") or any(one.spec.per != "token" for _, one in loss.parts):
            mask = self.data["mask"]
        self.data["mask"] = mask
        is_wide = any(one.spec.candidates for _, one in loss.parts)
        tokens = torch.rand(*mask.shape, VOCABULARY, generator=generator).argsort(-1)
        self.labels = tokens[..., :3] if is_wide else tokens[..., 0]
        self.labels[mask == 0] = -100
        self.hidden = torch.randn(*mask.shape, WIDTH, dtype=torch.float64, generator=generator)
        self.hidden[mask == 0] = torch.nan
        self.hidden.requires_grad_()
        self.head = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)

    def expected(self, loss: Any, temperature: float) -> tuple[Tensor, Any]:
        """The loss on what torch makes of the logits."""
        logits = (self.head(self.hidden.nan_to_num()) / temperature).log_softmax(-1)
        labels = self.labels.clamp(min=0)
        top = logits.topk(max(part.top_k for _, part in loss.parts), -1)
        made = {
            "logprobs": logits.gather(-1, labels.reshape(*logits.shape[:-1], -1)).reshape(labels.shape),
            "entropy": -(logits.exp() * logits).sum(-1),
            "logsumexp": (self.head(self.hidden.nan_to_num()) / temperature).logsumexp(-1),
            "mean_logprobs": logits.mean(-1),
            "topk_logprobs": top.values,
            "topk_tokens": top.indices,
        }
        return loss.on_tensors(**{name: made[name] for name in loss.outputs}, **self.data)

    def gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, [self.hidden, self.head.weight, self.head.bias]))


def assert_same(loss: Any, batch: Batch, temperature: float) -> None:
    value, metrics = batch.expected(loss, temperature)
    slopes = batch.gradient(value)
    given = {**batch.data, "temperature": temperature}
    results = [
        loss.on_logits(batch.head(batch.hidden), batch.labels, **given),
        loss.on_hidden(batch.hidden, batch.head, batch.labels, **given),
    ]
    for same, its_metrics in results:
        torch.testing.assert_close(same, value, rtol=0, atol=1e-9)
        assert dict(its_metrics) == pytest.approx(dict(metrics), rel=1e-9, abs=1e-9, nan_ok=True)
    own = loss.on_hidden(batch.hidden, batch.head, batch.labels, **given)[0]
    for slope, expected in zip(batch.gradient(own), slopes, strict=True):
        torch.testing.assert_close(slope, expected, rtol=0, atol=1e-9)
    logits = batch.head(batch.hidden).detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss.on_logits(logits, batch.labels, **given)[0], logits)
    own_slope = (
        slope @ batch.head.weight
    )  # through the head by hand: logits at masked positions are NaN, and so would it be
    torch.testing.assert_close(own_slope, slopes[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("loss", [*map(with_needed, KINDS), MIXTURE], ids=lambda loss: loss.name)
def test_logits_and_hidden_states_give_what_log_softmax_gives(loss: Any, packed: bool) -> None:
    assert_same(loss, Batch(loss, packed=packed), 0.75)


@pytest.mark.slow
@pytest.mark.parametrize("loss", head_losses(), ids=lambda loss: loss.name)
def test_any_logits_and_hidden_states_give_what_log_softmax_gives(loss: Any) -> None:
    @settings(max_examples=4)
    @given(st.integers(0, 1000), st.booleans(), st.sampled_from([1.0, 0.5, 2.0]))
    def holds(seed: int, packed: bool, temperature: float) -> None:
        assert_same(loss, Batch(loss, packed=packed, seed=seed), temperature)

    holds()


def simple(dtype: torch.dtype = torch.float64) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, WIDTH, dtype=dtype, requires_grad=True)
    labels = torch.tensor([[1, 2, -100], [3, -100, 10]])
    return hidden, nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=dtype), labels


class Made(TorchDispatchMode):
    """Counts new tensors of one shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        read = {one.untyped_storage().data_ptr() for one in tree_leaves((given, options)) if isinstance(one, Tensor)}
        result = operation(*given, **(options or {}))
        for one in tree_leaves(result):
            if isinstance(one, Tensor) and one.shape == self.shape:
                self.count += one.untyped_storage().data_ptr() not in read
        return result


@pytest.mark.parametrize("loss", head_losses(), ids=lambda loss: loss.name)
def test_of_the_heads_size_nothing_is_made_but_its_gradient(loss: Any) -> None:
    batch = Batch(loss, packed=False)
    weight = batch.head.weight.detach().requires_grad_()
    with Made(weight.shape) as made:
        value = loss.on_hidden(batch.hidden, weight, batch.labels, **batch.data)[0]
        value.backward()
    assert made.count == 1


CROSS_ENTROPY = lb.get_loss("cross_entropy", reduction="token-mean")


def test_labels_of_minus_100_are_the_mask_and_cross_entropy_is_that_of_torch() -> None:
    hidden, head, labels = simple()
    value, _ = CROSS_ENTROPY.on_logits(head(hidden), labels)
    expected = nn.functional.cross_entropy(head(hidden).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(value, expected)
    assert CROSS_ENTROPY.count_tensors(labels=labels).item() == 4
    assert CROSS_ENTROPY.on_logits(head(hidden), labels, denominator=8)[0].item() == pytest.approx(value.item() / 2)


def test_weights_multiply_what_labels_leave() -> None:
    hidden, head, labels = simple()
    weights = torch.tensor([[0.5, 2.0, 7.0], [1.0, 1.0, 0.0]])
    value, _ = CROSS_ENTROPY.on_logits(head(hidden), labels, mask=weights)
    logprobs = head(hidden).log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    kept = weights * (labels != -100)
    torch.testing.assert_close(value, -(kept * logprobs).sum() / kept.sum())


def test_bfloat16_logits_are_summed_in_float32() -> None:
    hidden, head, labels = simple(torch.bfloat16)
    logits = head(hidden).detach().requires_grad_()
    value, _ = CROSS_ENTROPY.on_logits(logits, labels)
    value.backward()
    exact = logits.detach().float().requires_grad_()
    expected = nn.functional.cross_entropy(exact.flatten(0, 1), labels.flatten())
    expected.backward()
    torch.testing.assert_close(value, expected)
    assert logits.grad is not None
    assert exact.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad, exact.grad.bfloat16())


def test_every_form_of_a_head_gives_the_same() -> None:
    hidden, head, labels = simple()
    forms = [head, head.weight, Head(head.weight), nn.Parameter(head.weight.detach().clone())]
    values = [CROSS_ENTROPY.on_hidden(hidden, form, labels)[0].item() for form in forms]
    assert len(set(values)) == 1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "with adapters"])
@pytest.mark.parametrize("settings", [{}, {"final_logit_softcapping": 2.0}], ids=["no soft cap", "a soft cap"])
def test_a_model_as_its_own_head_gives_what_its_logits_give(settings: dict[str, Any], adapted: bool) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8, "vocab_size": 13}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, **settings)
    config._attn_implementation = "eager"
    model: Any = Gemma2ForCausalLM(config).double().eval()
    tokens = torch.randint(1, 13, (2, 5))
    labels = tokens[:, 1:].clone()
    labels[0, :2] = -100
    by_logits, _ = CROSS_ENTROPY.on_logits(model(tokens).logits[:, :-1], labels)
    hidden = model.model(tokens).last_hidden_state[:, :-1]
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    by_hidden, _ = CROSS_ENTROPY.on_hidden(hidden, model, labels)
    torch.testing.assert_close(by_hidden, by_logits, rtol=0, atol=1e-9)


def test_a_lora_adapter_on_the_head_is_part_of_it_and_one_with_dropout_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False, dtype=torch.float64)

        def forward(self, hidden: Tensor) -> Tensor:
            return self.lm_head(hidden)

    hidden, _, labels = simple()
    for dropout in (0.0, 0.5):
        wrapped = get_peft_model(Model(), LoraConfig(target_modules=["lm_head"], r=2, lora_dropout=dropout))  # type: ignore[arg-type]
        layer = wrapped.base_model.model.lm_head
        nn.init.normal_(layer.lora_B["default"].weight)
        if dropout:
            with pytest.raises(ModelError, match="dropout"):
                CROSS_ENTROPY.on_hidden(hidden, layer, labels)
            continue
        by_hidden, _ = CROSS_ENTROPY.on_hidden(hidden, layer, labels)
        by_logits, _ = CROSS_ENTROPY.on_logits(wrapped(hidden), labels)
        torch.testing.assert_close(by_hidden, by_logits, rtol=0, atol=1e-9)


def test_under_autocast_the_head_multiplies_in_its_dtype_as_the_models_own_would() -> None:
    hidden, head, labels = simple(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        by_hidden, _ = CROSS_ENTROPY.on_hidden(hidden, head, labels)
        by_logits, _ = CROSS_ENTROPY.on_logits(head(hidden), labels)
    exact, _ = CROSS_ENTROPY.on_hidden(hidden, head, labels)
    assert by_hidden.dtype == torch.float32
    assert abs(by_hidden - by_logits) < 0.02
    assert by_hidden != exact


def with_label(value: int) -> Tensor:
    labels = simple()[2]
    labels[1, 0] = value
    return labels


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"labels": with_label(11)},
            TokenRangeError,
            "labels of row 1 is 11 at position 0, outside the vocabulary [0, 11)",
        ),
        ({"labels": with_label(-1)}, TokenRangeError, "labels of row 1 is -1 at position 0"),
        ({"labels": simple()[2].float()}, DtypeError, "labels is torch.float32: they are token ids"),
        ({"labels": simple()[2][:, 1:]}, ShapeError, "give hidden[:, :-1] with labels[:, 1:]"),
        ({"labels": None}, MissingInput, "labels were not given"),
        ({"hidden": torch.zeros(2, 3)}, ShapeError, "hidden is [2, 3] beside labels [2, 3]"),
        ({"hidden": torch.zeros(2, 3, 5)}, ShapeError, "hidden has 5 numbers per position"),
        ({"head": nn.LayerNorm(3)}, ModelError, "the head's weight is [3]"),
        ({"head": "lm_head"}, ModelError, "head is a str"),
        ({"temperature": 0}, ModelError, "a temperature must be a positive number, not 0"),
        ({"mask": torch.ones(2, 4)}, ShapeError, "mask is [2, 4], but labels has the positions [2, 3]"),
        ({"logprobs": torch.zeros(2, 3)}, lb.errors.UnknownInput, "computed here, from logits or hidden states"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_misuse_is_one_line_that_says_where(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    hidden, head, labels = simple()
    given = {"hidden": hidden, "head": head, "labels": labels, **changed}
    with pytest.raises(error) as caught:
        CROSS_ENTROPY.on_hidden(**given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_logit_that_is_not_finite_is_an_error_with_its_row_and_position() -> None:
    hidden, head, labels = simple()
    logits = head(hidden).detach()
    logits[0, 2, 5] = torch.nan  # ignored
    CROSS_ENTROPY.on_logits(logits, labels)
    logits[1, 2, 5] = torch.nan
    with pytest.raises(lb.errors.NonFiniteLossInput, match="logprobs of row 1 is nan at position 2"):
        CROSS_ENTROPY.on_logits(logits, labels)


def test_a_loss_that_reads_nothing_made_of_logits_says_so() -> None:
    with pytest.raises(LossContractError, match="reads values, which is not made of logits: give it to on_tensors"):
        lb.get_loss("value_mse").on_logits(torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64))
