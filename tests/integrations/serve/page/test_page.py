"""The status page loads nothing, and its policy lets nothing run but what stands in its file."""

from __future__ import annotations

import base64
import hashlib
import re

from lossbook.integrations.serve.page.page import status_page

HTML = status_page().body.decode()


def policy() -> dict[str, str]:
    parts = status_page().headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (part.partition(" ") for part in parts)}


def test_everything_is_forbidden_but_the_pages_own_script_and_style_and_requests_to_its_server():
    rules = policy()
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
        digest = hashlib.sha256(inside.encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert "unsafe" not in status_page().headers["content-security-policy"]


def test_the_page_has_no_address_of_another_server_and_no_inline_handler_or_style():
    assert set(re.findall(r"https?://[^\s\"']+", HTML)) == {"http://www.w3.org/2000/svg"}
    assert (
        re.findall(r"<(?:script|style|link|img|iframe|object|embed|form)\b[^>]*\b(?:src|action|style|on\w+)=", HTML)
        == []
    )
    assert re.findall(r"<link[^>]*href=\"([^\"]*)\"", HTML) == ["data:,"]


def test_text_of_the_server_is_never_made_markup_and_the_key_is_kept_for_the_session_alone():
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
        "cookie",
    ):
        assert way not in HTML
    assert "sessionStorage" in HTML


def test_the_headers_say_what_it_is_and_that_nobody_keeps_it():
    headers = status_page().headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert all(name == name.lower() for name in headers)
    assert all("\n" not in value and value.isascii() for value in headers.values())
