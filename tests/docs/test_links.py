"""The targets of a page's links, and the files and commands that it names, exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, anchors_of, blocks_of, files_named_in, links_of, pages, read

# Files that a page names and that are not in this repository, or that `make run` creates.
_ELSEWHERE = {"pyproject.toml", "orders.db", "demo.json", "environment.json"}
# Folders that may have a file which a page names without its folder.
_CODE = ("payments_app", "simulator", "devstack", "tests")


@pytest.mark.parametrize("page", pages())
def test_each_link_leads_somewhere(page: str) -> None:
    for link in links_of(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors_of(str(target.resolve().relative_to(ROOT))), f"{page}: {link}"


@pytest.mark.parametrize("page", pages())
def test_each_file_that_is_named_is_there(page: str) -> None:
    shown = {block.file_name for block in blocks_of(page)}
    for named in files_named_in(page):
        if named in shown | _ELSEWHERE:
            continue
        path, _, test = named.partition("::")
        found = [file for base in _bases(page) for file in base.glob(path.rstrip("/"))]
        if not found and "/" not in path:
            found = [file for folder in _CODE for file in ROOT.glob(f"{folder}/**/{path}")]
        assert found, f"{page} names {named}, which is not there"
        if test:
            assert any(f"def {test}(" in file.read_text() for file in found), f"{page}: {named}"


@pytest.mark.parametrize("page", pages())
def test_each_verb_of_make_that_is_named_is_there(page: str) -> None:
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z-]+)", read(page), re.MULTILINE)
    assert set(named) <= set(targets)


def test_each_decision_is_listed_and_has_its_five_parts() -> None:
    written = {page for page in pages() if re.match(r"docs/decisions/\d", page)}
    listed = {f"docs/decisions/{link}" for link in links_of("docs/decisions/README.md")}
    assert listed == written
    parts = ["Context", "Decision", "Why", "Rejected", "What follows"]
    for page in written:
        assert re.findall(r"^## (.+)$", read(page), re.MULTILINE) == parts, page


def test_each_promise_of_the_readme_names_the_test_that_would_fail_without_it() -> None:
    rows = re.findall(r"^\| (G\d) \|.*\|(.*)\|$", read("README.md"), re.MULTILINE)
    assert [number for number, _ in rows] == [f"G{number}" for number in range(1, 10)]
    for number, tests in rows:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", tests), number


def _bases(page: str) -> tuple[Path, ...]:
    """Where a path may start: at the top, in the package, or beside the page."""
    return (ROOT, ROOT / "payments_app", (ROOT / page).parent)
