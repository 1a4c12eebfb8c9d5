"""The headers of every response: the request's id, and the security headers for browsers."""

from __future__ import annotations

import ast
from pathlib import Path
from uuid import UUID

import pytest

from payments_app.api.authentication import needs
from payments_app.api.browsers import SECURITY_HEADERS
from payments_app.tenants.scopes import Scope
from tests.api.http_caller import NOBODYS, PAYMENTS, HttpCaller, MakeApp, an_order
from tests.builders import PAYER

ROOT = Path(__file__).parents[2]

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Swagger UI loads its own styles and script.
WITH_OWN_POLICY = ("/docs", "/docs/start.js", "/docs/assets/swagger-ui.css")
ANSWERS = [
    pytest.param("GET", PAYMENTS, id="200"),
    pytest.param("POST", PAYMENTS, id="415"),
    pytest.param("GET", f"{PAYMENTS}/{NOBODYS}", id="404"),
    pytest.param("GET", "/nothing", id="404 of no route"),
    pytest.param("DELETE", PAYMENTS, id="405"),
    pytest.param("OPTIONS", PAYMENTS, id="OPTIONS"),
    pytest.param("GET", f"{PAYMENTS}?limit=0", id="422"),
    pytest.param("GET", "/health", id="health"),
    pytest.param("GET", "/openapi.json", id="openapi.json"),
    pytest.param("POST", "/callbacks/mtn_momo/x", id="callback"),
    pytest.param("GET", "/problems/not_found", id="problem"),
]


@pytest.mark.parametrize(("method", "path"), ANSWERS)
def test_every_answer_has_the_security_headers_and_an_id(
    caller: HttpCaller, method: str, path: str
) -> None:
    answer = caller.send(method, path)

    assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY
    assert UUID(answer.headers["X-Request-Id"])


def test_an_accepted_payment_has_them_too(caller: HttpCaller) -> None:
    answer = caller.post(an_order())

    assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY


@pytest.mark.parametrize("path", WITH_OWN_POLICY)
def test_the_documentation_has_them_with_a_policy_of_its_own(caller: HttpCaller, path: str) -> None:
    with caller.get(path, headers={"X-API-Key": None}) as answer:
        answer.get_data()

    # The assets are the same for everyone: a browser may keep them and asks if they have changed.
    own = {"Content-Security-Policy", "Cache-Control"}
    others = {name: value for name, value in SECURITY.items() if name not in own}
    assert answer.headers["Cache-Control"] == ("no-cache" if "assets" in path else "no-store")
    assert answer.status_code == 200
    assert others.items() <= dict(answer.headers).items()
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_a_bug_is_told_by_its_request_id_alone_and_has_them_too(
    make_app: MakeApp, caller: HttpCaller, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = make_app()

    @broken.route("/api/v1/broken")
    @needs(Scope.PAYMENTS_READ)
    def break_down() -> str:
        raise RuntimeError(f"psycopg says {PAYER}")

    answer = HttpCaller(broken, caller.tenant, caller.key).get("/api/v1/broken")

    assert answer.status_code == 500
    assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY
    document = answer.get_json()
    assert document["code"] == "internal_error"
    assert document["request_id"] == answer.headers["X-Request-Id"]
    assert not [word for word in ("psycopg", PAYER, "Traceback", ".py") if word in answer.text]
    # The operator finds the cause in the log by that id.
    assert any(
        document["request_id"] in line and "RuntimeError" in line
        for line in "".join(capsys.readouterr()).splitlines()
    )


def test_what_gunicorn_itself_answers_has_the_same() -> None:
    module = ast.parse((ROOT / "gunicorn.conf.py").read_text())
    (configured,) = [
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SECURITY_HEADERS"
    ]

    assert configured == SECURITY_HEADERS == SECURITY


def test_without_a_key_they_are_there_too(caller: HttpCaller) -> None:
    refused = caller.get(headers={"X-API-Key": None})

    assert {name: refused.headers.get(name) for name in SECURITY} == SECURITY


@pytest.mark.parametrize(("method", "path"), ANSWERS)
def test_no_other_origin_may_read_anything(caller: HttpCaller, method: str, path: str) -> None:
    answer = caller.send(
        method,
        path,
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )

    assert not [name for name, _ in answer.headers if name.lower().startswith("access-control")]


def test_over_tls_browsers_are_told_to_stay_there(caller: HttpCaller) -> None:
    over_tls = caller.get(base_url="https://pay.example.com")

    assert "max-age" in over_tls.headers["Strict-Transport-Security"]
    assert "Strict-Transport-Security" not in caller.get().headers


@pytest.mark.parametrize("given", ["checkout-7f3a", "a", "A.b_c:d-9", "x" * 128, NOBODYS])
def test_an_id_that_is_in_order_is_given_back(caller: HttpCaller, given: str) -> None:
    for answer in (
        caller.get(headers={"X-Request-Id": given}),
        caller.get("/nothing", headers={"X-Request-Id": given}),
    ):
        assert answer.headers["X-Request-Id"] == given


@pytest.mark.parametrize(
    "given", ["", " ", "x" * 129, "a b", "<script>", "a\x00b", "\xe9", '"', "a;b", "${jndi}", "a/b"]
)
def test_a_hostile_id_is_replaced(caller: HttpCaller, given: str) -> None:
    answer = caller.get(headers={"X-Request-Id": given})

    assert UUID(answer.headers["X-Request-Id"])


def test_two_requests_have_two_ids(caller: HttpCaller) -> None:
    assert caller.get().headers["X-Request-Id"] != caller.get().headers["X-Request-Id"]


def test_the_documentation_may_show_itself_and_nothing_else(caller: HttpCaller) -> None:
    policy = caller.get("/docs").headers["Content-Security-Policy"]

    assert policy.startswith("default-src 'self'")
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert "script-src" not in policy
