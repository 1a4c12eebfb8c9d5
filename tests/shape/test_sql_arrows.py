"""SQL text obeys the arrows: a feature names its own tables and those of the features below it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.shape.source_tree import Source, sources

# From top to bottom, as pyproject.toml's layers. What is above may name the tables of what is below.
LAYERS = (
    "api",
    "worker",
    "commands",
    "monitoring",
    "integrity",
    "payments",
    "webhooks",
    "tenants",
    "audit",
    "kernel",
)
# What names a table of above, and why.
ALLOWED = {
    ("payments_app/audit/heads.py", "tenants"): "each tenant has a chain, also one without entries",
    (
        "payments_app/audit/verify.py",
        "tenants",
    ): "each tenant has a chain, also one without entries",
    ("payments_app/webhooks/claims.py", "payments"): "the trace of a delivery is its payment's",
}
# Words of SQL, so that a sentence with "from" in it is no statement.
STATEMENT = re.compile(r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM)\b")
NAMED = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|USING)\s+(?:ONLY\s+)?([a-z_]+)")


def layer_of(source: Source) -> str | None:
    parts = source.name.split("/")
    return parts[1] if len(parts) > 2 and parts[1] in LAYERS else None


def owners() -> dict[str, str]:
    """Each table's feature: where its model is."""
    found = {}
    for source in sources("payments_app"):
        for node in ast.walk(source.tree):
            match node:
                case ast.Assign(
                    targets=[ast.Name("__tablename__")], value=ast.Constant(str(table))
                ):
                    found[table] = layer_of(source) or ""
                case _:
                    pass
    return found


def statements(source: Source) -> Iterator[tuple[int, str]]:
    for node in ast.walk(source.tree):
        match node:
            case ast.JoinedStr(values=values):
                text = " ".join(v.value for v in values if isinstance(v, ast.Constant))
            case ast.Constant(str(text)):
                pass
            case _:
                continue
        if STATEMENT.search(text):
            yield node.lineno, text


def test_each_table_has_an_owner() -> None:
    assert len(owners()) >= 11
    assert "" not in owners().values()


def test_sql_names_no_table_of_a_feature_above() -> None:
    owner_of, wrong, seen, allowed = owners(), [], 0, set()
    for source in sources("payments_app"):
        if (layer := layer_of(source)) is None:
            continue
        for line, text in statements(source):
            for table in NAMED.findall(text):
                if (owner := owner_of.get(table)) is None:
                    continue
                seen += 1
                if (source.name, table) in ALLOWED:
                    allowed.add((source.name, table))
                elif LAYERS.index(owner) < LAYERS.index(layer):
                    wrong.append(f"{source.name}:{line}: {table} belongs to {owner}")
    assert seen > 30
    assert not wrong, "\n".join(wrong)
    assert allowed == set(ALLOWED), "an exception that is not needed any more"
