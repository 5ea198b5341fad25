"""Who is let in, by Host, Origin and key, and how large and slow a request may be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.datums.errors import ConfigError
from lossbook.integrations.serve.http.address import check_address, greeting
from lossbook.integrations.serve.http.entrance.guard import Guard, Keys, host_name, is_loopback, owner_of
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.settings import Limits, ServeSettings

from . import asgi

KEY, OTHER = "tml-a-key-of-this-server", "tml-another-key-of-this-server"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the owner and the size of the body."""
    message = await receive()
    body = f"{scope['state']['owner']} {len(message['body'])}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def guard(**settings: Any) -> Guard:
    return Guard(echo, ServeSettings(**settings))


def ask(app: Any, *args: Any, **keywords: Any) -> asgi.Heard:
    return asyncio.run(asgi.ask(app, *args, **keywords))


HOST = ("host", "localhost:8000")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="no key"),
        pytest.param([("x-api-key", "")], id="an empty key"),
        pytest.param([("x-api-key", KEY[:-1])], id="a key without its last letter"),
        pytest.param([("x-api-key", KEY.upper())], id="a key in capitals"),
        pytest.param([("x-api-key", owner_of(KEY))], id="the owner's name in the key's place"),
        pytest.param([("authorization", "Bearer ")], id="an empty bearer"),
        pytest.param([("authorization", f"Basic {KEY}")], id="a key by another scheme"),
    ],
)
def test_without_a_known_key_the_answer_is_401_in_the_same_words(headers: list[tuple[str, str]]) -> None:
    heard = ask(guard(keys=(KEY, OTHER)), "/api/v1/sessions", headers=[HOST, *headers])
    missing = ask(guard(keys=(KEY, OTHER)), "/api/v1/sessions", headers=[HOST])
    assert heard.status == 401
    assert heard.body == missing.body
    assert KEY.encode() not in heard.body


def test_a_key_in_the_query_is_no_key() -> None:
    assert ask(guard(keys=(KEY,)), "/metrics", headers=[HOST], query=f"api_key={KEY}".encode()).status == 401


@pytest.mark.parametrize("header", [("x-api-key", KEY), ("X-API-Key", KEY), ("authorization", f"Bearer {KEY}")])
def test_a_known_key_opens_what_is_its_owners(header: tuple[str, str]) -> None:
    heard = ask(guard(keys=(OTHER, KEY)), "/metrics", headers=[HOST, header])
    assert heard.body == f"{owner_of(KEY)} 0".encode()
    assert owner_of(KEY) != owner_of(OTHER)


def test_without_keys_everything_is_one_owners_whatever_key_is_sent() -> None:
    assert ask(guard(), "/", headers=[HOST, ("x-api-key", "tml-any")]).body == b"local 0"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/api/v1/healthz"])
def test_health_needs_no_key(path: str) -> None:
    assert ask(guard(keys=(KEY,)), path, method="GET", headers=[HOST]).status == 200


@given(st.text(max_size=40))
def test_no_other_text_is_a_key(text: str) -> None:
    keys = Keys([KEY, OTHER])
    if text not in (KEY, OTHER):
        with pytest.raises(Refused, match="key is needed"):
            keys.owner(text)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("train.example", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
        ("[::1", 403),
    ],
)
def test_only_the_servers_own_names_are_answered(host: str, status: int) -> None:
    heard = ask(guard(hosts=("train.example",)), "/", headers=[("host", host)])
    assert heard.status == status
    assert not any(name.startswith("access-control") for name in heard.headers)


def test_a_page_of_another_site_is_refused_and_its_preflight_gets_no_permission() -> None:
    page = ("origin", "https://evil.example")
    for method in ("OPTIONS", "POST", "GET"):
        heard = ask(guard(), "/", method=method, headers=[HOST, page, ("access-control-request-method", "POST")])
        assert heard.status == 403
        assert not any(name.startswith("access-control") for name in heard.headers)
    assert ask(guard(), "/", headers=[HOST, ("origin", "http://localhost:8000")]).status == 200
    assert ask(guard(), "/", headers=[HOST, ("origin", "http://localhost:9000")]).status == 403
    assert ask(guard(), "/", headers=[HOST, ("origin", "null")]).status == 403


def test_two_hosts_in_one_request_are_refused() -> None:
    assert ask(guard(), "/", headers=[HOST, ("host", "evil.example")]).status == 400


def test_a_flood_of_headers_is_refused() -> None:
    assert ask(guard(), "/", headers=[HOST, *((f"x-{i}", "1") for i in range(200))]).status == 431


SMALL = Limits(body_bytes=1000, header_seconds=0.05)


def test_a_body_within_the_limit_arrives_whole_and_is_forgotten_afterwards() -> None:
    app = guard(limits=SMALL)
    assert ask(app, "/", headers=[HOST], parts=[b"x" * 400, b"y" * 600]).body == b"local 1000"
    assert app.bodies.bytes == 0


def test_a_declared_body_over_the_limit_is_refused_before_it_is_read() -> None:
    heard = ask(guard(limits=SMALL), "/", headers=[HOST, ("content-length", "1001")], parts=[b"x" * 1001])
    assert (heard.status, heard.headers["connection"]) == (413, "close")
    assert "body_bytes" in heard.json["detail"]


def test_a_body_that_grows_past_the_limit_is_refused_and_not_kept() -> None:
    app = guard(limits=SMALL)
    assert ask(app, "/", headers=[HOST], parts=[b"x" * 100] * 100).status == 413
    assert app.bodies.bytes == 0


def test_a_body_that_comes_too_slowly_is_refused() -> None:
    app = guard(limits=SMALL)
    heard = ask(app, "/", headers=[HOST], parts=[b"x"] * 100, between=lambda: asyncio.sleep(0.03))
    assert heard.status == 408
    assert app.bodies.bytes == 0


@pytest.mark.parametrize("length", ["-1", "1e3", "٣", "0x10", ""])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    headers = [HOST, ("content-length", length.encode().decode("latin-1"))]
    assert ask(guard(), "/", headers=headers).status == 400


def test_bodies_of_many_requests_at_one_time_are_bounded() -> None:
    app = guard(limits=Limits(body_bytes=1000, header_seconds=30))

    async def held() -> int:
        app.bodies.bytes += 8000
        return (await asgi.ask(app, "/", headers=[HOST], parts=[b"x"])).status

    assert asyncio.run(held()) == 429


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "train.example"])
def test_an_address_that_others_reach_needs_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        check_address(ServeSettings(host=host))
    check_address(ServeSettings(host=host, keys=(KEY,)))
    check_address(ServeSettings(host=host, insecure=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert is_loopback(host)
    check_address(ServeSettings(host=host))


def test_the_first_lines_say_what_a_client_needs_and_no_key() -> None:
    lines = greeting(ServeSettings(), "127.0.0.1", 8123)
    assert "export TINKER_BASE_URL=http://127.0.0.1:8123" in lines
    assert "export TINKER_API_KEY=tml-local" in lines
    assert KEY not in "".join(greeting(ServeSettings(keys=(KEY,), host="0.0.0.0"), "0.0.0.0", 8123))


@given(st.text(max_size=60))
def test_any_host_header_has_a_name_or_none(text: str) -> None:
    assert isinstance(host_name(text), str)
