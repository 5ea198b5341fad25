"""`lossbook doctor parity`: whether the sampler and the trainer give the same logprobs to the same tokens.

A policy-gradient loss divides the trainer's probability of a token by the sampler's. Before the first step both are the
same model, so every ratio should be 1. Any difference is rounding, or a bug that looks like off-policy data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...datums.errors import ConfigError, ModelError, TemplateError
from ..run.loggers import quiet_libraries
from ..settings.choices import Precision

if TYPE_CHECKING:
    from ...trainer import TrainingClient
    from ..rollouts.episodes import Sampler
    from ..rollouts.parity import Parity


def main(
    model: str | None = None,
    run: Path | None = None,
    max_tokens: int = 48,
    num_samples: int = 2,
    temperature: float = 1.0,
    seed: int = 0,
    device: str | None = None,
    dtype: Precision | None = None,
    sampler_url: str | None = None,
    sampler_model: str | None = None,
    sampler_adapters: Path | None = None,
    sampler_bound: float | None = None,
) -> int:
    """Sample, compute the trainer's logprobs of the same tokens, and compare. The exit code is 1 when they disagree.

    Args:
        model: hub id, local directory, .gguf file, or 'tiny'.
        run: a run's folder or a checkpoint, whose weights are used; --model is then optional.
        max_tokens: the most tokens of an answer.
        num_samples: answers per prompt.
        temperature: of the sampling; the logprobs compared are the model's own at any temperature.
        seed: of the sampling.
        device: cpu, cuda, ...; by default the best available.
        dtype: of the matrix products; by default float32 on a CPU, bfloat16 on a GPU.
        sampler_url: sample on a server of the OpenAI completions API (vLLM, SGLang), such as http://localhost:8000.
        sampler_model: the server's name for the model; by default the one it serves.
        sampler_adapters: a folder through which the run's adapters reach the server; without it the base model is compared.
        sampler_bound: the largest mean difference that is accepted, nats; by default 0.002 in float32, 0.1 in bfloat16.
    """
    from ..rollouts.parity import measure_parity

    quiet_libraries()
    training = _client(model, run, device, dtype)
    info = training.get_info()
    print(f"model                  {info.model_name} on {info.device}{f', weights of {run}' if run else ''}")
    template_is_sound = _print_template(training.get_tokenizer())
    where = _sampler(training, run, sampler_url, sampler_model, sampler_adapters)
    with where as sampler:
        result = measure_parity(
            training,
            max_tokens=max_tokens,
            num_samples=num_samples,
            temperature=temperature,
            seed=seed,
            sampler=sampler,
            bound=sampler_bound,
        )
    print(result)
    print(f"verdict                {_verdict(result, served=sampler_url is not None)}")
    return 0 if result.agrees and template_is_sound else 1


def _verdict(result: Parity, *, served: bool) -> str:
    from ..rollouts.server.adapters import MENDS

    if result.agrees:
        return f"they agree: {result.reason}"
    mend = "Until you find the cause, train on logprobs that the trainer computes itself (`training.forward` on the sampled tokens)"
    return f"they DISAGREE: {result.reason}. {MENDS if served else mend}"


@contextmanager
def _sampler(
    training: TrainingClient, run: Path | None, url: str | None, model: str | None, adapters: Path | None
) -> Iterator[Sampler | None]:
    """A sampler on a server, of the adapters in training or of the base model; None: the trainer's own."""
    if url is None:
        if model is not None or adapters is not None:
            raise ConfigError("--sampler-model and --sampler-adapters are for --sampler-url only")
        yield None
        return
    from ..rollouts.server.adapters import ServedPolicy
    from ..rollouts.server.settings import server_of

    is_lora = training.get_info().is_lora
    if adapters is not None and not is_lora:
        raise ConfigError(
            f"{run} trained all weights, which no server loads while it runs: leave --sampler-adapters out"
        )
    if adapters is None and is_lora and run is not None:
        raise ConfigError(
            f"{run} has adapters: name a folder that this process and the server share, --sampler-adapters"
        )
    server = server_of(url, training, model=model)
    print(f"server                 {server.connection.url}, {server.kind}, model {server.base}")
    if adapters is None:
        with closing(server):
            yield server.sampler(training.get_tokenizer())
    else:
        with ServedPolicy(training, server, adapters, run=f"doctor {run}", compared=0) as policy:
            yield policy.save_weights_and_get_sampling_client()


def _client(model: str | None, run: Path | None, device: str | None, dtype: Precision | None) -> TrainingClient:
    from ...trainer import ServiceClient
    from ..run.configs import torch_dtype
    from ..run.runs import find_checkpoint

    service = ServiceClient(device=device, dtype=torch_dtype(dtype))
    if run is not None:
        training = service.create_training_client_from_state(str(find_checkpoint(run)))
        own = training.get_info().model_name
        if model not in (None, own):
            raise ConfigError(f"--model {model!r}, but {run} was trained from {own!r}; leave --model out")
    elif model is not None:
        training = service.create_lora_training_client(model, rank=8, seed=0)
    else:
        raise ConfigError("name a model with --model, or a run with --run")
    if training.get_info().kind != "decoder":
        raise ModelError(
            f"{training.get_info().model_name} is an encoder: it does not sample, so there is nothing to compare"
        )
    return training


def _print_template(tokenizer: Any) -> bool:
    """Print whether the chat template can be trained with, and return it. A model without a template passes."""
    if getattr(tokenizer, "chat_template", None) is None:
        print("chat template          none: prompts are plain text")
        return True
    from ...datums.chat.masks import check_template

    try:
        template = check_template(tokenizer)
    except TemplateError as error:
        print(f"chat template          {error}")
        return False
    how = (
        "marks the assistant's turns" if template.marks_generation else "preserves prefixes, so the mask can be derived"
    )
    print(
        f"chat template          sound: {how}; answers end with {template.stop_token!r}, which is learned "
        f"({template.trained} of {template.total} tokens are learned in a conversation of two turns)"
    )
    return True
