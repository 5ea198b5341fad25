"""The gradient that a trainer must have: all rows of a step as datums, each run through the model alone, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput
from lossbook.losses import LossLike

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

VOCABULARY = 32
PAD = 0
#: (prompt, response) lengths of eight rows: no two alike, so that any wrong denominator shows.
LENGTHS = [(2, 3), (4, 1), (1, 6), (3, 2), (2, 5), (5, 4), (1, 2), (3, 7)]
#: The largest difference that rounding explains, relative to the largest entry of a gradient.
CLOSE = 1e-6

Gradients = dict[str, Tensor]


def tiny(seed: int = 0, *, vocabulary: int = VOCABULARY, pad: int = PAD, end: int = 1) -> LlamaForCausalLM:
    """A two-layer Llama of random float64 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=pad,
        bos_token_id=None,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config).double()


def tokens(seed: int = 1) -> list[tuple[list[int], list[int]]]:
    """Eight prompts and responses of unequal lengths; token 0 is padding and 1 the end."""
    made = torch.Generator().manual_seed(seed)

    def some(count: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (count,), generator=made).tolist()

    return [(some(prompt), some(response)) for prompt, response in LENGTHS]


def numbers(seed: int) -> list[list[float]]:
    """One number per token of each row, normally distributed."""
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(prompt + response, generator=made).tolist() for prompt, response in LENGTHS]


def datum(prompt: Sequence[int], response: Sequence[int], **inputs: Any) -> Datum:
    """A datum trained on its response. inputs: numbers per token, beside it, or one number."""
    whole = [*prompt, *response]
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(response)
    placed = {name: value[1:] if isinstance(value, Sequence) else value for name, value in inputs.items()}
    return Datum(ModelInput.from_ints(whole[:-1]), {"target_tokens": whole[1:], "weights": weights, **placed})


def outputs(model: Any, data: Sequence[Datum]) -> dict[str, list[Tensor]]:
    """Each datum's logprobs and entropy, of a forward of its own."""
    said: dict[str, list[Tensor]] = {"logprobs": [], "entropy": []}
    for one in data:
        logits = model(torch.tensor([one.model_input.to_ints()])).logits[0]
        logprobs = logits.log_softmax(-1)
        targets = torch.tensor(one.loss_fn_inputs["target_tokens"].tolist())
        said["logprobs"].append(logprobs.gather(1, targets[:, None])[:, 0])
        said["entropy"].append(-(logprobs.exp() * logprobs).sum(-1))
    return said


def gradients(model: Any) -> Gradients:
    """The gradients that a model's parameters hold."""
    return {name: one.grad.detach().clone() for name, one in model.named_parameters() if one.grad is not None}


def wanted_gradients(model: Any, loss: LossLike, data: Sequence[Datum]) -> Gradients:
    """Those of one batch of datums."""
    model.zero_grad()
    said = outputs(model, data)
    value, _ = loss(data, {name: said[name] for name in loss.outputs})
    value.backward()
    made = gradients(model)
    model.zero_grad()
    return made


def assert_same(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], close: float = CLOSE) -> None:
    assert got.keys() == wanted.keys()
    scale = max(float(one.abs().max()) for one in wanted.values())
    assert scale > 1e-3, "a gradient of 0 would show nothing"
    for name, one in wanted.items():
        assert float((got[name] - one).abs().max()) <= close * scale, name


@cache
def _catcher() -> type:
    from transformers import TrainerCallback

    class Catcher(TrainerCallback):
        def __init__(self) -> None:
            self.steps: list[Gradients] = []

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
            self.steps.append(gradients(model))

    return Catcher


def catcher() -> Any:
    """A callback whose `steps` are the gradients that the Trainer hands to its optimizer."""
    return _catcher()()


def settings(folder: Any, accumulation: int, rows: int = 8, **others: Any) -> dict[str, Any]:
    """Arguments of a Trainer whose one step sees all rows, cut into `accumulation` micro-batches, and does not move."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows // accumulation,
        "gradient_accumulation_steps": accumulation,
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        **others,
    }
