"""A policy that is sampled on a server: its adapters get there, count, and are taken away again; or training does not begin."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lossbook as lb
from lossbook import AdamParams, SamplingParams, ServiceClient
from lossbook.cookbook.cli import main
from lossbook.cookbook.environments import Problem
from lossbook.cookbook.environments.protocol import SingleTurn
from lossbook.cookbook.rl import RLConfig
from lossbook.cookbook.rollouts.collector import RolloutCollector
from lossbook.cookbook.rollouts.episodes import RolloutRunner
from lossbook.cookbook.rollouts.server.adapters import ServedPolicy
from lossbook.cookbook.rollouts.server.sampler import SamplingServer
from lossbook.datums.errors import SamplerError

from .serving import Server, serving

PROMPT = [72, 105, 33]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    with serving("vllm") as one, serving("sglang") as other:
        yield {"vllm": one, "sglang": other}


@pytest.fixture(params=["vllm", pytest.param("sglang", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param].as_new()


@pytest.fixture(params=["vllm", "sglang"])
def each(request: pytest.FixtureRequest, servers: dict[str, Server]) -> Server:
    return servers[request.param].as_new()


@pytest.fixture
def vllm(servers: dict[str, Server]) -> Server:
    return servers["vllm"].as_new()


@pytest.fixture
def training() -> lb.TrainingClient:
    return ServiceClient(device="cpu").create_lora_training_client("tiny", rank=2, seed=0)


def policy_on(server: Server, training: lb.TrainingClient, folder: Path, **options: Any) -> ServedPolicy:
    opened = SamplingServer(server.url, training.get_info(), waits=(0.0,))
    return ServedPolicy(training, opened, folder, **{"run": "a run", "compared": 0, **options})


def update(training: lb.TrainingClient, learning_rate: float = 0.05) -> None:
    datum = lb.datum_from_tokens_weights([*PROMPT, 1, 2, 3], [0.0] * 3 + [1.0] * 3)
    training.forward_backward([datum], "cross_entropy").result()
    training.optim_step(AdamParams(learning_rate=learning_rate)).result()


def test_after_an_update_the_server_samples_from_the_updated_adapters_and_the_old_ones_are_gone(
    each: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    params = SamplingParams(max_tokens=6, temperature=0.0)
    with policy_on(each, training, tmp_path) as policy:
        sampler = policy.save_weights_and_get_sampling_client()
        before = sampler.sample(PROMPT, 1, params).result()
        first = set(each.adapters)
        update(training)
        del sampler
        sampler = policy.save_weights_and_get_sampling_client()
        after = sampler.sample(PROMPT, 1, params).result()
        local = training.save_weights_and_get_sampling_client().sample(PROMPT, 1, params).result()
        assert after.sequences[0].tokens == local.sequences[0].tokens != before.sequences[0].tokens
        assert after.sequences[0].logprobs == pytest.approx(local.sequences[0].logprobs, abs=1e-5)
        policy.save_weights_and_get_sampling_client()
        assert len(each.adapters) == 1
        assert not first & set(each.adapters)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(each.adapters)
        del sampler
    assert each.adapters == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_name_is_never_used_again_also_by_a_run_that_continues(
    server: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    """vLLM keeps what it computed of prompts under the adapter's name."""
    for _ in range(2):
        with policy_on(server, training, tmp_path) as policy:
            policy.save_weights_and_get_sampling_client()
    loaded = [body["lora_name"] for path, body in server.requests if path.endswith("/load_lora_adapter")]
    assert len(loaded) == len(set(loaded)) == 4  # each time one of noise, and one of the run


@pytest.mark.slow
def test_what_a_killed_run_left_behind_is_unloaded_and_what_others_loaded_stays(
    server: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    killed, other = policy_on(server, training, tmp_path), policy_on(server, training, tmp_path, run="another run")
    left, kept = killed.save_weights_and_get_sampling_client(), other.save_weights_and_get_sampling_client()
    with policy_on(server, training, tmp_path):
        assert set(server.adapters) & {left.adapter, kept.adapter} == {kept.adapter}
        assert not (tmp_path / str(left.adapter)).exists()
        assert (tmp_path / str(kept.adapter)).exists()
    killed.server.close()
    other.server.close()


@pytest.mark.slow
def test_equal_weights_are_loaded_once(vllm: Server, training: lb.TrainingClient, tmp_path: Path) -> None:
    with policy_on(vllm, training, tmp_path) as policy:
        first = policy.save_weights_and_get_sampling_client()
        assert policy.save_weights_and_get_sampling_client() is first
        update(training)
        assert policy.save_weights_and_get_sampling_client() is not first


def test_a_server_that_loads_adapters_and_ignores_them_is_refused_before_the_first_step(
    server: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    """The first adapters change nothing, so its logprobs are the trainer's all the same."""
    server.ignores_adapters = True
    with (
        policy_on(server, training, tmp_path) as policy,
        pytest.raises(SamplerError, match="answers alike with an adapter of noise and without"),
    ):
        policy.save_weights_and_get_sampling_client()


@pytest.mark.parametrize(
    ("factor", "refused"),
    [
        pytest.param(1 / 0.9, True, id="logprobs at another temperature"),
        pytest.param(1.0001, False, id="rounding, at most 0.002 nats on average", marks=pytest.mark.slow),
    ],
)
def test_a_server_whose_logprobs_are_not_the_trainers_is_refused_before_the_first_step(
    factor: float, refused: bool, vllm: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    vllm.spoil = scaled(factor)
    with policy_on(vllm, training, tmp_path, compared=2) as policy:
        if not refused:
            policy.save_weights_and_get_sampling_client()
            return
        with pytest.raises(SamplerError, match=r"give other logprobs to the same \d+ tokens: mean") as raised:
            policy.save_weights_and_get_sampling_client()
        assert "--logprobs-mode raw_logprobs" in str(raised.value)
        policy.bound = 10.0
        assert policy.save_weights_and_get_sampling_client()


@pytest.mark.slow
def test_adapters_that_the_server_scales_in_another_way_are_refused_once_they_count(
    vllm: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    with policy_on(vllm, training, tmp_path, compared=2) as policy:
        policy.save_weights_and_get_sampling_client()
        update(training)
        vllm.ignores_adapters = True
        with pytest.raises(SamplerError, match="give other logprobs"):
            policy.save_weights_and_get_sampling_client()


def scaled(factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(completion: dict[str, Any]) -> dict[str, Any]:
        for choice in completion["choices"]:
            logprobs = choice["logprobs"]
            logprobs["token_logprobs"] = [factor * one for one in logprobs["token_logprobs"]]
        return completion

    return change


def test_a_server_that_cannot_load_is_refused_with_what_it_needs(
    each: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    each.cannot_load = "LoRA is not enabled"
    with (
        policy_on(each, training, tmp_path) as policy,
        pytest.raises(SamplerError, match=r"was not loaded: .*LoRA is not enabled.*--enable-lora.*same path"),
    ):
        policy.save_weights_and_get_sampling_client()


def test_an_adapter_that_is_not_unloaded_is_a_warning(
    vllm: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    policy = policy_on(vllm, training, tmp_path)
    policy.save_weights_and_get_sampling_client()
    vllm.adapters.clear()
    with pytest.warns(UserWarning, match=r"was not unloaded: .*cannot be found"):
        policy.__exit__(None, None, None)


def test_sampling_ahead_on_a_server_goes_on_while_the_trainer_trains(
    vllm: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    """From the second step's rollouts on the server answers when the trainer's update is done: it cannot have waited for them."""
    config = RLConfig.model_validate(
        {"task": "gcd", "problems_per_step": 2, "group_size": 2, "max_tokens": 2, "off_policy_steps": 1}
    )
    problems = [Problem(str(i), lambda: SingleTurn([{"role": "user", "content": "x"}], len)) for i in range(4)]
    runner = RolloutRunner(training.get_tokenizer(), 2)
    trained, answers = threading.Event(), iter(range(100))
    with policy_on(vllm, training, tmp_path) as policy, RolloutCollector(config, runner, problems, policy) as collector:
        policy.save_weights_and_get_sampling_client()  # compared with the trainer
        vllm.before = lambda: next(answers) < config.problems_per_step or trained.wait(60)
        collector.get(1, is_last=False)
        update(training)
        assert next(answers) <= 2 * config.problems_per_step  # of two steps, and this one
        trained.set()
        rollouts = collector.get(2, is_last=True)
    assert len(rollouts.groups) == 2


def test_after_an_error_a_server_that_does_not_unload_is_asked_once(
    vllm: Server, training: lb.TrainingClient, tmp_path: Path
) -> None:
    """It is probably away, and each attempt to reach it takes a while."""
    policy = policy_on(vllm, training, tmp_path)
    samplers = [policy.save_weights_and_get_sampling_client()]
    update(training)
    samplers.append(policy.save_weights_and_get_sampling_client())
    vllm.adapters.clear()
    vllm.requests.clear()
    with pytest.warns(UserWarning, match="was not unloaded"):
        policy.__exit__(SamplerError, SamplerError("it is away"), None)
    assert [path for path, _ in vllm.requests] == ["/v1/unload_lora_adapter"]
    assert len(samplers) == 2


# --- `lossbook doctor parity` ------------------------------------------------------------------------------------------


def test_doctor_parity_compares_the_trainer_with_a_server(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = ServiceClient(checkpoint_dir=tmp_path / "saved").create_lora_training_client("tiny", rank=2, seed=0)
    update(training)
    saved = training.save_state("step-000001").result().path
    flags = ["doctor", "parity", "--max-tokens", "6", "--sampler-url", server.url]
    assert main([*flags, "--model", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert f"server                 {server.url}, {server.form}, model served" in printed
    assert "they agree" in printed
    assert main([*flags, "--run", saved, "--sampler-adapters", str(tmp_path / "adapters")]) == 0
    assert server.adapters == {}
    assert main([*flags, "--run", saved]) == 2
    assert "--sampler-adapters" in capsys.readouterr().err
    server.spoil = scaled(1 / 0.9)
    assert main([*flags, "--model", "tiny"]) == 1
    assert "they DISAGREE" in capsys.readouterr().out
    assert main([*flags, "--model", "tiny", "--sampler-bound", "5"]) == 0


def test_doctor_parity_with_a_server_that_is_away_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "parity", "--model", "tiny", "--sampler-url", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("ConfigError: --sampler-url is an address such as")
    assert main(["doctor", "parity", "--model", "tiny", "--sampler-model", "x"]) == 2
    assert "are for --sampler-url only" in capsys.readouterr().err
