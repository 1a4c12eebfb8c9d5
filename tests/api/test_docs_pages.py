"""The documentation's pages load nothing from other hosts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from flask import Flask
from werkzeug.test import TestResponse

# A name, not an address: browsers fetch nothing from it.
NAMESPACES = {"http://www.w3.org/2000/svg"}
ADDRESS = re.compile(r"(?:https?:)?//[A-Za-z0-9.-]+\.[A-Za-z]{2,}[^\s\"'()<>\\]*")


class References(HTMLParser):
    """The addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in {"src", "href"}]


def fetched(app: Flask, address: str) -> TestResponse:
    """The response, read whole, so that a file that was sent is closed."""
    with app.test_client().get(address) as answer:
        answer.get_data()
    return answer


@pytest.fixture
def loaded(app: Flask) -> list[str]:
    page = References()
    page.feed(app.test_client().get("/docs").text)
    return page.found


def test_what_the_page_loads_is_here(app: Flask, loaded: list[str]) -> None:
    assert len(loaded) >= 4
    for address in loaded:
        assert address.startswith("/docs/"), address
        answer = fetched(app, address)
        assert answer.status_code == 200, address
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.get_data()


def test_each_file_has_the_type_that_nosniff_demands(app: Flask) -> None:
    types = {
        "/docs": "text/html",
        "/docs/start.js": "text/javascript",
        "/docs/assets/swagger-ui-bundle.js": "text/javascript",
        "/docs/assets/swagger-ui.css": "text/css",
        "/docs/assets/favicon-32x32.png": "image/png",
    }

    for address, expected in types.items():
        assert fetched(app, address).mimetype == expected


def test_no_page_names_another_host(app: Flask) -> None:
    for address in ("/docs", "/docs/start.js", "/docs/assets/swagger-ui.css", "/openapi.json"):
        text = fetched(app, address).text
        assert set(ADDRESS.findall(text)) <= NAMESPACES, address


def test_the_page_loads_this_hosts_document_and_asks_no_validator(app: Flask) -> None:
    start = app.test_client().get("/docs/start.js").text

    assert 'DOCUMENT = "/openapi.json"' in start
    assert "url: DOCUMENT" in start
    assert "validatorUrl: null" in start


def test_the_policy_lets_the_browser_fetch_from_here_only(app: Flask, loaded: list[str]) -> None:
    for address in ("/docs", *loaded):
        policy = fetched(app, address).headers["Content-Security-Policy"]
        sources = {source for part in policy.split(";") for source in part.split()[1:]}
        assert sources <= {"'self'", "'unsafe-inline'", "data:", "'none'"}
        # The page may have inline styles, but no inline scripts.
        assert "'unsafe-inline'" not in policy.split("style-src")[0]


def test_no_file_but_the_packages_own_is_served(app: Flask) -> None:
    for name in ("../../pyproject.toml", "..%2F..%2Fpyproject.toml", "%2Fetc%2Fpasswd", "nothing"):
        assert app.test_client().get(f"/docs/assets/{name}").status_code == 404
