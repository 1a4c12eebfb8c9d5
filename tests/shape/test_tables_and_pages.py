"""Code and pages agree on codes, jobs, settings, scopes and events of the log."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping

import payments_app
from payments_app.api.problem_types import PROBLEMS, all_problems
from payments_app.audit.model import SEALED, UNCOVERED
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.jobs import Job
from payments_app.providers.contract import FailureCode
from payments_app.providers.failures import FAILURES
from payments_app.settings import MTN_DEFAULTS, Settings
from payments_app.tenants.rotation import ENCRYPTED_COLUMNS
from payments_app.tenants.scopes import Scope
from payments_app.webhooks.encrypted_columns import WEBHOOK_ENCRYPTED_COLUMNS
from tests.pure.test_settings import ACCOUNT, GOOD
from tests.shape.source_tree import ROOT, sources

# Errors of the operator's commands only: no request over HTTP names a tenant, key or account. A
# class that is raised in a request belongs in PROBLEMS.
OF_COMMANDS = {
    # It stops the start; later, on a connection of a request, it is an internal error.
    "DatabaseRoleUnsafe",
    "TenantNotFound",
    "TenantExists",
    "TenantSlugInvalid",
    "TenantSettingInvalid",
    "KeyNotFound",
    "KeyNameInvalid",
    "KeyEnded",
    "KeyModeUnusable",
    "PaymentAmbiguous",
    "ScopeUnknown",
    "ProviderAccountInvalid",
    "ProviderAccountMoved",
    "PaymentEnded",
    "ReasonMissing",
    "ViolationsOpen",
    "ViolationNotFound",
    "RecoveryUnfinished",
}
# Settings of gunicorn and compose, which no code of ours reads.
NOT_OURS = {"PORT", "WEB_CONCURRENCY", "DRAIN_SECONDS"}


def rows(page: str) -> Iterator[list[str]]:
    """The rows of the page's tables whose first cell is one word of code."""
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and re.fullmatch(r"`\w+`", cells[0]):
            yield [cells[0].strip("`"), *cells[1:]]


def gateway_errors() -> set[type[GatewayError]]:
    """Every error class of ours, from every module."""
    for module in pkgutil.walk_packages(payments_app.__path__, "payments_app."):
        importlib.import_module(module.name)

    def below(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return {kind for kind in below(GatewayError) if kind.__module__.startswith("payments_app.")}


def test_every_error_that_http_can_meet_has_a_status() -> None:
    without = {kind.__name__ for kind in gateway_errors() - set(PROBLEMS)}

    assert without == OF_COMMANDS, (
        "give it a row in api/problem_types.py, or name it in OF_COMMANDS"
    )


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in gateway_errors()]

    assert len(codes) == len(set(codes))
    assert "error" not in codes


def test_each_problem_is_on_the_page_with_its_status() -> None:
    told = {row[0]: row[1] for row in rows("docs/errors.md") if len(row) == 4 and row[1].isdigit()}

    assert told == {problem.code: str(int(problem.status)) for problem in all_problems()}


def test_each_failure_is_on_the_page_with_who_must_act() -> None:
    told = {
        row[0]: (row[2], row[3])
        for row in rows("docs/errors.md")
        if len(row) == 4 and not row[1].isdigit()
    }

    assert told == {
        str(code): (str(meaning.actor), "yes" if meaning.new_payment_may_help else "no")
        for code, meaning in FAILURES.items()
    }


def test_each_failure_code_has_a_meaning() -> None:
    assert set(FAILURES) == set(FailureCode)


class Asked(dict[str, str]):
    """An environment that records which names were read."""

    def __init__(self, known: Mapping[str, str]) -> None:
        super().__init__(known)
        self.names: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.names.add(name)
        return super().get(name, default)


def settings_read() -> set[str]:
    env = Asked({**GOOD, **ACCOUNT})
    Settings.from_env(env)
    return env.names


def test_each_setting_is_on_its_page_and_each_on_the_page_is_a_setting() -> None:
    told = {row[0] for row in rows("docs/settings.md")}

    assert told == settings_read()


def test_the_page_tells_what_is_required_and_the_defaults() -> None:
    told = {row[0]: (row[1], row[3]) for row in rows("docs/settings.md")}

    assert {name for name, (required, _) in told.items() if required == "yes"} == set(GOOD)
    plain = Settings.from_env(GOOD)
    assert told["RATE_LIMIT_DEFAULT"][1] == f"`{plain.rate_limit_default}`"
    assert told["IDEMPOTENCY_TTL_HOURS"][1] == f"`{plain.idempotency_ttl_hours}`"
    assert told["LOG_LEVEL"][1] == f"`{plain.log_level}`"
    assert told["LOG_FORMAT"][1] == f"`{plain.log_format}`"
    assert told["WEBHOOK_ALLOW_PRIVATE_ADDRESSES"][1] == "`false`"
    assert len(MTN_DEFAULTS) == 2


def test_each_setting_is_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    named = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", example, re.MULTILINE))

    assert settings_read() <= named


def test_settings_are_read_nowhere_else() -> None:
    # The second passes a credential to `flask providers set` in a variable whose name is given. The
    # third reads the folder where gunicorn's processes count together, made by gunicorn.conf.py.
    own = {
        "payments_app/__init__.py",
        "payments_app/commands/credentials.py",
        "payments_app/kernel/metrics.py",
    }
    readers = {
        source.name
        for source in sources("payments_app")
        if re.search(r"\bos\.(environ|getenv)\b", source.text) and source.name not in own
    }

    assert not readers, "settings travel as arguments from create_app"


def actions_recorded() -> set[str]:
    """Every action that an entry of the audit trail can have."""
    code = "\n".join(source.text for source in sources("payments_app"))
    plain = re.findall(r'action="([a-z_.]+)"', code)
    noted = re.findall(r'note(?:_by_system)?\(\s*session, endpoint, "(\w+)"', code)
    shelves = (*ENCRYPTED_COLUMNS, *WEBHOOK_ENCRYPTED_COLUMNS)
    return {
        SEALED,
        UNCOVERED,
        *plain,
        *(f"webhook_endpoint.{what}" for what in noted),
        *(f"{shelf.kind}.rewrapped" for shelf in shelves),
    }


def test_each_action_of_the_audit_trail_is_on_its_page() -> None:
    first_cells = re.findall(r"^\|([^|]+)\|", (ROOT / "docs/audit.md").read_text(), re.MULTILINE)
    told = {name for cell in first_cells for name in re.findall(r"`(\w+\.\w+)`", cell)}

    assert told == actions_recorded()


def scopes_required() -> set[Scope]:
    """The scopes that some route of the API needs."""
    asked = {
        ast.unparse(call.args[0]).removeprefix("Scope.")
        for source in sources("payments_app/api/v1")
        for name, call in source.calls()
        if name in {"needs", "require"}
    }
    return {Scope[name] for name in asked}


def test_each_scope_is_on_the_page_and_allows_something_if_a_route_needs_it() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    told = dict(re.findall(r"^\| `(\w+:\w+)` \| (.+) \|$", page, re.MULTILINE))

    assert set(told) == set(Scope)
    unused = {scope for scope, allows in told.items() if allows.startswith("nothing yet")}
    assert unused == set(Scope) - scopes_required()


# Methods of the logger, by the level of their lines.
LEVELS = {name: name for name in ("debug", "info", "warning", "error", "critical")}
LEVELS["exception"] = "error"


def events_logged() -> set[tuple[str, str]]:
    """Name and level of every event in the log."""
    found = set()
    for source in sources("payments_app"):
        for name, call in source.calls():
            logger, _, method = name.rpartition(".")
            if logger == "log" and method in LEVELS:
                # A name that is composed could not be searched for, nor compared here.
                event = ast.literal_eval(call.args[0])
                found.add((event, LEVELS[method]))
    return found


def test_each_event_of_the_log_is_on_its_page_with_its_level() -> None:
    page = (ROOT / "docs/logs.md").read_text()
    told = re.findall(r"^\| `(\w+\.\w+)` \| (\w+) \| \S.* \|$", page, re.MULTILINE)

    assert len(told) == len(set(told))
    assert set(told) == events_logged()


def test_each_logger_has_the_name_by_which_the_calls_are_found() -> None:
    for source in sources("payments_app"):
        made = re.findall(r"^(\w+) = structlog\.get_logger", source.text, re.MULTILINE)
        assert set(made) <= {"log"}, source.name
        assert source.text.count("structlog.get_logger(") == len(made), source.name


def test_each_job_has_one_task_and_each_task_is_a_jobs() -> None:
    (tasks,) = sources("payments_app/worker/tasks.py")
    rung = [
        ast.unparse(keyword.value)
        for name, call in tasks.calls()
        if name == "shared_task"
        for keyword in call.keywords
        if keyword.arg == "name"
    ]

    assert sorted(rung) == sorted(f"Job.{job.name}.value" for job in Job)
    assert len(rung) == len(list(tasks.functions())), "a function in tasks.py is a task"


def test_a_task_is_one_call() -> None:
    (tasks,) = sources("payments_app/worker/tasks.py")

    for function in tasks.functions():
        work = [node for node in function.body if not _is_docstring(node)]
        assert len(work) == 1, f"{function.name}: a doorbell calls one use case"


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
