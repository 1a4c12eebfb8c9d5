"""A migration runs before the version that needs it, so the running version must work with it.

Therefore it only adds. What removes something waits for a later version, when no running version
needs it, and says so: `# contract: <since which version nobody uses it>`, on the line or the one
above. The rules with an example: docs/deploy.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.shape.source_tree import ROOT, Breach, Source, sources

VERSIONS = "migrations/versions"
# Migrations from before the first installation that had to be upgraded without downtime.
FREE_UNTIL = 7
MARK = re.compile(r"# contract: \S")
TAKES_AWAY = {
    "drop_column": "drops a column",
    "drop_table": "drops a table",
    "rename_table": "renames a table",
}
STATEMENTS = {
    r"DROP\s+(COLUMN|TABLE)\b": "drops a column or table",
    r"\bRENAME\s+(COLUMN|TO)\b": "renames a column or table",
    r"\bSET\s+NOT\s+NULL\b": "makes a column NOT NULL",
    r"\bALTER\s+COLUMN\s+\w+\s+(SET\s+DATA\s+)?TYPE\b": "changes a column's type",
    r"\bADD\s+(COLUMN\s+)?(?!CONSTRAINT)\w+\s(?:(?!DEFAULT|GENERATED)[^,;])*\bNOT\s+NULL\b(?!(?:(?!,|;).)*DEFAULT)": (
        "adds a column that is NOT NULL and has no default"
    ),
}


def breaches(source: Source) -> Iterator[Breach]:
    """Statements in this migration's upgrade that remove something without the mark."""
    for node in _way_up(source.tree):
        if isinstance(node, ast.Call):
            found = list(_by_call(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = list(_by_statement(node.value))
        else:
            continue
        near = source.lines[max(node.lineno - 2, 0) : node.lineno]
        if not any(MARK.search(line) for line in near):
            yield from (Breach(source, node.lineno, what) for what in found)


def _way_up(tree: ast.Module) -> Iterator[ast.AST]:
    for top in tree.body:
        # A downgrade runs only when no new version runs any more.
        if not (isinstance(top, ast.FunctionDef) and top.name == "downgrade"):
            yield from ast.walk(top)


def _by_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func).rpartition(".")[2]
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in TAKES_AWAY:
        yield TAKES_AWAY[name]
    if name == "alter_column":
        if "new_column_name" in given:
            yield "renames a column"
        if given.get("nullable") == "False":
            yield "makes a column NOT NULL"
        if "type_" in given:
            yield "changes a column's type"
    if name == "add_column":
        yield from _by_column(call)


def _by_column(call: ast.Call) -> Iterator[str]:
    for column in call.args:
        if isinstance(column, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in column.keywords}
            filled = {"server_default", "computed"} & set(given) or "Computed" in ast.unparse(
                column
            )
            if given.get("nullable") == "False" and not filled:
                yield "adds a column that is NOT NULL and has no default"


def _by_statement(text: str) -> Iterator[str]:
    for pattern, what in STATEMENTS.items():
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            yield what


def test_what_runs_can_live_with_each_migration() -> None:
    told = [
        f"{breach.source.name}:{breach.line}: {breach.what}"
        for source in sources(VERSIONS)
        if int(source.name.rpartition("/")[2][:4]) > FREE_UNTIL
        for breach in breaches(source)
    ]
    assert not told, "\n".join(
        ["Add first, take away a version later (# contract: …); see docs/deploy.md", *told]
    )


def a_migration(*lines: str) -> Source:
    text = "\n".join(["def upgrade():", *(f"    {line}" for line in lines)])
    return Source("0099_sample.py", text, ast.parse(text))


@pytest.mark.parametrize(
    "line",
    [
        "op.drop_column('payments', 'note')",
        "op.drop_table('notes')",
        "op.rename_table('notes', 'remarks')",
        "op.alter_column('payments', 'note', new_column_name='remark')",
        "op.alter_column('payments', 'note', nullable=False)",
        "op.alter_column('payments', 'note', type_=sa.Text())",
        "op.add_column('payments', sa.Column('note', sa.Text(), nullable=False))",
        "op.execute('ALTER TABLE payments DROP COLUMN note')",
        "op.execute('ALTER TABLE payments RENAME COLUMN note TO remark')",
        "op.execute('ALTER TABLE payments RENAME TO charges')",
        "op.execute('ALTER TABLE payments ALTER COLUMN note SET NOT NULL')",
        "op.execute('ALTER TABLE payments ALTER COLUMN note TYPE text')",
        "op.execute('ALTER TABLE payments ADD COLUMN note text NOT NULL')",
        "op.execute('ALTER TABLE payments ADD note text NOT NULL')",
    ],
)
def test_what_takes_away_is_seen_and_let_through_only_with_its_reason(line: str) -> None:
    assert list(breaches(a_migration(line)))
    assert not list(breaches(a_migration("# contract: nobody reads it since 0.3", line)))
    assert list(breaches(a_migration("# contract:", line)))


@pytest.mark.parametrize(
    "line",
    [
        "op.add_column('payments', sa.Column('note', sa.Text()))",
        "op.add_column('payments', sa.Column('note', sa.Text(), nullable=False, server_default=''))",
        "op.execute(\"ALTER TABLE payments ADD COLUMN note text NOT NULL DEFAULT ''\")",
        "op.execute(\"ALTER TABLE payments ADD COLUMN note text DEFAULT '' NOT NULL\")",
        "op.execute('ALTER TABLE payments ADD CONSTRAINT note_there CHECK (note IS NOT NULL) NOT VALID')",
        "op.create_table('notes', sa.Column('text', sa.Text(), nullable=False))",
        "op.execute('CREATE TABLE notes (text text NOT NULL)')",
        "op.execute('DROP TRIGGER old ON payments')",
    ],
)
def test_what_only_adds_is_let_through(line: str) -> None:
    assert not list(breaches(a_migration(line)))


def test_the_way_down_may_take_away() -> None:
    text = "def downgrade():\n    op.drop_table('notes')"
    assert not list(breaches(Source("0099_sample.py", text, ast.parse(text))))


def test_the_earlier_ones_are_those_that_are_there() -> None:
    names = {int(path.name[:4]) for path in (ROOT / VERSIONS).glob("[0-9]*.py")}
    assert set(range(1, FREE_UNTIL)) <= names
