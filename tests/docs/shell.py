"""Runs a page's commands as a reader would paste them: in order, in one shell, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from devstack.programs import COMMAND_MAX_S
from tests.docs.pages import ROOT, Block
from tests.docs.plan import INSTEAD, NOT_CODE, NOT_RUN, Rule

SHELL = ("", "bash", "sh", "shell", "console")
PAGE_MAX_S = COMMAND_MAX_S
# Programs that a page may call and that a machine may not have.
OPTIONAL = ("curl", "node", "jq")
# A page's `python3` is the one that runs the tests.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
_QUOTES = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", re.DOTALL)
# An answer of 400 or more is an error of the page, unless the page says otherwise.
_PROLOGUE = f"""
set -eo pipefail
python() {{ {sys.executable} "$@"; }}
curl() {{ command curl --fail-with-body "$@"; }}
flask() {{ {sys.executable} {ROOT}/tests/docs/cli_server.py "$CLI_SOCKET" -- "$@"; }}
"""


@dataclass(frozen=True)
class Ran:
    """The output of a page's shell, and the block at which it stopped."""

    exit_code: int
    output: str
    last_block: str


def commands_of(block: Block) -> Iterator[str]:
    """Each command with its continuation lines and its here-documents or quotes."""
    gathered = ""
    for line in block.text.splitlines():
        gathered += line
        if line.endswith("\\") or _is_open(gathered):
            gathered += "\n"
            continue
        if gathered.strip():
            yield gathered
        gathered = ""
    if gathered.strip():
        yield gathered


def rule_for(rules: tuple[Rule, ...], page: str, text: str) -> Rule | None:
    fitting = (
        r for r in rules if r.page in ("", page) and re.search(r.pattern, text, re.MULTILINE)
    )
    return next(fitting, None)


def lacking(command: str) -> set[str]:
    """The missing programs that this command calls, itself or in a script of the page."""
    called = set(re.findall(r"[\w.]+", command)) | ({"curl"} if ".sh " in command else set())
    return {program for program in OPTIONAL if program in called and not shutil.which(program)}


def is_shell(block: Block) -> bool:
    if block.language not in SHELL or block.file_name is not None:
        return False
    return block.language != "" or rule_for(NOT_CODE, block.page, block.text) is None


def script_of(blocks: list[Block]) -> str:
    """The page's commands; the name of each block is written to file descriptor 3."""
    lines = [_PROLOGUE]
    for block in filter(is_shell, blocks):
        lines.append(f"echo {block.name} >&3")
        lines += [
            _in_place(block.page, command)
            for command in commands_of(block)
            if rule_for(NOT_RUN, block.page, command) is None and not lacking(command)
        ]
    return "\n".join(lines) + "\n"


def run_page(blocks: list[Block], folder: Path, environment: Mapping[str, str]) -> Ran:
    """Write the files that the page shows, then run its commands."""
    for block in blocks:
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.text, encoding="utf-8")
    script = folder / "page.sh"
    script.write_text(script_of(blocks), encoding="utf-8")
    output, progress = folder / "output", folder / "progress"
    with output.open("w") as said, progress.open("w") as told:
        process = subprocess.Popen(
            ["/bin/bash", "-c", f"exec 3>&{told.fileno()}; source {script}"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment, "PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(told.fileno(),),
        )
        try:
            process.wait(PAGE_MAX_S)
        except subprocess.TimeoutExpired:
            said.write(f"(not over after {PAGE_MAX_S} s)")
        # Kill also the servers that the page has started.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    names = progress.read_text().split()
    return Ran(process.returncode, output.read_text(), names[-1] if names else "")


def _in_place(page: str, command: str) -> str:
    for rule in INSTEAD:
        if rule.page in ("", page):
            command = re.sub(rule.pattern, rule.meaning, command, flags=re.MULTILINE)
    return command


def _is_open(text: str) -> bool:
    """Whether a quote is still open."""
    return not set(_QUOTES.sub("", text)).isdisjoint("'\"")
