"""`make check`: no secret is in the repository, except listed ones that give no access.

It has its own patterns: the one scanner on PyPI for this (detect-secrets) has had no release since
May 2024, and has no patterns for our keys or our providers'.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from devstack.programs import ROOT

# A larger file is data, not written by hand.
BYTES_MAX: Final = 2_000_000
SHOWN: Final = 12

PATTERNS: Final = {
    "private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "API key of ours": re.compile(r"\bmara_(?:live|test)_[A-Za-z0-9]{10}_[A-Za-z0-9]{20,}"),
    "Fernet key": re.compile(r"(?<![\w+/=-])[A-Za-z0-9_-]{43}=(?![\w=])"),
    "AWS key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,})"),
    "PyPI token": re.compile(r"\bpypi-AgEI[\w-]{50,}"),
    "Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "Google key": re.compile(r"\bAIza[\w-]{35}\b"),
    "Stripe key": re.compile(r"\b[rs]k_live_[A-Za-z0-9]{16,}"),
    "JSON web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    # MTN's subscription keys and API keys have this form, and many other keys too.
    "32 hexadecimal digits": re.compile(r"(?<![\w-])[0-9a-f]{32}(?![\w-])"),
}


@dataclass(frozen=True)
class Allowed:
    """A text that files whose path begins with `path` may contain, and why."""

    path: str
    kind: str
    text: str
    reason: str


SIMULATED: Final = "the simulator's own account, seeded at each start: it opens nothing else"
COUNTED: Final = "all digits in turn: a simulator's account in a test"
TRACE_ID: Final = "a trace id: the example of W3C's recommendation"
ALLOWED: Final = (
    Allowed("devstack/environment.py", "32 hexadecimal digits", "0f0d3c4b5a6978", SIMULATED),
    Allowed("devstack/environment.py", "32 hexadecimal digits", "b1946ac92492d2", SIMULATED),
    Allowed(".env.example", "32 hexadecimal digits", "0f0d3c4b5a6978", SIMULATED),
    Allowed(".env.example", "32 hexadecimal digits", "b1946ac92492d2", SIMULATED),
    Allowed("tests/api/test_logging.py", "32 hexadecimal digits", "4bf92f3577b3", TRACE_ID),
    Allowed("tests/api/test_traceparent.py", "32 hexadecimal digits", "4bf92f3577b3", TRACE_ID),
    Allowed("tests/pure/test_trace_context.py", "32 hexadecimal digits", "4bf92f3577b3", TRACE_ID),
    Allowed("tests/providers/mtn_rig.py", "32 hexadecimal digits", "0123456789ab", COUNTED),
    Allowed("tests/simulator/driving.py", "32 hexadecimal digits", "0123456789ab", COUNTED),
)


@dataclass(frozen=True)
class Finding:
    """A text that looks like a secret; only its beginning is shown."""

    path: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        """One line for people and logs, without the whole secret."""
        return f"{self.path}:{self.line}: {self.kind}: {self.text[:SHOWN]}…"


def scan(path: str, text: str) -> Iterator[Finding]:
    """Find everything in the text that looks like a secret."""
    for number, line in enumerate(text.splitlines(), 1):
        for kind, pattern in PATTERNS.items():
            for found in pattern.finditer(line):
                yield Finding(path, number, kind, found[0])


def judged(findings: Sequence[Finding], allowed: Sequence[Allowed]) -> list[str]:
    """List findings that are not allowed, and allowed texts that no file has any more."""
    wrong = [str(found) for found in findings if not any(_covers(one, found) for one in allowed)]
    idle = [
        f"{one.path}: nothing there needs to be allowed ({one.text}…): take the line out"
        for one in allowed
        if not any(_covers(one, found) for found in findings)
    ]
    return wrong + idle


def tracked() -> Iterator[Path]:
    """The files in the repository, and those that could be in the next commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and path.stat().st_size <= BYTES_MAX:
            yield path


def _covers(allowed: Allowed, found: Finding) -> bool:
    return (
        found.path.startswith(allowed.path)
        and found.kind == allowed.kind
        and found.text.startswith(allowed.text)
    )


@click.command()
def main() -> None:
    """Scan the repository's files."""
    paths = list(tracked())
    findings = [
        found
        for path in paths
        for found in scan(str(path.relative_to(ROOT)), path.read_bytes().decode(errors="replace"))
    ]
    if wrong := judged(findings, ALLOWED):
        click.echo("\n".join(wrong))
        sys.exit(1)
    click.echo(f"{len(paths)} files, no secret but the {len(ALLOWED)} that are allowed by name")


if __name__ == "__main__":
    main()
