"""The model's answers to fixed prompts during training: a falling loss alone does not show that the text makes sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...datums.chat.template import decoded, prompt_of_user
from ...datums.errors import TemplateError, panics_as
from ...datums.types import ModelInput, SamplingParams
from ..run.loggers import StepDisplay
from ..run.names import SAMPLES
from ..run.runs import Run

if TYPE_CHECKING:
    from ...trainer import TrainingClient

#: Characters of a prompt and of an answer that are shown; samples.jsonl has the whole text.
SHOWN = 160


def prompt_tokens(text: str, tokenizer: Any) -> list[int]:
    """The text as a user's turn, up to where the assistant answers; the plain text where there is no chat template."""
    if getattr(tokenizer, "chat_template", None) is not None:
        return prompt_of_user(text, tokenizer)
    with panics_as(TemplateError, f"the tokenizer, on the text {text[:40]!r},"):
        return list(tokenizer.encode(text))


def record_samples(
    run: Run, display: StepDisplay, training: TrainingClient, step: int, prompts: Sequence[str], *, max_tokens: int
) -> None:
    """Append the current weights' greedy answers to samples.jsonl, one row per prompt, and show them.

    Greedy decoding draws no random number, so answers change from step to step only because the weights do.
    """
    tokenizer = training.get_tokenizer()
    inputs = [ModelInput.from_ints(prompt_tokens(prompt, tokenizer)) for prompt in prompts]
    greedy = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    sampler = training.save_weights_and_get_sampling_client()
    for prompt, response in zip(prompts, sampler.sample_batch(inputs, greedy).result(), strict=True):
        sequence = response.sequences[0]
        answer = decoded(sequence.tokens, tokenizer, skip_special_tokens=True)
        run.append(SAMPLES, {"step": step, "prompt": prompt, "answer": answer, "stop_reason": sequence.stop_reason})
        display.note(f"step {step}  {_short(prompt)} -> {_short(answer)}")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN else line[:SHOWN] + "…")
