"""The status page in a real browser: it shows what the server says as text, asks for a key, and survives a server that does not.

`make test-browser` runs it, against a stand-in server with made-up data.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lossbook.integrations.serve.page.page import status_page
from lossbook.integrations.serve.status import ModelStatus, Status

pytestmark = [pytest.mark.slow, pytest.mark.browser]

#: Width, height, and colour scheme.
VIEWS = {"desktop": (1200, 900, "light"), "desktop dark": (1200, 900, "dark"), "phone": (360, 740, "light")}
PATIENCE = 30_000
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<svg onload=alert(3)>",
    "\"' onmouseover=alert(4) x='",
    "javascript:alert(5)",
    "{{7*7}} ${alert(6)}",
    "<style>*{display:none}</style>",
    "&lt;b&gt; &amp;",
]


def model(name: str = "Qwen/Qwen3-8B", number: int = 0, **changes: Any) -> ModelStatus:
    points = [(step, 2.5 / (step + 1) ** 0.3) for step in range(60)]
    made = ModelStatus(
        model_id=f"session-{'0' * 32}:train:{number}",
        base_model=name,
        lora_rank=16,
        state="in memory",
        steps=60,
        waiting=3,
        running="forward_backward",
        last_request=1_800_000_000.0,
        tokens_per_second=1234.5,
        bytes=73 * 2**20,
        curves=[{"loss_fn": "cross_entropy", "points": list(points)}],
    )
    made.update(changes)  # type: ignore[typeddict-item]
    return made


def status(**changes: Any) -> Status:
    made = Status(
        version="1.2.3",
        state="running",
        time=1_800_000_005.0,
        started=1_799_990_000.0,
        device="cuda:0",
        sessions=2,
        queues={"waiting": 7, "running": 1, "unfetched": 4},
        throughput={"trained_tokens": 15234.2, "sampled_tokens": 812.25, "samples": 3.25, "requests": 11.0},
        memory={"resident": 3 * 2**30, "device_used": 20 * 2**30, "device_total": 80 * 2**30},
        models=[model(), model("tiny", 1, lora_rank=None, running=None, state="parked", bytes=None)],
        samplers=[
            {"sampler_id": "sampler-1", "base_model": "tiny", "path": None, "waiting": 2, "tokens_per_second": 99.0}
        ],
        errors=[
            {
                "time": 1_800_000_001.0,
                "where": f"session-{'0' * 32}:train:0",
                "kind": "forward_backward",
                "category": "user",
                "message": "datum 3: target_tokens has 7 entries for 8 tokens",
            }
        ],
    )
    made.update(changes)  # type: ignore[typeddict-item]
    return made


@dataclass
class StandIn:
    """A server of the page and of a status. answer: (HTTP status, body). key: the one that it takes, if it wants one."""

    answer: tuple[int, str] = (200, "{}")
    key: str | None = None
    url: str = ""
    keys_seen: list[str | None] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def says(self, value: Any, code: int = 200) -> None:
        self.answer = code, value if isinstance(value, str) else json.dumps(value)


@pytest.fixture
def server() -> Iterator[StandIn]:
    stand_in = StandIn()
    stand_in.says(status())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stand_in.paths.add(self.path)
            if self.path == "/":
                page = status_page()
                return self.send(200, page.body, dict(page.headers))
            key = self.headers.get("X-API-Key")
            stand_in.keys_seen.append(key)
            code, body = stand_in.answer if stand_in.key in (None, key) else (401, '{"detail": "a key is needed"}')
            return self.send(code, body.encode(), {"content-type": "application/json"})

        def send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stand_in.url = f"http://127.0.0.1:{listening.server_port}/"
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield stand_in
    listening.shutdown()
    listening.server_close()


@dataclass
class Opened:
    """A tab, and what went wrong in it."""

    page: Any
    trouble: list[str]
    requests: list[str]

    def waits_for(self, text: str) -> None:
        self.page.get_by_text(text).first.wait_for(timeout=PATIENCE)


def opened(browser: Any, url: str, view: tuple[int, int, str] = VIEWS["desktop"]) -> Opened:
    width, height, scheme = view
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, trouble, requests = context.new_page(), [], []
    page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: requests.append(asked.url))
    page.goto(url)
    return Opened(page, trouble, requests)


def test_it_shows_models_queues_rates_memory_errors_and_curves_at_every_width(browser: Any, server: StandIn):
    for view in VIEWS.values():
        tab = opened(browser, server.url, view)
        tab.waits_for("Qwen/Qwen3-8B")
        seen = tab.page.inner_text("body")
        for text in (
            "15,234",
            "812",
            "3.25",
            "20 GiB of 80 GiB",
            "3 GiB",
            "rank 16",
            "all weights",
            "73 MiB",
            "parked",
            "1.2.3",
        ):
            assert text in seen, text
        assert "datum 3: target_tokens has 7 entries for 8 tokens" in seen
        assert "forward_backward" in seen
        assert "5 s ago" in seen
        assert tab.page.locator("svg path").count() == 2
        drawn = tab.page.locator("svg path").first.get_attribute("d")
        assert len(re.findall("[ML]", drawn)) == 60
        assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), view
        assert tab.trouble == []
        assert {url.removeprefix(server.url) for url in tab.requests} <= {"", "api/status", "data:,"}
        tab.page.context.close()


def test_dark_and_light_are_readable(browser: Any, server: StandIn):
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for name in ("desktop", "desktop dark"):
        tab = opened(browser, server.url, VIEWS[name])
        tab.waits_for("Qwen/Qwen3-8B")
        colours = tab.page.evaluate(
            """() => ["h2", ".soft", ".good", ".warn", "dt"].map(one =>
                getComputedStyle(document.querySelector("article " + one) || document.querySelector(one)).color)
                .concat([getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector("article")).backgroundColor])"""
        )
        for text in colours[:-2]:
            for back in colours[-2:]:
                light, dark = sorted((luminance(text), luminance(back)), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, text, back)
        tab.page.context.close()


def test_hostile_names_errors_and_ids_are_shown_as_the_text_that_they_are(browser: Any, server: StandIn):
    error = {"time": 1.0, "where": None, "kind": "sample", "category": "server", "message": ""}
    server.says(
        status(
            version=HOSTILE[0],
            device=HOSTILE[1],
            state=HOSTILE[2],
            models=[
                model(
                    text,
                    number,
                    model_id=f"{number}{text}",
                    state=text,
                    running=text,
                    curves=[{"loss_fn": text, "points": [(1, 1.0)]}],
                )
                for number, text in enumerate(HOSTILE)
            ],
            samplers=[
                {"sampler_id": text, "base_model": text, "path": text, "waiting": 0, "tokens_per_second": 0.0}
                for text in HOSTILE
            ],
            errors=[{**error, "message": text, "kind": text, "where": text} for text in HOSTILE],
        )
    )
    tab = opened(browser, server.url)
    tab.page.locator("article").first.wait_for(timeout=PATIENCE)
    assert tab.page.locator("article h3").all_text_contents() == HOSTILE
    assert tab.page.locator("#errors li p:nth-child(2)").all_text_contents() == HOSTILE
    assert tab.page.locator("article p").all_text_contents() == [f"{i}{text}" for i, text in enumerate(HOSTILE)]
    assert tab.page.locator("img, iframe, object, script:not(:last-of-type)").count() == 0
    assert tab.page.locator("style").count() == 1
    tab.page.mouse.move(200, 300)
    assert tab.trouble == []


def test_characters_that_hide_or_turn_text_are_shown_as_codes_and_long_text_is_cut(browser: Any, server: StandIn):
    server.says(status(models=[model("a\u202eb\u200bc\x00d\ne"), model("x" * 100_000, 1)]))
    tab = opened(browser, server.url, VIEWS["phone"])
    tab.page.locator("article").first.wait_for(timeout=PATIENCE)
    first, second = tab.page.locator("article h3").all_text_contents()
    assert first == "a\\u{202e}b\\u{200b}c\\u{0}d\\u{a}e"
    assert len(second) == 2001
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_curves_leave_out_what_is_not_finite_and_say_so(browser: Any, server: StandIn):
    curves = [
        {"loss_fn": "gap", "points": [(1, 1.0), (2, 2.0), (3, None), (4, 1.5)]},
        {"loss_fn": "one", "points": [(5, 0.25)]},
        {"loss_fn": "flat", "points": [(1, 3.0), (2, 3.0)]},
        {"loss_fn": "never", "points": [(1, None)]},
        {"loss_fn": "empty", "points": []},
        {"loss_fn": "broken", "points": "none"},
    ]
    server.says(status(models=[model(curves=curves)]))
    tab = opened(browser, server.url)
    tab.waits_for("one: 0.25 at step 5")
    assert tab.page.locator("figcaption").all_text_contents() == [
        "gap: 1.5 at step 4; 1 not finite",
        "one: 0.25 at step 5",
        "flat: 3 at step 2",
        "never: no loss is finite",
        "empty: no step yet",
        "broken: no step yet",
    ]
    assert tab.page.locator("svg path").first.get_attribute("d").count("M") == 2
    assert "NaN" not in tab.page.content()
    assert tab.trouble == []


def test_it_asks_for_a_key_keeps_it_for_the_tab_alone_and_forgets_it(browser: Any, server: StandIn):
    server.key = "sesame-1"
    tab = opened(browser, server.url)
    tab.waits_for("The server needs an API key.")
    assert tab.page.locator("#main").is_hidden()
    tab.page.fill("#key", "wrong")
    tab.page.keyboard.press("Enter")
    tab.waits_for("The server does not know this key.")
    assert tab.page.evaluate("sessionStorage.length") == 0
    tab.page.fill("#key", "schlüssel")
    tab.page.keyboard.press("Enter")
    tab.waits_for("A key is of letters")
    tab.page.fill("#key", "sesame-1")
    tab.page.keyboard.press("Enter")
    tab.waits_for("Qwen/Qwen3-8B")
    assert tab.page.locator("#ask").is_hidden()
    assert tab.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    assert "sesame-1" not in tab.page.content()
    assert tab.page.url == server.url
    tab.page.reload()
    tab.waits_for("Qwen/Qwen3-8B")
    other = tab.page.context.new_page()
    other.goto(server.url)
    other.get_by_text("The server needs an API key.").wait_for(timeout=PATIENCE)
    tab.page.click("#forget")
    tab.waits_for("The key is forgotten.")
    assert tab.page.evaluate("sessionStorage.length") == 0
    assert tab.page.locator("article").count() == 0
    assert set(server.keys_seen) == {None, "wrong", "sesame-1"}


def test_it_follows_the_server_and_says_when_that_does_not_answer(browser: Any, server: StandIn):
    tab = opened(browser, server.url)
    tab.waits_for("Qwen/Qwen3-8B")
    server.says(status(models=[model("another")], state="draining"))
    tab.waits_for("another")
    assert tab.page.locator("article").count() == 1
    assert tab.page.locator("#state").inner_text() == "draining"
    for answer, said in (
        (("", 503), "The server answers 503."),
        (("<html>", 200), "The server's answer cannot be shown."),
    ):
        server.says(*answer)
        tab.waits_for(said)
        assert "What is shown is from" in tab.page.inner_text("#note")
        assert tab.page.locator("article").count() == 1
    server.says(status(models=[]))
    tab.waits_for("No model is in training.")
    assert not [one for one in tab.trouble if "503" not in one]


@pytest.mark.parametrize(
    "answer",
    ["{}", "[]", "null", "7", '"text"', '{"models": 3, "errors": {}, "queues": []}', '{"models": [null, 7, "x", []]}'],
)
def test_an_answer_of_another_form_breaks_nothing(answer: str, browser: Any, server: StandIn):
    server.says(answer)
    tab = opened(browser, server.url)
    tab.waits_for("Rates are means over the last minute.")
    assert tab.trouble == []


def test_nothing_runs_that_does_not_stand_in_the_file(browser: Any, server: StandIn):
    tab = opened(browser, server.url)
    tab.waits_for("Qwen/Qwen3-8B")
    ran = tab.page.evaluate(
        """async () => {
            const found = [];
            try { document.body.innerHTML = "<b>markup</b>"; found.push("markup from text"); } catch { /* refused */ }
            const script = document.createElement("script");
            try { script.textContent = "window.ran = 1"; document.body.append(script); } catch { /* refused */ }
            if (window.ran) found.push("a script");
            try { await fetch("http://127.0.0.1:9/"); found.push("a request elsewhere"); } catch { /* refused */ }
            return found;
        }"""
    )
    assert ran == []
    assert any("Content Security Policy" in one or "TrustedHTML" in one for one in tab.trouble)
