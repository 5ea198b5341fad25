"""Prompts kept once and prepacked weights: the numbers are the model's own, and it gets everything back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lossbook.datums.types import SamplingParams
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import build_tiny_tokenizer, seeded
from lossbook.trainer.sampling import generate as generate_module
from lossbook.trainer.sampling import prepacked
from lossbook.trainer.sampling.continuations import Continuations
from lossbook.trainer.sampling.decode import Progress
from lossbook.trainer.sampling.generate import generate, generate_batch
from lossbook.trainer.sampling.plan import can_share_prompts, plan_of
from lossbook.trainer.sampling.prepacked import prepacked_weights

PROMPTS = [[258, 117, 10, 104, 105, 259, 10], [5], [200, 3, 77], list(range(20)), [9, 9]]
VOCABULARY = 260
LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
#: Grouped heads, a table of positions, windows on every layer or on some, norms of queries, capped scores and logits.
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {}),
    "gpt2": (transformers.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 8}),
    "mistral": (transformers.MistralConfig, {"sliding_window": 4}),
    "gemma2": (
        transformers.Gemma2Config,
        {
            "head_dim": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "bloom": (transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
}
SHARING = [kind for kind in CONFIGS if kind != "bloom"]


def build(kind: str, *, scale: float = 4.0) -> LoadedModel:
    """A small random decoder whose weights are large enough that it has opinions."""
    make, changes = CONFIGS[kind]
    common = (
        LLAMA_LIKE
        if kind not in ("gpt2", "bloom")
        else {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1}
    )
    with seeded(0):
        module = transformers.AutoModelForCausalLM.from_config(make(**{**common, **changes}))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale if parameter.ndim == 2 else 1.0)
    module.eval().requires_grad_(False)
    return LoadedModel(kind, module, build_tiny_tokenizer(), "decoder", torch.device("cpu"))


@pytest.fixture(params=[0, 10**9], ids=["prepacked weights", "weights as they are"])
def preparing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare weights for any number of steps, or for none."""
    monkeypatch.setattr(prepacked, "WORTHWHILE_STEPS", request.param)


@pytest.fixture
def always_prepacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "WORTHWHILE_STEPS", 0)


def simple(model: LoadedModel, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Greedy decoding without any cache: the whole sequence through the whole model for each token."""
    tokens, logprobs = list(prompt), []
    for _ in range(count):
        with torch.no_grad():
            row = model.module(torch.tensor([tokens]), use_cache=False).logits[0, -1].log_softmax(0)
        tokens.append(int(row.argmax()))
        logprobs.append(float(row.max()))
    return tokens[len(prompt) :], logprobs


# --- the numbers are the model's --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.usefixtures("preparing")
def test_greedy_tokens_and_logprobs_are_those_of_decoding_without_any_cache(kind: str) -> None:
    model = build(kind)
    groups = generate_batch(
        model, PROMPTS, num_samples=2, params=SamplingParams(max_tokens=20, temperature=0.0, stop=[])
    )
    for prompt, group in zip(PROMPTS, groups, strict=True):
        tokens, logprobs = simple(model, prompt, 20)
        for sample in group:
            assert sample.tokens == tokens
            assert sample.logprobs == pytest.approx(logprobs, abs=2e-5)


@pytest.mark.parametrize("kind", SHARING)
def test_this_architecture_keeps_its_prompts_once(kind: str) -> None:
    assert can_share_prompts(build(kind))


def test_an_architecture_whose_positions_lie_in_the_scores_keeps_its_own_cache() -> None:
    assert not can_share_prompts(build("bloom"))


def test_attention_that_would_change_the_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from lossbook.trainer.sampling import shared_prompts

    honest = shared_prompts.attention

    def without_prompts(*args: Any, **options: Any) -> tuple[Tensor, None]:
        attended, _ = honest(*args, **options)
        return attended * 1.01, None

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, shared_prompts.NAME, without_prompts)
    assert not can_share_prompts(build("llama"))


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("repeats", [1, 3])
def test_hidden_states_do_not_depend_on_the_cache_while_rows_leave_and_room_grows(
    kind: str, repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossbook.trainer.sampling import shared_prompts

    monkeypatch.setattr(shared_prompts, "FIRST_ROOM", 2)  # grown at steps 3, 5 and 9
    model, hidden = build(kind), []
    for share_prompts in (False, True):
        rows = Continuations(model, PROMPTS[:3], repeats, 12, share_prompts=share_prompts)
        with torch.no_grad():
            steps = [rows.read()]
            count = len(steps[0])
            for step in range(12):
                if step in (2, 5, 7) and count > 1:  # some of every prompt, then whole prompts
                    kept = [i for i in range(count) if i % 3 != step % 3]
                    rows.keep(kept)
                    count = len(kept)
                steps.append(rows.extend((torch.arange(count) * 7 + step) % VOCABULARY))
        hidden.append(torch.cat(steps))
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-4, atol=1e-4)


def test_prompts_are_stored_once_and_room_grows_only_as_far_as_it_can_be_used() -> None:
    model = build("llama")
    rows = Continuations(model, PROMPTS[:2], 8, 3, share_prompts=True)
    with torch.no_grad():
        rows.read()
        for _ in range(2):
            rows.extend(torch.zeros(16, dtype=torch.int64))
    layer = rows.cache.layers[0]
    assert layer.keys.shape[:3] == (2, 2, 7)
    assert layer.own.shape == (2, 2, 2, 8, 3, 8)


# --- adapters and prepacked weights ------------------------------------------------------------------------------------


def adapted(kind: str) -> LoadedModel:
    model = add_lora(build(kind, scale=2.0), rank=4, seed=0, train_unembed=True)
    with torch.no_grad(), seeded(1):
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def hidden_of(model: LoadedModel) -> Tensor:
    with torch.no_grad():
        return model.backbone(torch.tensor([PROMPTS[0]])).last_hidden_state


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("make", [build, adapted], ids=["all weights", "adapters"])
def test_prepared_weights_give_the_models_own_hidden_states_and_logits(
    kind: str, make: Callable[[str], LoadedModel]
) -> None:
    model = make(kind)
    own = hidden_of(model)
    with torch.no_grad(), prepacked_weights(model, steps=1000) as logits:
        prepacked_states = hidden_of(model)
        torch.testing.assert_close(prepacked_states, own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits(own[0]), model.head().logits(own[0]), rtol=1e-5, atol=1e-5)


def test_all_linear_layers_are_prepared_and_an_adapters_own_are_not_run() -> None:
    model = adapted("llama")
    adapters = [part for name, part in model.backbone.named_modules() if name.endswith("lora_A.default")]
    assert len(adapters) == 3 * 7

    def forbid(*_: Any) -> None:
        raise AssertionError("an adapter ran by itself")

    handles = [part.register_forward_pre_hook(forbid) for part in adapters]
    with prepacked_weights(model, steps=1000):
        hidden_of(model)
    with prepacked_weights(model, steps=1), pytest.raises(AssertionError, match="ran by itself"):
        hidden_of(model)  # not worth it
    for handle in handles:
        handle.remove()


def test_prepared_weights_are_not_made_in_bfloat16() -> None:
    model = build("llama")
    model.module.to(torch.bfloat16)
    with prepacked_weights(model, steps=1000):
        assert not any("forward" in vars(part) for part in model.module.modules())


def everything(model: LoadedModel) -> dict[str, Any]:
    """Bits and places of the weights, and all else that sampling touches."""
    parts = list(model.module.modules())
    return {
        "places": {name: p.data_ptr() for name, p in model.module.named_parameters()},
        "bits": {name: p.detach().numpy().tobytes() for name, p in model.module.named_parameters()},
        "layouts": {name: p.stride() for name, p in model.module.named_parameters()},
        "modes": [part.training for part in parts],
        "attention": [part.config._attn_implementation for part in parts if hasattr(part, "config")],
        "attributes": [sorted(vars(part)) for part in parts],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts],
    }


@pytest.fixture(params=["nothing fails", "the callback fails", "the model fails", "the choice fails"])
def failure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a call that fails in the middle, and the error to expect."""
    options: dict[str, Any] = {"error": None}
    if request.param == "the callback fails":

        def interrupt(progress: Progress) -> None:
            if progress.tokens > 12:
                raise KeyError("enough")

        options = {"error": KeyError, "on_progress": interrupt}
    elif request.param == "the model fails":
        original, calls = Continuations.extend, []

        def extend(self: Continuations, tokens: Tensor) -> Tensor:
            calls.append(1)
            return original(self, tokens + (10**6 if len(calls) > 12 else 0))

        monkeypatch.setattr(Continuations, "extend", extend)
        options = {"error": IndexError}
    elif request.param == "the choice fails":
        monkeypatch.setattr("lossbook.trainer.sampling.blocks.choose", lambda *_: 1 / 0)
        options = {"error": ZeroDivisionError}
    return options


@pytest.mark.usefixtures("always_prepacked")
@pytest.mark.parametrize("make", [build, adapted], ids=["all weights", "adapters"])
def test_the_model_is_bit_for_bit_as_before_and_nothing_stays_attached(
    make: Callable[[str], LoadedModel], failure: dict[str, Any]
) -> None:
    model = make("mistral")
    model.module.train()
    model.module.get_submodule(next(n for n, p in model.module.named_modules() if isinstance(p, nn.Linear))).eval()
    before = everything(model)
    error = failure.pop("error")
    params = SamplingParams(max_tokens=30, seed=0, stop=[])
    if error is None:
        generate_batch(model, PROMPTS, num_samples=2, params=params, **failure)
    else:
        with pytest.raises(error):
            generate_batch(model, PROMPTS, num_samples=2, params=params, **failure)
    assert everything(model) == before


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_adds_up_over_all_batches_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "MAX_ROWS", 4)
    seen: list[Progress] = []
    params = SamplingParams(max_tokens=9, seed=0, stop=list(range(40)))
    groups = generate_batch(build("llama"), PROMPTS, num_samples=2, params=params, on_progress=seen.append)
    lengths = [len(sample.tokens) for group in groups for sample in group]
    assert len(set(lengths)) > 1, "rows stop at different times"
    assert (seen[-1].tokens, seen[-1].finished, seen[-1].running) == (sum(lengths), 10, 0)
    assert all(later.tokens > earlier.tokens for earlier, later in pairwise(seen))
    assert all(later.finished >= earlier.finished for earlier, later in pairwise(seen))
    assert max(progress.running for progress in seen) <= 4
    assert all(progress.tokens_per_second > 0 for progress in seen)


def test_a_prompt_that_ends_at_once_needs_no_second_step() -> None:
    seen: list[Progress] = []
    generate(build("llama"), [5], num_samples=3, params=SamplingParams(max_tokens=1), on_progress=seen.append)
    assert [(progress.tokens, progress.running, progress.finished) for progress in seen] == [(3, 0, 3)]


def test_a_model_without_a_cache_is_read_anew_for_each_token_and_gives_the_same_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = load_model("tiny", device="cpu")
    forward = model.backbone.forward

    def forget(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.past_key_values = None
        return output

    params = SamplingParams(max_tokens=6, seed=1, stop=[])
    expected = generate(load_model("tiny", device="cpu"), [5], num_samples=2, params=params)
    monkeypatch.setattr(model.backbone, "forward", forget)
    samples = generate(model, [5], num_samples=2, params=params)
    assert not plan_of(model).cached
    assert [sample.tokens for sample in samples] == [sample.tokens for sample in expected]
