"""The pages: their fenced blocks, their links, and the files that they name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```\s*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
# A file of ours as prose names it: with a folder, or one at the top of the repository.
_PATH = re.compile(
    r"(?:(?:payments_app|providers|payments|kernel|api|worker|commands|tenants|audit|webhooks|integrity|monitoring"
    r"|simulator|devstack|migrations|tests|docs|bench|\.ci)/[\w./*-]*"
    r"|[\w-]+\.(?:py|md|toml|sh|json|txt|in|yml))(?:::(\w+))?"
)
_FILE_OF_A_SNIPPET = re.compile(r"\A(?:#|//) (\S+\.(?:py|mjs))\b")


@dataclass(frozen=True)
class Block:
    """A fenced block. `line`: the line where its text begins."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The file name in a first line such as `# pay.py …`; other blocks then run that file."""
        text = self.text.removeprefix("#!/usr/bin/env bash\n")
        found = _FILE_OF_A_SNIPPET.match(text) or re.match(r"# (\S+\.sh)\b", text)
        return found[1] if found else None


def pages() -> list[str]:
    """All pages for readers, as paths from the root."""
    found = (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def the_page_says(page: str, *words: str) -> None:
    """The page has these words; a line break counts as a space."""
    written = " ".join(read(page).split())
    assert [one for one in words if one not in written] == []


def blocks_of(page: str) -> list[Block]:
    text = read(page)
    return [
        Block(page, text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in _FENCE.finditer(text)
    ]


def prose_of(page: str) -> str:
    """The page without its blocks."""
    return _FENCE.sub("", read(page))


def links_of(page: str) -> list[str]:
    """The targets of its links, as they are written."""
    return _LINK.findall(prose_of(page))


def anchors_of(page: str) -> set[str]:
    """The anchors that a link into the page may have after its `#`."""
    headings = re.findall(r"^#+ (.+?)\s*$", prose_of(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")
        for heading in headings
    }


def files_named_in(page: str) -> list[str]:
    """Our files, folders and tests (`file::test`) that its prose names in `code`."""
    return [code for code in _CODE.findall(prose_of(page)) if _PATH.fullmatch(code)]
