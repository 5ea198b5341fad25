"""lossbook's own sampler behind the OpenAI completions API, as vLLM and as SGLang speak it; answers can be spoilt."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lossbook import SamplingParams
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import load_adapter_into
from lossbook.trainer.model.snapshot import Snapshot
from lossbook.trainer.training.frozen_model import FrozenModel

Fault = Callable[["Handler", bytes], None]


class Server(ThreadingHTTPServer):
    """form: "vllm" or "sglang".

    faults    each spoils one answer of /v1/completions, in order, by writing what it likes
    spoil     changes every completion before it is written
    key       the API key that is asked for
    before    is called before every completion
    ignores_adapters, cannot_load   loads them, and samples from the base model; refuses to, with this reason
    requests  (path, body) of every request so far
    """

    daemon_threads = True

    def __init__(self, form: str, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.form, self.key = form, key
        self._one_at_a_time = threading.Lock()
        self._base = _model(None)
        self.as_new()

    def as_new(self) -> Server:
        """The same server as if it had just started."""
        self.faults: list[Fault] = []
        self.spoil: Callable[[dict[str, Any]], Any] = lambda completion: completion
        self.before: Callable[[], Any] = lambda: None
        self.ignores_adapters = False
        self.cannot_load: str | None = None
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.cards: list[dict[str, Any]] = [{"id": "served", "owned_by": self.form, "max_model_len": 200}]
        self.adapters: dict[str, FrozenModel] = {}
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def load(self, body: dict[str, Any]) -> str | None:
        """None, or why not."""
        if self.cannot_load is not None:
            return self.cannot_load
        if body["lora_name"] in self.adapters:
            return f"The lora adapter '{body['lora_name']}' has already been loaded."
        try:
            self.adapters[body["lora_name"]] = _model(body["lora_path"])
        except Exception as error:
            return str(error)
        return None

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body.get("lora_path") if self.form == "sglang" else body["model"]
        if name not in (None, "served", *self.adapters):
            return 404, {"error": {"message": f"The model `{name}` does not exist.", "code": 404}}
        model = self._base if self.ignores_adapters else self.adapters.get(name or "", self._base)
        ends = model.model.end_tokens
        ids = body.get("stop_token_ids") or []
        stop: Any = body.get("stop") or (ids if body.get("ignore_eos") else sorted({*ids, *ends}))
        params = SamplingParams(  # absent ones come from a generation_config.json, as vLLM's do
            max_tokens=body.get("max_tokens", 16),
            temperature=body.get("temperature", 0.3),
            top_k=body.get("top_k", 20),
            top_p=body.get("top_p", 0.8),
            stop=stop,
            seed=body.get("seed"),
        )
        count = body.get("n", 1)
        sampled = 1 if self.form == "sglang" and "seed" in body else count
        with self._one_at_a_time:
            (response,) = model.sample([body["prompt"]], sampled, params)
        sequences = response.sequences * (count // sampled)
        return 200, {"choices": [self._choice(i, body, one) for i, one in enumerate(sequences)]}

    def _choice(self, index: int, body: dict[str, Any], sequence: Any) -> dict[str, Any]:
        tokens = sequence.tokens
        written = [f"token_id:{token}" if body.get("return_tokens_as_token_ids") else "?" for token in tokens]
        choice = {
            "index": index,
            "text": "",
            "finish_reason": sequence.stop_reason,
            "logprobs": None
            if body.get("logprobs") is None
            else {"token_logprobs": sequence.logprobs, "tokens": written, "top_logprobs": None, "text_offset": []},
        }
        if body.get("return_token_ids"):
            choice |= {"token_ids": tokens, "prompt_token_ids": body["prompt"]}
        return choice


def _model(adapter: str | None) -> FrozenModel:
    """The tiny model, with an adapter on it."""
    model = load_model("tiny", device="cpu")
    if adapter is not None:
        load_adapter_into(model, adapter)
    return FrozenModel(Snapshot.sharing(model), EngineSettings())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def served(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._is_let_in():
            loaded = [{"id": name, "owned_by": self.served.form, "parent": "served"} for name in self.served.adapters]
            self.answer(200, {"object": "list", "data": [*self.served.cards, *loaded]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.served.requests.append((self.path, body))
        if not self._is_let_in():
            return
        root = "" if self.served.form == "sglang" else "/v1"
        if self.path == "/v1/completions":
            self.served.before()
            status, value = self.served.complete(body)
            content = json.dumps(self.served.spoil(value) if status == 200 else value).encode()
            if self.served.faults:
                self.served.faults.pop(0)(self, content)
            else:
                self.write(status, content)
        elif self.path == f"{root}/load_lora_adapter":
            self._changed(self.served.load(body))
        elif self.path == f"{root}/unload_lora_adapter":
            gone = self.served.adapters.pop(body["lora_name"], None)
            self._changed(None if gone else f"The lora adapter '{body['lora_name']}' cannot be found.")
        else:
            self.answer(404, {"detail": "Not Found"})

    def answer(self, status: int, value: Any) -> None:
        self.write(status, json.dumps(value).encode())

    def write(self, status: int, content: bytes, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _changed(self, refusal: str | None) -> None:
        status = 200 if refusal is None else 400
        if self.served.form == "sglang":
            self.answer(status, {"success": refusal is None, "error_message": refusal})
        elif refusal is None:
            self.write(200, b"Success: done.")
        else:
            self.answer(status, {"error": {"message": refusal, "code": 400}})

    def _is_let_in(self) -> bool:
        if self.served.key is None or self.headers.get("Authorization") == f"Bearer {self.served.key}":
            return True
        self.answer(401, {"error": "Unauthorized"})
        return False


@contextmanager
def serving(form: str = "vllm", key: str | None = None) -> Iterator[Server]:
    """A server in a thread of this process."""
    with Server(form, key) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
