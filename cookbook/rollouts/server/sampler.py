"""Sampling from a server, with the calls of `SamplingClient` that recipes use. Prompts and answers are token ids."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from ....datums.errors import ConfigError, ModelError, SamplerError, did_you_mean
from ....datums.types import ModelInput, SamplingParams, as_model_input
from ....trainer.responses import ModelInfo, SampledSequence, SampleResponse
from ....trainer.sampling.params import Rules, check_params, check_prompt, check_seeds, is_integer
from .answers import Asked, sequences
from .connection import SMALL, WAITS, Connection

T = TypeVar("T")
Kind = Literal["vllm", "sglang", "other"]
#: Bytes that an answer may have for each of its tokens, and for each of its prompt's.
PER_TOKEN, PER_PROMPT_TOKEN = 2048, 32
#: What a server needs to load adapters.
NEEDS = (
    ". vLLM needs --enable-lora, --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, SGLang --enable-lora, --max-lora-rank "
    "and --lora-target-modules; and the server must be able to read the folder of --sampler-adapters under the same path"
)


class Pending(Generic[T]):
    """A call whose requests are under way; `result` waits for them."""

    def __init__(self, requests: Sequence[concurrent.futures.Future[Any]], combined: Callable[[list[Any]], T]) -> None:
        self._requests, self._combined = list(requests), combined

    def result(self, timeout: float | None = None) -> T:
        """What the call returns. Raises what its first failing request did, and TimeoutError after so many seconds."""
        done, waiting = concurrent.futures.wait(self._requests, timeout, concurrent.futures.FIRST_EXCEPTION)
        failed = next((one for one in self._requests if one in done and one.exception() is not None), None)
        if failed is not None:
            for one in waiting:
                one.cancel()
            failed.result()
        if waiting:
            raise TimeoutError(
                f"{len(waiting)} of {len(self._requests)} requests are still under way after {timeout} s"
            )
        return self._combined([one.result() for one in self._requests])


@dataclass(frozen=True)
class ServedModel:
    """The trained model, as far as a server's answers are checked against it.

    max_length   in tokens, the smaller of the trainer's and the server's
    """

    name: str
    vocab_size: int
    max_length: int | None
    end_tokens: frozenset[int]


class SamplingServer:
    """A server that samples from the model that `info` describes, and from adapters on it.

    model        the server's name for the base model; None where it serves one
    connections  the most requests at a time
    timeout, waits  see `Connection`

    Raises SamplerError where the server is away or does not serve the model, ConfigError for an address that is none.
    """

    def __init__(
        self,
        url: str,
        info: ModelInfo,
        *,
        model: str | None = None,
        timeout: float = 600.0,
        connections: int = 64,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self.connection = Connection(url, timeout=timeout, connections=connections, waits=waits)
        self._threads = ThreadPoolExecutor(max_workers=connections, thread_name_prefix="sampling-server")
        try:
            models = self._models()
            self.base = _base(models, model, self.connection.url)
        except BaseException:
            self.close()
            raise
        card = models[self.base]
        owner = str(card.get("owned_by", ""))
        self.kind: Kind = "sglang" if "sglang" in owner else "vllm" if "vllm" in owner else "other"
        lengths = [one for one in (info.max_length, card.get("max_model_len")) if isinstance(one, int) and one > 0]
        self.served = ServedModel(
            info.model_name, info.vocab_size or 0, min(lengths, default=None), frozenset(info.end_tokens)
        )

    def close(self) -> None:
        """End all connections and threads; calls under way fail."""
        self.connection.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def sampler(self, tokenizer: Any, adapter: str | None = None) -> ServerSampler:
        """A sampler of the base model, or of a loaded adapter on it."""
        return ServerSampler(self, tokenizer, adapter)

    def adapters(self) -> list[str]:
        """The names of the adapters that the server has loaded."""
        return [name for name, card in self._models().items() if card.get("parent") is not None]

    def load(self, name: str, folder: str) -> None:
        """Load a folder of peft's form, which the server reads itself, as an adapter. Raises SamplerError."""
        self._change("load", {"lora_name": name, "lora_path": folder})

    def unload(self, name: str) -> None:
        """Unload an adapter. Raises SamplerError."""
        self._change("unload", {"lora_name": name})

    def submit(self, body: dict[str, Any], asked: Asked) -> concurrent.futures.Future[list[SampledSequence]]:
        """Ask for samples on one of the threads. Raises SamplerError after `close`."""
        try:
            return self._threads.submit(self._complete, body, asked)
        except RuntimeError:
            raise SamplerError(
                f"the connection to {self.connection.url} was closed; its samplers end with it"
            ) from None

    def _complete(self, body: dict[str, Any], asked: Asked) -> list[SampledSequence]:
        path = "/v1/completions"
        most = SMALL + asked.count * (PER_TOKEN * asked.max_tokens + PER_PROMPT_TOKEN * len(asked.prompt))
        content = self.connection.post(path, body, most=most, repeatable=True)
        return sequences(self.connection.value(content, path), asked)

    def _models(self) -> dict[str, dict[str, Any]]:
        value = self.connection.get("/v1/models")
        cards = value.get("data") if isinstance(value, dict) else None
        if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("id"), str) for c in cards):
            raise SamplerError(
                f"{self.connection.url}/v1/models gives no list of models: is this an OpenAI-style server?"
            )
        return {card["id"]: card for card in cards}

    def _change(self, verb: str, body: dict[str, str]) -> None:
        path = f"/{verb}_lora_adapter" if self.kind == "sglang" else f"/v1/{verb}_lora_adapter"
        try:
            self.connection.post(path, body)
        except SamplerError as error:
            needs = NEEDS if verb == "load" else ""
            raise SamplerError(f"adapter {body['lora_name']} was not {verb}ed: {error}{needs}") from None


class ServerSampler:
    """Samples from a server's base model, or from one adapter on it; logprobs are the server's."""

    def __init__(self, server: SamplingServer, tokenizer: Any, adapter: str | None) -> None:
        self.server, self.adapter = server, adapter
        self._tokenizer = tokenizer

    def sample(
        self, prompt: ModelInput | Sequence[int], num_samples: int = 1, sampling_params: SamplingParams | None = None
    ) -> Pending[SampleResponse]:
        """`num_samples` continuations of one prompt, as `SamplingClient.sample`."""
        one = self.sample_batch([prompt], sampling_params, num_samples=num_samples)
        return Pending(one._requests, lambda parts: one._combined(parts)[0])

    def sample_batch(
        self,
        prompts: Sequence[ModelInput | Sequence[int]],
        sampling_params: SamplingParams | None = None,
        *,
        num_samples: int = 1,
        seeds: Sequence[int] | None = None,
    ) -> Pending[list[SampleResponse]]:
        """`num_samples` continuations of each prompt, as `SamplingClient.sample_batch`; the requests run at the same time.

        A seed makes samples repeatable only as far as the server's own seeds do. Raises at once for parameters and prompts
        that cannot be, and through `result` SamplerError and what `answers.sequences` raises.
        """
        served, params = self.server.served, sampling_params or SamplingParams()
        rules, lists = check_params(served, params), [as_model_input(prompt).to_ints() for prompt in prompts]
        if not is_integer(num_samples) or num_samples < 1:
            raise ModelError(f"num_samples must be an integer of at least 1, not {num_samples!r}")
        own = [rules.seed] * len(lists) if seeds is None else check_seeds(seeds, len(lists))
        checked = [check_prompt(served, prompt, i, len(lists), params) for i, prompt in enumerate(lists)]
        requests = [
            self._request(prompt, rules, f"{self.server.connection.url}, prompt {i} of {len(lists)}", share, seed)
            for i, prompt in enumerate(checked)
            for share, seed in self._shares(int(num_samples), own[i])
        ]
        pending = [self.server.submit(body, asked) for body, asked in requests]
        return Pending(pending, lambda parts: _grouped(parts, len(lists), int(num_samples)))

    def get_tokenizer(self) -> Any:
        """The trained model's transformers tokenizer."""
        return self._tokenizer

    def _shares(self, count: int, seed: int | None) -> list[tuple[int, int | None]]:
        """The samples and the seed of each request for a prompt.

        SGLang gives all samples of one request its seed, and so the same tokens, where it heeds seeds: there each is asked for
        alone. vLLM adds a sample's number to the seed itself.
        """
        if self.server.kind != "sglang":
            return [(count, seed)]
        return [(1, None if seed is None else seed + number) for number in range(count)]

    def _request(
        self, prompt: list[int], rules: Rules, who: str, count: int, seed: int | None
    ) -> tuple[dict[str, Any], Asked]:
        served, most = self.server.served, rules.max_tokens
        if served.max_length is not None:
            most = min(most or served.max_length, served.max_length - len(prompt))
        assert most is not None  # check_prompt has seen to it
        body: dict[str, Any] = {
            **self._named(),
            **self._stopping(rules),
            "prompt": prompt,
            "n": count,
            "max_tokens": most,
            "temperature": rules.temperature,
            "top_k": rules.top_k,
            "top_p": rules.top_p,
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            # A server has defaults of its own, often those of the model's generation_config.json.
            **{"min_p": 0.0, "min_tokens": 0, "repetition_penalty": 1.0},
            **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
        }
        if seed is not None:
            body["seed"] = seed % 2**63  # servers take 64 bits with a sign
        is_text = bool(rules.stop_strings)
        return body, Asked(who, prompt, count, most, served.vocab_size, rules.stop_ids, is_text)

    def _named(self) -> dict[str, Any]:
        if self.adapter is None:
            return {"model": self.server.base}
        if self.server.kind == "sglang":
            return {"model": self.server.base, "lora_path": self.adapter}
        return {"model": self.adapter}

    def _stopping(self, rules: Rules) -> dict[str, Any]:
        """Where samples end, as our own sampler ends them, and that the token that ended one is part of it."""
        ends = self.server.served.end_tokens
        is_default = bool(rules.stop_ids) and ends <= rules.stop_ids
        if self.server.kind == "sglang" and rules.stop_ids and not is_default:
            raise ModelError("SGLang stops at its end-of-sequence tokens whenever it stops at ids: add them to stop")
        ids = {"stop_token_ids": sorted(rules.stop_ids), "stop": list(rules.stop_strings), "ignore_eos": not is_default}
        if self.server.kind == "sglang":
            return {**ids, "no_stop_trim": True, "skip_special_tokens": False}
        if self.server.kind == "vllm":
            ids |= {
                "include_stop_str_in_output": True,
                "return_tokens_as_token_ids": True,
                "skip_special_tokens": False,
            }
        return ids


def _grouped(parts: Sequence[list[SampledSequence]], prompts: int, count: int) -> list[SampleResponse]:
    flat = [sequence for part in parts for sequence in part]
    return [SampleResponse(flat[i * count : (i + 1) * count], None) for i in range(prompts)]


def _base(models: dict[str, dict[str, Any]], model: str | None, url: str) -> str:
    """The server's name for the base model."""
    bases = [name for name, card in models.items() if card.get("parent") is None]
    if model is None and len(bases) == 1:
        return bases[0]
    if model is None:
        raise ConfigError(
            f"{url} serves {', '.join(bases) or 'no model'}: name the trained model's with --sampler-model"
        )
    if model not in models:
        hint = did_you_mean(model, models)
        raise SamplerError(f"{url} serves no model {model!r}.{hint} It serves {', '.join(models) or 'none'}")
    return model
