"""Samples from a server are those that it drew, or an error says in one line what is wrong with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lossbook as lb
from lossbook import SamplingParams, ServiceClient
from lossbook.cookbook.rollouts.server.connection import KEY_VARIABLE, Connection
from lossbook.cookbook.rollouts.server.sampler import SamplingServer, ServerSampler
from lossbook.datums.errors import (
    ConfigError,
    InvalidLogprobError,
    LengthMismatchError,
    ModelError,
    SamplerError,
    TokenRangeError,
)

from .serving import Handler, Server, serving

PROMPTS = [[72, 105], [1, 2, 3, 4, 5], [250]]
#: Seconds before further attempts in these tests.
AT_ONCE = (0.0, 0.0)


@pytest.fixture(scope="module")
def training() -> lb.TrainingClient:
    return ServiceClient(device="cpu").create_lora_training_client("tiny", rank=2, seed=0)


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    with serving("vllm") as one, serving("sglang") as other:
        yield {"vllm": one, "sglang": other}


@pytest.fixture
def server(servers: dict[str, Server]) -> Server:
    return servers["vllm"].as_new()


@pytest.fixture
def ask(training: lb.TrainingClient, server: Server) -> Iterator[Callable[..., ServerSampler]]:
    """A sampler of the server's base model."""
    opened: list[SamplingServer] = []

    def ask(of: Server = server, **options: Any) -> ServerSampler:
        opened.append(SamplingServer(of.url, training.get_info(), **{"waits": AT_ONCE, **options}))
        return opened[-1].sampler(training.get_tokenizer())

    yield ask
    for one in opened:
        one.close()


def test_samples_of_a_seed_are_those_of_the_local_sampler_to_the_last_bit(
    training: lb.TrainingClient, ask: Callable[..., ServerSampler]
) -> None:
    params = SamplingParams(max_tokens=8, temperature=1.3)
    local = training.save_weights_and_get_sampling_client()
    for number, prompt in enumerate(PROMPTS):
        (expected,) = local.sample_batch([prompt], params, num_samples=3, seeds=[number]).result()
        (given,) = ask().sample_batch([prompt], params, num_samples=3, seeds=[number]).result()
        assert given == expected


def test_responses_come_in_the_order_of_prompts_and_samples(ask: Callable[..., ServerSampler]) -> None:
    params = SamplingParams(max_tokens=6)
    together = ask().sample_batch(PROMPTS * 3, params, num_samples=2, seeds=range(9)).result()
    alone = [ask().sample_batch([p], params, num_samples=2, seeds=[i]).result()[0] for i, p in enumerate(PROMPTS * 3)]
    assert together == alone


def test_on_sglang_each_sample_is_asked_for_alone_with_a_seed_of_its_own(
    servers: dict[str, Server], ask: Callable[..., ServerSampler]
) -> None:
    """SGLang gives all samples of a request its seed: a group would be one answer, and teach nothing."""
    server = servers["sglang"].as_new()
    (response,) = (
        ask(server).sample_batch([PROMPTS[0]], SamplingParams(max_tokens=6), num_samples=4, seeds=[7]).result()
    )
    assert sorted(body["seed"] for _, body in server.requests) == [7, 8, 9, 10]
    assert len({tuple(one.tokens) for one in response.sequences}) == 4


@pytest.mark.parametrize("form", ["vllm", "sglang"])
def test_nothing_that_shapes_the_distribution_is_left_to_the_servers_defaults(
    form: str, servers: dict[str, Server], ask: Callable[..., ServerSampler]
) -> None:
    server = servers[form].as_new()
    ask(server).sample(PROMPTS[0], 1, SamplingParams(max_tokens=2, seed=2**64 - 1)).result()
    ((_, body),) = server.requests
    plain = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "min_p": 0.0, "min_tokens": 0, "repetition_penalty": 1.0}
    assert plain.items() <= body.items()
    assert (body["presence_penalty"], body["frequency_penalty"], body["max_tokens"]) == (0, 0, 2)
    assert -(2**63) <= body["seed"] < 2**63


@pytest.mark.parametrize("stop", [None, [], ["a"], "end"], ids=str)
def test_samples_stop_where_those_of_the_local_sampler_do_and_hold_the_token_that_stopped_them(
    stop: Any, training: lb.TrainingClient, ask: Callable[..., ServerSampler]
) -> None:
    end = list(training.get_info().end_tokens)
    params = SamplingParams(max_tokens=12, stop=end if stop == "end" else stop, seed=0)
    expected = training.save_weights_and_get_sampling_client().sample([72], 96, params).result()
    given = ask().sample([72], 96, params).result()
    assert given == expected
    assert any(one.stop_reason == "stop" for one in given.sequences) == (stop != [])


@pytest.mark.parametrize(
    ("stop", "ids", "ignores"),
    [(None, [256, 259], False), ([], [], True), (["a"], [], True), ([65, 256, 259], [65, 256, 259], False)],
)
def test_sglang_which_ignores_all_ids_where_it_ignores_the_end_is_asked_to_stop_at_them_as_we_do(
    stop: Any, ids: list[int], ignores: bool, servers: dict[str, Server], ask: Callable[..., ServerSampler]
) -> None:
    server = servers["sglang"].as_new()
    ask(server).sample([72], 1, SamplingParams(max_tokens=1, stop=stop)).result()
    ((_, body),) = server.requests
    assert (body["stop_token_ids"], body["ignore_eos"], body["no_stop_trim"]) == (ids, ignores, True)
    assert body["stop"] == (stop if stop == ["a"] else [])


def test_sglang_cannot_stop_at_ids_alone_and_is_not_asked_to(
    servers: dict[str, Server], ask: Callable[..., ServerSampler]
) -> None:
    with pytest.raises(ModelError, match="add them to stop"):
        ask(servers["sglang"].as_new()).sample([72], 1, SamplingParams(max_tokens=2, stop=[65]))


def test_a_continuation_ends_with_the_shorter_of_both_contexts(
    server: Server, ask: Callable[..., ServerSampler]
) -> None:
    """The server reads 200 tokens, the model more."""
    ask().sample([1] * 195, 1, SamplingParams(stop=[])).result()
    assert server.requests[-1][1]["max_tokens"] == 5
    with pytest.raises(lb.datums.errors.TruncationError, match="no room in the context of 200"):
        ask().sample([1] * 200)


def test_what_the_local_sampler_refuses_is_refused_before_anything_is_sent(
    server: Server, ask: Callable[..., ServerSampler]
) -> None:
    for prompts, options, error in [
        ([[1, 999]], {}, TokenRangeError),
        ([[]], {}, ModelError),
        ([[1]], {"num_samples": 0}, ModelError),
        ([[1]], {"seeds": [1, 2]}, ModelError),
        ([[1]], {"sampling_params": SamplingParams(temperature=-1)}, ModelError),
    ]:
        with pytest.raises(error):
            ask().sample_batch(prompts, **options)
    assert server.requests == []


def test_no_more_requests_are_under_way_than_connections(server: Server, ask: Callable[..., ServerSampler]) -> None:
    """Each request waits for another one: with one connection it would wait in vain, and a third is seen."""
    barrier, lock, running, most = threading.Barrier(2), threading.Lock(), 0, 0

    def before() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(60)
        with lock:
            running -= 1

    server.before = before
    ask(connections=2).sample_batch([[1]] * 6, SamplingParams(max_tokens=1)).result()
    assert most == 2


# --- answers that cannot be trained on --------------------------------------------------------------------------------


def changed(key: str, value: Any, inside: str | None = None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(completion: dict[str, Any]) -> dict[str, Any]:
        choice = completion["choices"][0]
        old = (choice[inside] if inside else choice).get(key)
        (choice[inside] if inside else choice)[key] = value(old) if callable(value) else value
        return completion

    return change


def without_ids(completion: dict[str, Any]) -> dict[str, Any]:
    del completion["choices"][0]["token_ids"]
    completion["choices"][0]["logprobs"]["tokens"] = ["a"] * 4
    return completion


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        pytest.param(without_ids, SamplerError, "comes without token ids.*0.10.2", id="no token ids"),
        pytest.param(changed("logprobs", None), SamplerError, "comes without logprobs", id="no logprobs"),
        pytest.param(changed("token_ids", lambda ids: ids[1:]), LengthMismatchError, "has 3 token ids but 4", id="lengths"),
        pytest.param(
            changed("token_logprobs", lambda all: [*all[1:], 0.5], "logprobs"), InvalidLogprobError, "0.5 at position 3",
            id="a logprob above 0",
        ),
        pytest.param(
            changed("token_logprobs", lambda all: [None, *all[1:]], "logprobs"), InvalidLogprobError, "no logprob at position 0",
            id="a logprob that is null",
        ),
        pytest.param(
            changed("token_logprobs", lambda all: [float("nan"), *all[1:]], "logprobs"), SamplerError, "NaN is not JSON",
            id="a logprob that is NaN",
        ),
        pytest.param(changed("token_ids", [1, 2, 260, 3]), TokenRangeError, "token 260 at position 2", id="vocabulary"),
        pytest.param(changed("token_ids", [1, 2, -1, 3]), TokenRangeError, "token -1 at position 2", id="below 0"),
        pytest.param(changed("token_ids", [1, 2.0, 3, 4]), SamplerError, "token_ids.1: .*integer", id="no integers"),
        pytest.param(changed("token_ids", "1, 2"), SamplerError, "token_ids: .*list", id="no list"),
        pytest.param(changed("finish_reason", "abort"), SamplerError, "for the reason 'abort'", id="aborted"),
        pytest.param(changed("finish_reason", "stop"), SamplerError, "leaves the stop token out", id="no stop token"),
        pytest.param(changed("prompt_token_ids", [0]), SamplerError, "a prompt of 1 tokens that is not", id="other prompt"),
        pytest.param(changed("index", 1), SamplerError, r"the choices \[1\]", id="other index"),
        pytest.param(lambda completion: {"choices": []}, SamplerError, r"the choices \[\]", id="no choices"),
        pytest.param(lambda completion: {"text": "hello"}, SamplerError, "choices: Field required", id="another form"),
        pytest.param(lambda completion: [], SamplerError, "no completion: the whole", id="a list"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_trained_on_is_refused_in_one_line(
    spoil: Any, error: type[Exception], message: str, server: Server, ask: Callable[..., ServerSampler]
) -> None:
    server.spoil = spoil
    with pytest.raises(error, match=message) as raised:
        ask().sample([7, 8], 1, SamplingParams(max_tokens=4, stop=[])).result()
    assert "\n" not in str(raised.value)
    assert len(server.requests) == 1  # it would be wrong again


def test_ids_written_as_text_are_read_where_a_server_gives_no_others(
    server: Server, ask: Callable[..., ServerSampler]
) -> None:
    """As vLLM before 0.10.2."""
    server.spoil = changed("token_ids", None)
    whole = ask().sample([7], 1, SamplingParams(max_tokens=4, seed=1)).result()
    server.as_new()
    assert ask().sample([7], 1, SamplingParams(max_tokens=4, seed=1)).result() == whole


def test_rounding_above_0_is_0(server: Server, ask: Callable[..., ServerSampler]) -> None:
    server.spoil = changed("token_logprobs", [1e-6], "logprobs")
    assert ask().sample([7], 1, SamplingParams(max_tokens=1, stop=[])).result().sequences[0].logprobs == [0.0]


# --- HTTP --------------------------------------------------------------------------------------------------------------


def busy(handler: Handler, content: bytes) -> None:
    handler.write(503, b'{"error": {"message": "engine is\\nasleep"}}', Retry_After="0")


def hang_up(handler: Handler, content: bytes) -> None:
    handler.close_connection = True
    handler.connection.close()


def cut_short(handler: Handler, content: bytes) -> None:
    handler.write(200, content[:20], length=len(content))
    hang_up(handler, content)


def half_json(handler: Handler, content: bytes) -> None:
    handler.write(200, content[: len(content) // 2])


def endless(handler: Handler, content: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**40))
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b" " * 2**20)
    except OSError:
        handler.close_connection = True


SAMPLE = SamplingParams(max_tokens=2)


@pytest.mark.parametrize("fault", [busy, hang_up, cut_short], ids=lambda fault: fault.__name__)
def test_a_sample_is_asked_for_again_where_that_is_safe_and_in_the_end_given_up(
    fault: Any, server: Server, ask: Callable[..., ServerSampler]
) -> None:
    server.faults += [fault, fault]
    assert ask().sample([7], 1, SAMPLE).result().sequences
    assert len(server.requests) == 3
    server.faults += [fault] * 3
    with pytest.raises(SamplerError, match=r"engine is asleep|broke off its answer"):
        ask().sample([7], 1, SAMPLE).result()


@pytest.mark.parametrize(
    ("fault", "message"),
    [(half_json, "not whole JSON"), (endless, "answers with more than")],
    ids=["half a JSON", "a body without end"],
)
def test_a_body_that_is_no_answer_is_refused_at_once(
    fault: Any, message: str, server: Server, ask: Callable[..., ServerSampler]
) -> None:
    server.faults.append(fault)
    with pytest.raises(SamplerError, match=message):
        ask().sample([7], 1, SAMPLE).result()
    assert len(server.requests) == 1


def test_a_server_that_does_not_answer_in_time_is_not_asked_again(
    server: Server, ask: Callable[..., ServerSampler]
) -> None:
    """It answers when the test is over."""
    over = threading.Event()
    sampler = ask()
    patient, sampler.server.connection = sampler.server.connection, Connection(server.url, timeout=1.0, connections=1)
    patient.close()
    server.before = over.wait
    with pytest.raises(SamplerError, match=r"no whole answer in 1 s"):
        sampler.sample([7], 1, SAMPLE).result()
    over.set()
    assert len(server.requests) == 1


def test_a_server_that_is_away_is_named(training: lb.TrainingClient) -> None:
    with serving() as server:
        url = server.url
    with pytest.raises(SamplerError, match=f"the sampling server at {url} is not reached .* in 3 attempts: start it"):
        SamplingServer(url, training.get_info(), waits=AT_ONCE)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "http://", "http://host:no", "http://host/?key=1", "http://a b"]
)
def test_an_address_that_is_none_is_refused(url: str, training: lb.TrainingClient) -> None:
    with pytest.raises(ConfigError, match="address"):
        SamplingServer(url, training.get_info())


def test_a_model_that_is_not_served_is_refused_with_those_that_are(
    server: Server, ask: Callable[..., ServerSampler]
) -> None:
    with pytest.raises(SamplerError, match=r"no model 'serve'\. Did you mean 'served'"):
        ask(model="serve")
    server.cards.append({"id": "another", "owned_by": "vllm"})
    with pytest.raises(ConfigError, match="serves served, another: name the trained model's with --sampler-model"):
        ask()
    assert ask(model="served").sample([7], 1, SAMPLE).result()


def test_an_adapter_that_is_gone_and_a_closed_connection_are_said_in_one_line(
    server: Server, training: lb.TrainingClient
) -> None:
    opened = SamplingServer(server.url, training.get_info(), waits=AT_ONCE)
    with pytest.raises(SamplerError, match="refuses with status 404: The model `gone` does not exist"):
        opened.sampler(None, "gone").sample([7], 1, SAMPLE).result()
    opened.close()
    with pytest.raises(SamplerError, match=f"the connection to {server.url} was closed"):
        opened.sampler(None).sample([7], 1, SAMPLE)


def test_an_address_with_v1_is_the_same_server(
    server: Server, training: lb.TrainingClient, ask: Callable[..., ServerSampler]
) -> None:
    other = SamplingServer(f"{server.url}/v1/", training.get_info())
    assert other.connection.url == server.url
    other.close()


def test_the_key_of_the_environment_is_sent_and_never_shown(
    training: lb.TrainingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(key="sesame-and-more") as server:
        with pytest.raises(SamplerError, match=f"status 401: Unauthorized; set {KEY_VARIABLE}"):
            SamplingServer(server.url, training.get_info())
        monkeypatch.setenv(KEY_VARIABLE, "sesame-and-more\n")
        opened = SamplingServer(server.url, training.get_info())
        server.spoil = lambda completion: {"choices": "sesame-and-more"}
        server.faults.append(lambda handler, content: handler.write(400, b'{"message": "not sesame-and-more"}'))
        for _ in range(2):
            with pytest.raises(SamplerError) as raised:
                opened.sampler(None).sample([7], 1, SAMPLE).result()
            assert "sesame" not in str(raised.value)
        opened.close()
    monkeypatch.setenv(KEY_VARIABLE, "a\nb")
    with pytest.raises(ConfigError, match=f"{KEY_VARIABLE} holds characters") as raised:
        SamplingServer(server.url, training.get_info())


def test_the_answers_of_a_server_are_whole_json_and_read_as_such(
    server: Server, ask: Callable[..., ServerSampler]
) -> None:
    """A key twice: which of both values was meant?"""
    server.faults.append(lambda handler, content: handler.write(200, b'{"choices": [], "choices": []}'))
    with pytest.raises(SamplerError, match="more than once"):
        ask().sample([7], 1, SAMPLE).result()
