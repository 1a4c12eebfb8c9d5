"""`make check`'s audit and secret scan: what they find, and that a skipped check is no pass."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from devstack.audit import NOT_DONE, audit, judged
from devstack.checks import Stage, run
from devstack.secret_scan import ALLOWED, PATTERNS, Allowed, Finding, scan
from devstack.secret_scan import judged as secrets_judged

ADVISORY = {
    "id": "PYSEC-0000-1",
    "aliases": ["CVE-0000-1"],
    "summary": "bad",
    "published": "2026-01-01T00:00:00Z",
    "modified": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "leaky"},
            "ranges": [
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]},
            ],
            "versions": ["1.0"],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    """OSV's API as far as pip-audit uses it: one package has a vulnerability, the others none."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        flawed = asked["package"]["name"] == "leaky"
        body = json.dumps({"vulns": [ADVISORY]} if flawed else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    thread.join()
    server.server_close()


def requirements(folder: Path, *pins: str) -> Path:
    path = folder / "requirements.txt"
    path.write_text("\n".join(pins) + "\n")
    return path


def test_a_known_vulnerability_fails_and_is_named(service: str, tmp_path: Path) -> None:
    pins = requirements(tmp_path, "leaky==1.0", "sound==2.0")
    verdict = audit(pins, required=False, service=service)
    assert verdict.code == 1
    assert verdict.lines == ("leaky 1.0: PYSEC-0000-1 CVE-0000-1; mended in 1.1",)


def test_nothing_found_passes(service: str, tmp_path: Path) -> None:
    verdict = audit(requirements(tmp_path, "sound==2.0"), required=True, service=service)
    assert (verdict.code, verdict.lines[0][:8]) == (0, "1 pinned")


@pytest.mark.parametrize(("required", "code"), [(False, NOT_DONE), (True, 1)])
def test_a_service_that_is_away_is_said_and_is_no_pass(
    tmp_path: Path, code: int, *, required: bool
) -> None:
    pins = requirements(tmp_path, "sound==2.0")
    verdict = audit(pins, required=required, service="http://127.0.0.1:1/v1/query")
    assert verdict.code == code
    assert verdict.lines[0].startswith("NOT DONE: the advisory service could not be reached")


def test_a_package_that_was_not_looked_at_fails() -> None:
    known = {"name": "sound", "version": "1", "vulns": []}
    assert judged([known, {"name": "odd", "skip_reason": "unknown"}]).code == 1
    assert judged([]).code == 1


def test_the_summary_tells_what_was_not_done(capfd: pytest.CaptureFixture[str]) -> None:
    stages = [
        Stage(name, (sys.executable, "-c", f"raise SystemExit({code})"))
        for name, code in (("well", 0), ("away", NOT_DONE), ("bad", 1))
    ]
    assert run(stages) == (["bad"], ["away"])
    shown = capfd.readouterr().out
    assert all(line in shown for line in ("✓ well", "? away", "✗ bad"))


# Written in halves: whole, they would be found in this file.
SECRETS = {
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "API key of ours": "mara_live_" + "aP1cCV6BrT" + "_" + "x" * 38,
    "Fernet key": "Zm9v" * 10 + "Zm8" + "=",
    "AWS key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "GitHub token": "ghp_" + "a" * 36,
    "PyPI token": "pypi-AgEI" + "a" * 60,
    "Slack token": "xoxb-" + "1234567890-abc",
    "Google key": "AIza" + "b" * 35,
    "Stripe key": "sk_live_" + "c" * 24,
    "JSON web token": "eyJ" + "hbGciOiJIUzI1.eyJ" + "zdWIiOiIxMjM0.c2lnbmF0dXJl",
    "32 hexadecimal digits": "deadbeef" * 4,
}


def test_each_pattern_has_an_example() -> None:
    assert set(SECRETS) == set(PATTERNS)


@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_found_and_not_shown(kind: str) -> None:
    (found,) = scan("a.py", f"first line\nKEY = '{SECRETS[kind]}'\n")
    assert (found.kind, found.line) == (kind, 2)
    assert secrets_judged([found], ()) == [str(found)]
    assert len(SECRETS[kind]) < 20 or SECRETS[kind] not in str(found)


def test_what_is_allowed_is_so_in_its_place_only_and_while_it_is_there() -> None:
    found = Finding("tests/a.py", 1, "Fernet key", "abcdef=")
    allowed = Allowed("tests/a.py", "Fernet key", "abc", "worth nothing")
    assert secrets_judged([found], [allowed]) == []
    moved = Finding("payments_app/a.py", 1, "Fernet key", "abcdef=")
    assert len(secrets_judged([moved], [allowed])) == 2
    assert all(one.reason for one in ALLOWED)
