"""The chunked head against the plain formula: values, gradients, memory, and the logits real architectures compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lossbook.datums.errors import DtypeError, ShapeError, TokenRangeError
from lossbook.trainer.head import backward as head_gradients
from lossbook.trainer.head import logprobs as head_module
from lossbook.trainer.head.logprobs import Head, HeadOutputs, linear_logprobs
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer

POSITIONS, WIDTH, VOCABULARY = 7, 5, 23


def problem(
    *, bias: bool = False, softcap: float | None = None, scale: float = 1.0, columns: int | None = None, seed: int = 0
) -> tuple[Tensor, Head, Tensor]:
    """Random float64 hidden states, head and targets, all leaves that require a gradient."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(POSITIONS, WIDTH, generator=random, dtype=torch.float64).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=random, dtype=torch.float64).requires_grad_()
    offsets = torch.randn(VOCABULARY, generator=random, dtype=torch.float64).requires_grad_() if bias else None
    shape = (POSITIONS,) if columns is None else (POSITIONS, columns)
    return hidden, Head(weight, offsets, softcap, scale), torch.randint(VOCABULARY, shape, generator=random)


def plainly(hidden: Tensor, head: Head, targets: Tensor) -> HeadOutputs:
    """The definitions: all logits, log_softmax, gather, and sums over the whole vocabulary."""
    logits = hidden @ head.weight.t()
    logits = (logits if head.bias is None else logits + head.bias) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    everything = logits.log_softmax(-1)
    columns = targets if targets.ndim == 2 else targets[:, None]
    return HeadOutputs(
        logprobs=everything.gather(1, columns).view(targets.shape),
        logsumexp=logits.logsumexp(-1),
        entropy=-(everything.exp() * everything).sum(-1),
        mean_logprobs=everything.mean(-1),
    )


def all_of(hidden: Tensor, head: Head, targets: Tensor, **options: Any) -> HeadOutputs:
    """Every output there is."""
    return linear_logprobs(hidden, head, targets, entropy=True, mean_logprobs=True, **options)


def pulled(outputs: HeadOutputs, *names: str) -> Tensor:
    """A sum of outputs in which every number has a factor of its own; 0 for one position, so that rows are not all equal."""
    total = torch.zeros((), dtype=torch.float64)
    for i, name in enumerate(names):
        values = getattr(outputs, name)
        factors = torch.linspace(-1 - i, 2, values.numel(), dtype=torch.float64).view(values.shape)
        factors[3] = 0.0
        total = total + (factors * values).sum()
    return total


OUTPUTS = ("logprobs", "logsumexp", "entropy", "mean_logprobs")


def gradients(value: Tensor, hidden: Tensor, head: Head) -> list[Tensor]:
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    return list(torch.autograd.grad(value, leaves, retain_graph=True))


KINDS = [
    pytest.param({}, id="plain"),
    pytest.param({"bias": True}, id="with a bias"),
    pytest.param({"softcap": 3.0}, id="soft-capped"),
    pytest.param({"scale": 0.125}, id="scaled"),
    pytest.param({"bias": True, "softcap": 2.0, "scale": 1.5, "columns": 4}, id="everything, four targets a position"),
]


STRATEGIES = pytest.mark.parametrize("strategy", ["keep", "recompute"])


@STRATEGIES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [(3, 4), (7, 23), (100, 1)], ids=["uneven tiles", "one tile", "columns one by one"])
def test_values_and_gradients_are_those_of_log_softmax_and_gather(kind: dict, tile: tuple, strategy: str, monkeypatch):
    rows, columns = tile
    monkeypatch.setitem(head_module.TILE_BYTES, "cpu", 4 * rows * columns)
    hidden, head, targets = problem(**kind)
    expected = plainly(hidden, head, targets)
    outputs = all_of(hidden, head, targets, chunk_tokens=rows, head_strategy=strategy)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(outputs, name), getattr(expected, name), rtol=0, atol=1e-12)
    for names in (OUTPUTS, *([name] for name in OUTPUTS)):
        wanted = gradients(pulled(expected, *names), hidden, head)
        for one, other in zip(gradients(pulled(outputs, *names), hidden, head), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@STRATEGIES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("entropy", "mean_logprobs"),
    [
        (False, False),
        (True, True),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_the_backward_passes_gradcheck(kind: dict, entropy: bool, mean_logprobs: bool, strategy: Any):
    hidden, head, targets = problem(**kind)
    asked = {"entropy": entropy, "mean_logprobs": mean_logprobs}

    def outputs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        own = Head(weight, bias, head.softcap, head.scale)
        outputs = linear_logprobs(hidden, own, targets, chunk_tokens=3, head_strategy=strategy, **asked)
        assert [getattr(outputs, name) is not None for name in asked] == list(asked.values())
        return tuple(value for name in OUTPUTS if (value := getattr(outputs, name)) is not None)

    assert torch.autograd.gradcheck(outputs, (hidden, head.weight, head.bias))


@given(
    rows=st.integers(1, 9),
    tile=st.integers(1, 30),
    seed=st.integers(0, 50),
    strategy=st.sampled_from(["keep", "recompute"]),
)
def test_how_the_work_is_cut_changes_nothing(rows: int, tile: int, seed: int, strategy: str):
    hidden, head, targets = problem(bias=True, seed=seed)
    whole = all_of(hidden, head, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_module.TILE_BYTES, "cpu", 4 * rows * tile)
        cut = all_of(hidden, head, targets, chunk_tokens=rows, head_strategy=strategy)
        wanted = gradients(pulled(whole, *OUTPUTS), hidden, head)
        got = gradients(pulled(cut, *OUTPUTS), hidden, head)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name), rtol=0, atol=1e-12)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_token_named_twice_in_a_row_gets_both_gradients():
    hidden, head, _ = problem()
    twice = torch.full((POSITIONS, 2), 4)
    once = torch.full((POSITIONS,), 4)
    got = gradients(linear_logprobs(hidden, head, twice).logprobs.sum(), hidden, head)
    wanted = gradients(2 * linear_logprobs(hidden, head, once).logprobs.sum(), hidden, head)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_of_equal_logits_entropy_and_mean_logprob_are_the_logarithm_of_the_vocabulary():
    head = Head(torch.zeros(VOCABULARY, WIDTH), torch.full((VOCABULARY,), 2.0))
    outputs = all_of(torch.ones(2, WIDTH), head, torch.tensor([0, 1]))
    logarithm = torch.full((2,), float(VOCABULARY)).log()
    torch.testing.assert_close(outputs.entropy, logarithm)
    torch.testing.assert_close(outputs.mean_logprobs, -logarithm)
    torch.testing.assert_close(outputs.logsumexp, 2 + logarithm)


def test_no_positions_give_no_logprobs_but_a_graph():
    _, head, _ = problem(bias=True)
    hidden = torch.zeros(0, WIDTH, dtype=torch.float64, requires_grad=True)
    outputs = all_of(hidden, head, torch.zeros(0, dtype=torch.int64))
    for name in OUTPUTS:
        assert getattr(outputs, name).shape == (0,)
        for gradient in gradients(getattr(outputs, name).sum(), hidden, head):
            assert not gradient.any()


def test_bfloat16_hidden_states_give_float32_logprobs_and_bfloat16_gradients():
    hidden, head, targets = problem()
    narrow = Head(head.weight.detach().bfloat16().requires_grad_())
    states = hidden.detach().bfloat16().requires_grad_()
    outputs = linear_logprobs(states, narrow, targets)
    assert outputs.logprobs.dtype == torch.float32
    expected = plainly(states.double(), Head(narrow.weight.double()), targets)
    torch.testing.assert_close(outputs.logprobs.double(), expected.logprobs, rtol=0.02, atol=0.02)
    got = gradients(outputs.logprobs.sum(), states, narrow)
    assert [gradient.dtype for gradient in got] == [torch.bfloat16, torch.bfloat16]


def test_a_float32_weight_is_not_rounded_to_the_hidden_states_bfloat16():
    states = torch.ones(1, 2, dtype=torch.bfloat16)
    weight = torch.tensor([[1.0 + 2**-12, 0.0], [1.0, 0.0]])  # bfloat16 would round the difference away
    outputs = linear_logprobs(states, Head(weight), torch.tensor([0]))
    assert outputs.logprobs.item() == pytest.approx(-0.6930251, abs=1e-6)  # ln 2 less half of 2^-12


def test_autocast_does_not_lower_the_precision():
    hidden, head, targets = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = linear_logprobs(hidden.float(), Head(head.weight.float()), targets)
        outputs.logprobs.sum().backward()
    expected = plainly(hidden, head, targets)
    torch.testing.assert_close(outputs.logprobs.double(), expected.logprobs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_give_finite_values_and_gradients(size: float):
    hidden = torch.full((3, 1), size, requires_grad=True)
    weight = torch.linspace(-1, 1, 11)[:, None].requires_grad_()
    outputs = all_of(hidden, Head(weight), torch.tensor([0, 5, 10]), chunk_tokens=2)
    sum(getattr(outputs, name).sum() for name in OUTPUTS).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    for tensor in (*(getattr(outputs, name) for name in OUTPUTS), hidden.grad, weight.grad):
        assert torch.isfinite(tensor).all()
    assert outputs.logsumexp.tolist() == pytest.approx([1e4] * 3)
    assert outputs.mean_logprobs.tolist() == pytest.approx([-1e4] * 3)  # type: ignore[union-attr]
    assert sorted(outputs.logprobs.tolist()) == pytest.approx([-2e4, -1e4, 0.0])


# --- memory -----------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's result holds, views of `known` tensors aside."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.elements = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.elements = max(self.elements, tensor.numel())
        return result


def test_nothing_as_large_as_tokens_times_vocabulary_is_kept_or_made(monkeypatch):
    tokens, width, vocabulary = 512, 8, 4096
    monkeypatch.setitem(head_module.TILE_BYTES, "cpu", 64 * 1024 * 4)
    hidden = torch.randn(tokens, width, requires_grad=True)
    head = Head(torch.randn(vocabulary, width))
    kept: list[int] = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
        LargestTensor() as seen,
    ):
        outputs = all_of(hidden, head, torch.randint(vocabulary, (tokens,)), chunk_tokens=64, head_strategy="recompute")
        sum(getattr(outputs, name).sum() for name in OUTPUTS).backward()
    assert max(kept) == vocabulary * width  # the weight itself
    assert seen.elements == 64 * 1024  # one tile


@STRATEGIES
@pytest.mark.parametrize("names", [OUTPUTS, *([name] for name in OUTPUTS)], ids=" ".join)
def test_positions_without_a_gradient_take_no_part_in_the_backward(names: Sequence[str], strategy: str, monkeypatch):
    hidden, head, targets = problem(columns=2)
    counted = torch.arange(POSITIONS) % 3 == 0

    def of_counted(outputs: HeadOutputs) -> Tensor:
        return torch.stack([getattr(outputs, name)[counted].sum() for name in names]).sum()

    value = of_counted(all_of(hidden, head, targets, head_strategy=strategy))
    real, rows = head_gradients.tile_gradient, []

    def noting(logits, *rest):
        rows.append(len(logits))
        return real(logits, *rest)

    monkeypatch.setattr(head_gradients, "tile_gradient", noting)
    ours = gradients(value, hidden, head)
    assert set(rows) == {int(counted.sum())}
    plain = of_counted(plainly(hidden, head, targets))
    for one, other in zip(ours, gradients(plain, hidden, head), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@STRATEGIES
def test_a_frozen_weight_costs_no_gradient_buffer(strategy: Any):
    hidden = torch.randn(16, 64, requires_grad=True)
    head = Head(torch.randn(1000, 64))
    outputs = linear_logprobs(hidden, head, torch.randint(1000, (16,)), head_strategy=strategy)
    with LargestTensor(head.weight) as seen:
        outputs.logprobs.sum().backward()
    assert seen.elements == 16 * 1000  # the one tile of logits; the weight's gradient would hold 64,000
    assert seen.elements < head.weight.numel()
    assert head.weight.grad is None


# --- the logits of real architectures ----------------------------------------------------------------------------------

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL))


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=0.2))


def granite():
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=0.05))


def cohere():
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=7.0))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=64))


def phi():
    from transformers import PhiConfig, PhiForCausalLM

    return PhiForCausalLM(PhiConfig(**{**SMALL, "num_key_value_heads": 2}))


@pytest.mark.parametrize("build", [llama, gemma2, granite, cohere, gpt2, phi], ids=lambda build: build.__name__)
def test_logprobs_are_those_of_the_models_own_logits(build: Callable):
    torch.manual_seed(0)
    module = build().double().eval()
    if getattr(module.get_output_embeddings(), "bias", None) is not None:
        torch.nn.init.normal_(module.get_output_embeddings().bias)
    model = LoadedModel("test", module, build_tiny_tokenizer(), "decoder", torch.device("cpu"), None)
    tokens = torch.randint(3, 40, (1, 12))
    expected = module(tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
    hidden = model.backbone(tokens).last_hidden_state[0, :-1]
    outputs = linear_logprobs(hidden, model.head(), tokens[0, 1:])
    torch.testing.assert_close(outputs.logprobs, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.head().logits(hidden), module(tokens).logits[0, :-1], rtol=0, atol=1e-12)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"hidden": torch.zeros(2, 4)}, ShapeError, r"hidden must be \[M, 5\].* not \[2, 4\]", id="width"),
        pytest.param({"targets": torch.tensor([1])}, ShapeError, r"targets must be \[2\] or \[2, K\]", id="rows"),
        pytest.param({"targets": torch.tensor([1.0, 2.0])}, DtypeError, "must be int64 token ids", id="float ids"),
        pytest.param({"targets": torch.tensor([1, 23])}, TokenRangeError, "row 1 names token 23", id="too high"),
        pytest.param({"targets": torch.tensor([-100, 2])}, TokenRangeError, "row 0 names token -100", id="negative"),
        pytest.param({"chunk_tokens": 0}, ShapeError, "chunk_tokens must be at least 1", id="chunk of nothing"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(change: dict, error: type[Exception], message: str):
    arguments = {"hidden": torch.zeros(2, WIDTH), "targets": torch.tensor([1, 2]), "chunk_tokens": None, **change}
    with pytest.raises(error, match=message):
        linear_logprobs(head=Head(torch.zeros(VOCABULARY, WIDTH)), **arguments)  # type: ignore[arg-type]
