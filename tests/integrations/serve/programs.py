"""Programs of Tinker's unmodified SDK, which tests run as processes of their own against a server: `sdk.run`.

Each takes a ServiceClient and the module `tinker`, and returns what can be written as JSON. A process of its own, since the SDK
leaves sockets open, and since a program is what users have.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any
from urllib.request import urlopen

import pytest

from . import story


def numbers(service: Any, tinker: Any) -> dict[str, Any]:
    """All losses and samples of the story."""
    client, told = story.train(service, tinker.types)
    return {**told, "samples": story.sample(client.save_weights_and_get_sampling_client(), tinker.types)}


def checkpoints(service: Any, tinker: Any) -> None:
    """A checkpoint goes on as if nothing had happened, and without its optimizer it does not."""
    client, _ = story.train(service, tinker.types)
    path = client.save_state("here").result().path
    again = service.create_training_client_from_state_with_optimizer(path).result()
    cold = service.create_training_client_from_state(path).result()
    losses = []
    for one in (client, again, cold):
        one.forward_backward(story.datums(tinker.types), "cross_entropy").result()
        one.optim_step(tinker.types.AdamParams(learning_rate=1e-2)).result()
        losses.append(story.numbers(one.forward(story.datums(tinker.types), "cross_entropy").result()))
    assert losses[0] == losses[1] != losses[2]
    before = story.numbers(again.forward(story.datums(tinker.types), "cross_entropy").result())
    client.load_state_with_optimizer(path).result()
    assert story.numbers(client.forward(story.datums(tinker.types), "cross_entropy").result()) != before


def samplers(service: Any, tinker: Any) -> None:
    """Samplers stay what they were while their model trains on."""
    client, _ = story.train(service, tinker.types)
    named = service.create_sampling_client(model_path=client.save_weights_for_sampler("named").result().path)
    short = client.save_weights_and_get_sampling_client()
    base = service.create_sampling_client(base_model="tiny")
    before = story.sample(named, tinker.types)
    client.forward_backward(story.datums(tinker.types), "cross_entropy").result()
    client.optim_step(tinker.types.AdamParams(learning_rate=1e-1)).result()
    assert story.sample(named, tinker.types) == before
    assert story.sample(short, tinker.types) == before
    assert story.sample(base, tinker.types) != before
    assert named.get_base_model() == "tiny"


def mistakes(service: Any, tinker: Any) -> None:
    """What is wrong with a request is told by its future, and the client goes on."""
    types = tinker.types
    client = service.create_lora_training_client("tiny", rank=2, seed=0).result()
    for tokens, weights, loss, told in (
        ([1, 2], [1.0, 1.0], "cross_entropi", "cross_entropy"),
        ([1, 10**6], [1.0, 1.0], "cross_entropy", "datum 3"),
        ([1, 2], [1.0], "cross_entropy", "weights"),
        ([1, 2], [1.0, math.nan], "cross_entropy", "weights"),
    ):
        datum = types.Datum(
            model_input=types.ModelInput.from_ints(tokens),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=[2, 3], dtype="int64", shape=[2]),
                "weights": types.TensorData(data=weights, dtype="float32", shape=[len(weights)]),
            },
        )
        with pytest.raises(tinker.RequestFailedError) as failure:
            client.forward_backward([*story.datums(types), datum], loss).result(timeout=3000)
        assert failure.value.category.value == "user"
        assert told in str(failure.value)
        client.forward_backward(story.datums(types), "cross_entropy").result(timeout=3000)
        assert client.optim_step(types.AdamParams()).result(timeout=3000).metrics
    client.save_state("taken").result()
    with pytest.raises(tinker.RequestFailedError) as failure:
        client.save_state("taken").result(timeout=3000)
    assert failure.value.category.value == "user"


def other_models(service: Any, tinker: Any) -> None:
    """Models that the server was not given are refused, in words that name those it has."""
    for name in ("/etc", "Qwen/Qwen3-8B", "../tiny", "file:///etc/passwd"):
        with pytest.raises((tinker.RequestFailedError, tinker.APIStatusError)) as refused:
            service.create_lora_training_client(name, rank=2).result(timeout=3000)
        assert "tiny" in str(refused.value)


def rest(service: Any, tinker: Any) -> dict[str, Any]:
    """Runs and checkpoints are listed, marked, downloaded and deleted; returns the addresses of files."""
    client = service.create_lora_training_client("tiny", rank=2, seed=0, user_metadata={"why": "a test"}).result()
    path = client.save_state("kept").result().path
    external = client.save_weights_external("exported").result()
    rest = service.create_rest_client()
    run = rest.get_training_run_by_tinker_path(path).result()
    assert (run.base_model, run.lora_rank, run.last_checkpoint.tinker_path) == ("tiny", 2, path)
    assert run.training_run_id in {one.training_run_id for one in rest.list_training_runs().result().training_runs}
    assert rest.get_weights_info_by_tinker_path(path).result().is_lora
    rest.publish_checkpoint_from_tinker_path(path).result()
    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    there = rest.list_checkpoints(run.training_run_id).result().checkpoints
    (listed,) = [one for one in there if one.tinker_path == path]
    assert listed.public
    assert listed.expires_at is not None
    urls = rest.get_external_weights_urls(external.path).result().urls
    with urlopen(urls["adapter_config.json"], timeout=300) as answer:
        assert json.load(answer)["r"] == 2
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert path not in {one.tinker_path for one in rest.list_user_checkpoints().result().checkpoints}
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(path).result()
    copied = rest.copy_weights(external.path, "a-project").result()
    assert copied.endswith("/exported")
    return urls


def command_line(service: Any, tinker: Any, folder: str) -> None:
    """The SDK's own command `tinker` lists, shows, marks, downloads and deletes."""
    from click.testing import CliRunner
    from tinker.cli.__main__ import main_cli

    client = service.create_lora_training_client("tiny", rank=2, seed=0).result()
    path = client.save_state("kept").result().path
    exported = client.save_weights_external("exported").result().path
    run = path.removeprefix("tinker://").partition("/")[0]

    def told(*words: str, fails: bool = False) -> str:
        done = CliRunner().invoke(main_cli, ["-f", "json", *words])
        assert (done.exit_code != 0) == fails, (words, done.output, done.exception)
        return done.output

    assert "tiny" in told("model", "list")
    assert run in told("run", "list", "--limit", "0")
    assert '"lora_rank": 2' in told("run", "info", run)
    there = told("checkpoint", "list", "--run-id", run)
    assert path in there
    assert exported in there
    told("checkpoint", "publish", path)
    told("checkpoint", "set-ttl", path, "--ttl", "3600")
    assert '"public": true' in told("checkpoint", "info", path)
    told("checkpoint", "download", exported, "-o", folder)
    told("checkpoint", "delete", path, "-y")
    told("checkpoint", "info", path, fails=True)


def interrupted(service: Any, tinker: Any, marker: str) -> dict[str, Any]:
    """Train, say so, wait until the server was stopped and started again, and train on; what it would be without that too."""
    types = tinker.types
    step = types.AdamParams(learning_rate=1e-2)
    client = service.create_lora_training_client("tiny", rank=4, seed=0).result()

    def trained() -> Any:
        told = client.forward_backward(story.datums(types), "cross_entropy").result(timeout=3000)
        client.optim_step(step).result(timeout=3000)
        return story.numbers(told)

    first = [trained() for _ in range(2)]
    print(marker, flush=True)
    sys.stdin.readline()
    return {"losses": [*first, *(trained() for _ in range(2))]}


def keys(service: Any, tinker: Any) -> None:
    """A model and a checkpoint, for tests that look at what was written."""
    client, _ = story.train(service, tinker.types)
    client.save_state("kept").result()


def main(name: str, *arguments: str) -> None:
    """Run a program; what it returns is the last line."""
    import tinker

    service = tinker.ServiceClient()
    begun = time.monotonic()
    told = globals()[name](service, tinker, *arguments)
    service.close("success").result(timeout=3000)
    print(f"{name} took {time.monotonic() - begun:.1f} s", file=sys.stderr)
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
