"""The house rules that a parser can check. Each failure says the rule, the place and the remedy."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import PurePath

import pytest

from tests.shape.source_tree import Breach, Source, assert_none, sources

PRODUCT = ("payments_app", "wsgi.py", "celery_worker.py", "gunicorn.conf.py")
TOOLS = ("devstack", "simulator", "chaos", "bench")
FUNCTION_LINES_MAX = 40
TEST_LINES_MAX = 50
FILE_LINES_MAX = 400
# Files that may be longer, for they hold one idea whole.
LONGER = {
    "payments_app/payments/accept.py": (560, "a payment's acceptance, from the key to the rows"),
}
KERNEL_LINES_MAX = 150
# Kernel files that may be longer, and why.
KERNEL_LONGER = {
    "payments_app/kernel/database.py": (160, "where a transaction begins, changes tenant and ends"),
    "payments_app/kernel/metrics.py": (200, "every instrument by its name, in one place"),
    "payments_app/kernel/http/bounded_connection.py": (
        170,
        "one connection from leave to last byte, interim answers among them",
    ),
    "payments_app/kernel/idempotency.py": (260, "a table, its claim and its fingerprint are one"),
    "payments_app/kernel/http/transport.py": (
        180,
        "the way to providers, read as a whole by who audits it",
    ),
    "payments_app/kernel/http/egress.py": (
        300,
        "the way to tenants, read as a whole by who audits it",
    ),
    "payments_app/kernel/http/egress_connection.py": (
        215,
        "a connection and the rules by which it is kept are one",
    ),
}
# Kernel files that one other file uses, and why they are there.
KERNEL_OF_ONE = {
    "payments_app/kernel/http/content_coding.py": "transport's unfolding, which is pure",
    "payments_app/kernel/http/destination.py": "egress' rules for a URL, which are pure",
    "payments_app/kernel/http/egress.py": "a way out, which is nobody's own",
    "payments_app/kernel/http/response_head.py": "bounded_connection's reading of a head, which is pure",
    "payments_app/kernel/http/egress_connection.py": "egress' connections, which end with their own rules",
    "payments_app/kernel/http/lookup.py": "egress' names, with a quota that is pure of HTTP",
    "payments_app/kernel/otel.py": "loaded by name, where spans are configured",
    "payments_app/kernel/pool.py": "the database's connections, split off for its length",
    "payments_app/kernel/logs.py": "every module logs through what create_app sets up with it",
}
# Names that say where something was put, not what it is.
EMPTY_NAMES = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "misc",
    "core",
    "base",
    "manager",
    "managers",
    "service",
    "services",
    "tools",
    "kit",
    "shared",
    "lib",
    "data",
    "info",
    "stuff",
}
# Where money is computed. Elsewhere in payments and providers a float is a number of seconds.
MONEY_FILES = (
    "payments_app/kernel/money.py",
    "payments_app/payments/routing.py",
    "payments_app/payments/accept.py",
    "payments_app/payments/model.py",
    "payments_app/payments/queries.py",
    "payments_app/api/v1/payments/requests.py",
    "payments_app/api/v1/payments/documents.py",
)
MONEY_WORDS = re.compile(r"amount|minor|money", re.IGNORECASE)
TRANSACTION_CALLS = {"commit", "rollback", "begin", "begin_nested"}
CLOCKS = {
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "date.today",
    "time.time",
    "time.time_ns",
}
# Files that may read the wall clock besides clock.py, and why.
CLOCK_READERS: dict[str, str] = {}


def test_only_the_database_module_ends_a_transaction() -> None:
    assert_none(
        "transaction",
        (
            Breach(source, call.lineno, f"{name}()")
            for source in sources(*PRODUCT)
            if source.name != "payments_app/kernel/database.py"
            for name, call in source.calls()
            if name.rpartition(".")[2] in TRANSACTION_CALLS
        ),
        instead="`with transaction(EVERY_TENANT) as session:` begins, commits and rolls back",
    )


def test_only_the_model_moves_a_payment() -> None:
    def targets(source: Source) -> Iterator[tuple[str, int]]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                named = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from ((ast.unparse(target), node.lineno) for target in named)

    assert_none(
        "status",
        (
            Breach(source, line, f"{target} = …")
            for source in sources("payments_app")
            if source.name
            not in {"payments_app/payments/model.py", "payments_app/webhooks/model.py"}
            for target, line in targets(source)
            if re.search(r"\.(status|stage)\b", target)
        ),
        instead="Payment.apply is the only change of status, by the table in states.py",
    )


def test_what_proves_who_asks_is_compared_in_constant_time() -> None:
    """`==` ends at the first different byte, so its time shows how much of a guess was right."""
    proofs = re.compile(r"(^|[._])(hash|digest|secret|signature|password|hmac)s?\b", re.IGNORECASE)
    assert_none(
        "constant-time",
        (
            Breach(source, node.lineno, ast.unparse(node))
            for source in sources("payments_app")
            if source.name.startswith(
                ("payments_app/api/", "payments_app/tenants/", "payments_app/webhooks/")
            )
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Compare)
            and any(isinstance(one, ast.Eq | ast.NotEq) for one in node.ops)
            and any(proofs.search(ast.unparse(side)) for side in (node.left, *node.comparators))
        ),
        instead="hmac.compare_digest",
    )


def test_only_transport_sends_requests() -> None:
    allowed = {
        "payments_app/kernel/http/transport.py",
        "payments_app/kernel/http/bounded_connection.py",
        "payments_app/kernel/http/egress.py",
        "payments_app/kernel/http/response_head.py",
        "payments_app/kernel/http/egress_connection.py",
    }
    assert_none(
        "requests",
        (
            Breach(source, line, f"import {module}")
            for source in sources(*PRODUCT)
            if source.name not in allowed
            for module, line in source.imports()
            if module.split(".")[0] in {"requests", "urllib3", "httpx", "aiohttp"}
            or module in {"http.client", "urllib.request"}
        ),
        instead="adapters send through the HttpClient that they are given",
    )


def test_only_the_clock_reads_the_wall_clock() -> None:
    assert_none(
        "clock",
        (
            Breach(source, call.lineno, f"{name}()")
            for source in sources(*PRODUCT)
            if source.name != "payments_app/kernel/clock.py" and source.name not in CLOCK_READERS
            for name, call in source.calls()
            if name in CLOCKS
        ),
        instead="take `now` as an argument, or call clock.utc_now()",
    )


def test_the_clocks_other_readers_still_read_it() -> None:
    for name in CLOCK_READERS:
        (source,) = sources(name)
        assert any(called in CLOCKS for called, _ in source.calls()), f"{name} needs no exception"


def test_imports_stand_at_the_top() -> None:
    assert_none(
        "local-import",
        (
            Breach(source, node.lineno, ast.unparse(node))
            for source in sources(*PRODUCT, *TOOLS, "tests")
            for function in source.functions()
            for node in ast.walk(function)
            if isinstance(node, ast.Import | ast.ImportFrom)
        ),
        instead="an import in a function hides an arrow between two modules",
    )


@pytest.mark.parametrize(
    ("folders", "longest"),
    [((*PRODUCT, *TOOLS), FUNCTION_LINES_MAX), (("tests",), TEST_LINES_MAX)],
    ids=["product", "tests"],
)
def test_a_function_fits_on_a_screen(folders: tuple[str, ...], longest: int) -> None:
    def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        return (node.end_lineno or node.lineno) - node.lineno + 1

    assert_none(
        "length",
        (
            Breach(source, function.lineno, f"{function.name} has {length(function)} lines")
            for source in sources(*folders)
            for function in source.functions()
            if length(function) > longest
        ),
        instead=f"at most {longest} lines: put a named part of it below",
    )


def test_a_file_fits_in_a_head() -> None:
    too_long = [
        f"{source.name}: {len(source.lines)} lines"
        for source in sources(*PRODUCT, *TOOLS)
        if len(source.lines) > LONGER.get(source.name, (FILE_LINES_MAX, ""))[0]
    ]

    assert not too_long, f"at most {FILE_LINES_MAX} lines: split by use case\n{too_long}"


def test_a_kernel_file_is_one_noun() -> None:
    for source in sources("payments_app/kernel"):
        longest, _ = KERNEL_LONGER.get(source.name, (KERNEL_LINES_MAX, ""))
        assert len(source.lines) <= longest, f"{source.name}: at most {longest} lines in the kernel"


def test_a_kernel_file_has_two_users() -> None:
    users = {
        source.name: {module for module, _ in source.imports()}
        | {f"{module}.{name}" for module, name in _from_imports(source)}
        for source in sources(*PRODUCT)
    }
    for source in sources("payments_app/kernel"):
        module = source.name.removesuffix(".py").replace("/", ".")
        if module.endswith("__init__") or source.name in KERNEL_OF_ONE:
            continue
        count = sum(module in imported for name, imported in users.items() if name != source.name)
        assert count >= 2, f"{source.name} has {count} users: it belongs to the one that has it"


def test_no_kernel_exception_is_left_over() -> None:
    for name in KERNEL_LONGER:
        (source,) = sources(name)
        assert len(source.lines) > KERNEL_LINES_MAX, f"{name} needs no exception any more"


def test_a_module_is_named_for_what_it_is() -> None:
    for source in sources(*PRODUCT, *TOOLS, "tests"):
        parts = {part.removesuffix(".py") for part in PurePath(source.name).parts}
        assert not parts & EMPTY_NAMES, f"{source.name}: name it for what it holds"


def test_every_module_says_what_it_is() -> None:
    for source in sources(*PRODUCT, *TOOLS):
        has_code = bool(source.text.strip())
        assert not has_code or ast.get_docstring(source.tree), f"{source.name} begins with no words"


def test_money_is_never_a_float() -> None:
    def floats(source: Source) -> Iterator[Breach]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, float):
                yield Breach(source, node.lineno, f"the float {node.value}")
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                yield Breach(source, node.lineno, f"a division, {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"float", "round"}:
                yield Breach(source, node.lineno, f"{ast.unparse(node)}")

    assert_none(
        "float",
        (breach for source in sources(*MONEY_FILES) for breach in floats(source)),
        instead="money is an integer of minor units",
    )


def test_no_amount_meets_a_float_on_any_rail() -> None:
    def statements(source: Source) -> Iterator[ast.stmt]:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.Return | ast.Expr | ast.AugAssign):
                yield node

    def is_float(node: ast.AST) -> bool:
        is_call = isinstance(node, ast.Call) and ast.unparse(node.func) == "float"
        is_literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
        return (
            is_call or is_literal or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
        )

    def is_text(statement: ast.stmt) -> bool:
        return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)

    assert_none(
        "float",
        (
            Breach(source, statement.lineno, ast.unparse(statement)[:80])
            for source in sources("payments_app/payments", "payments_app/providers")
            for statement in statements(source)
            if not is_text(statement)
            and MONEY_WORDS.search(ast.unparse(statement))
            and any(is_float(node) for node in ast.walk(statement))
        ),
        instead="money is an integer of minor units",
    )


def test_a_let_off_gives_its_reason() -> None:
    for source in sources(*PRODUCT, *TOOLS, "tests"):
        for number, line in enumerate(source.lines, start=1):
            comment = line.partition("# house:")[2]
            if comment and "tests/shape/" not in source.name:
                assert re.match(r" allow [a-z-]+ because \S.{9,}", comment), (
                    f"{source.name}:{number}: # house: allow <rule> because <reason>"
                )


def _from_imports(source: Source) -> Iterator[tuple[str, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
