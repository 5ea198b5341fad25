"""The examples in the official SDK's own docstrings run here as they stand.

They are read from the installed package, which is not imported. Names of models, runs and sessions in them are made to exist.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lossbook.integrations import tinker

pytestmark = pytest.mark.slow
MODEL = "Qwen/Qwen3-8B"
CHECKPOINTS = ("checkpoint-001", "step-400", "0001")
#: Examples that cannot run: what they raise, and why.
CANNOT: dict[str, tuple[type[Exception], str]] = {
    # with the SDK itself neither: it refuses a ModelInput as target_tokens, its results have no `loss`, its checkpoints no run
    "training_client.forward.0": (TypeError, "target_tokens"),
    "training_client.forward_backward.0": (TypeError, "target_tokens"),
    "training_client.forward_backward_custom.0": (AttributeError, "loss"),
    "rest_client.list_user_checkpoints.0": (AttributeError, "training_run_id"),
    # what one process has not: an account, its bills and its log; the service's trace
    "admin_client.AdminClient.0": (tinker.BadRequestError, "billing"),
    "admin_client.get_audit_log.0": (tinker.BadRequestError, "audit"),
    "admin_client.get_billing_usage.0": (tinker.BadRequestError, "billing"),
    "rest_client.export_session_trace.0": (tinker.BadRequestError, "trace"),
    "rest_client.export_session_trace.1": (tinker.BadRequestError, "trace"),
    # the SDK says "internal usage" of it
    "api_future.AwaitableConcurrentFuture.0": (NameError, "some_operation"),
    "sampling_client.sample.2": (ValueError, "topk_prompt_logprobs"),
}


def examples() -> Iterator[tuple[str, str]]:
    """(module.function.number, code) of every Python block in a docstring of the SDK's public interfaces."""
    spec = importlib.util.find_spec("tinker")
    folder = Path(spec.origin or "").parent / "lib" / "public_interfaces" if spec is not None else Path("nowhere")
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                blocks = re.findall(r"```python\n(.*?)```", ast.get_docstring(node) or "", re.DOTALL)
                yield from ((f"{path.stem}.{node.name}.{i}", block) for i, block in enumerate(blocks))


EXAMPLES = dict(examples())


@pytest.fixture
def names(configure: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples' names stand for."""
    monkeypatch.setitem(sys.modules, "tinker", tinker)
    monkeypatch.setitem(sys.modules, "tinker.types", tinker.types)
    configure(models={MODEL: "tiny"})
    service = tinker.ServiceClient()
    training = service.create_lora_training_client(MODEL, rank=4, seed=0).result()
    for name in CHECKPOINTS:
        training.save_state(name).result()
    ids = tinker.ModelInput.from_ints([1, 2, 3])
    data = [tinker.Datum(ids, {"target_tokens": [2, 3, 4], "weights": [0.0, 1.0, 1.0]})]
    params = tinker.SamplingParams(max_tokens=2)
    rest = service.create_rest_client()
    session_id = training.model_id.partition(":")[0]
    return {
        "run-id": training.model_id,
        "session-id": session_id,
        "tinker": tinker,
        "types": tinker.types,
        "torch": torch,
        "asyncio": asyncio,
        "AwaitableConcurrentFuture": tinker.lib.public_interfaces.AwaitableConcurrentFuture,
        "ServiceClient": tinker.ServiceClient,
        "client": service,
        "service_client": service,
        "training_client": training,
        "sampling_client": training.save_weights_and_get_sampling_client().result(),
        "rest_client": rest,
        "admin_client": tinker.AdminClient(),
        "api_future": rest.get_session(session_id),
        "tokenizer": training.get_tokenizer(),
        "data": data,
        "training_data": data,
        "prompt": ids,
        "params": params,
        "long_context": "Once upon a time",
        "completions": [" there", " was a"],
        "candidate_token_id": 3,
        "custom_loss": lambda data, rows: (-torch.cat(rows).sum(), {}),
    }


@pytest.mark.skipif(not EXAMPLES, reason="the official SDK comes with lossbook[peers]")
def test_there_are_examples_and_no_exception_for_one_that_is_gone() -> None:
    assert len(EXAMPLES) > 50
    assert set(CANNOT) <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_sdk_runs_as_it_stands(names: dict[str, Any], name: str, tmp_path: Path) -> None:
    source = EXAMPLES[name].replace("run-id", names["run-id"]).replace("session-id", names["session-id"])
    if "save_state" in name:
        source = source.replace("checkpoint-001", "another")  # the others' exists already
    if name == "api_future.coroutine.0":
        source += "await task\n"  # a task is made where a loop runs
    if "unpublish" in name:
        names["rest_client"].publish_checkpoint_from_tinker_path(f"tinker://{names['run-id']}/weights/0001").result()
    code = compile(source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

    def run() -> None:
        ending = eval(code, dict(names))  # a coroutine where the example awaits
        if inspect.iscoroutine(ending):
            asyncio.run(asyncio.wait_for(ending, 120))

    if name not in CANNOT:
        run()
        return
    kind, words = CANNOT[name]
    with pytest.raises(kind, match=words):
        run()
