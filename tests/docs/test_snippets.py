"""Every command and snippet of the pages does what it says, on a running stack."""

from __future__ import annotations

import json
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from devstack.places import free_port
from devstack.stack import Stack
from payments_app.providers import contract, tokens
from tests.docs.conftest import NEVER_ANSWERS, Site
from tests.docs.pages import ROOT, Block, blocks_of, pages, read
from tests.docs.plan import ELSEWHERE, INSTEAD, NOT_CODE, NOT_RUN
from tests.docs.shell import SHELL, commands_of, is_shell, lacking, rule_for, run_page
from tests.nobodys_addresses import NOBODYS_URL

BLOCKS = [block for page in pages() for block in blocks_of(page)]
DATA = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
# Shown, not run: the output of a command, a drawing, an HTTP exchange.
SHOWN = ("text", "http")


def names(blocks: list[Block]) -> list[str]:
    return [block.name for block in blocks]


def test_there_are_pages() -> None:
    assert {"README.md", "ARCHITECTURE.md", "docs/idempotency.md"} <= set(pages())


def test_each_block_is_of_a_kind_that_is_tested() -> None:
    kinds = (*SHELL, *DATA, *SHOWN, "python", "js")
    assert not names([block for block in BLOCKS if block.language not in kinds])


def test_the_plan_speaks_of_what_is_there() -> None:
    for rule in (*NOT_RUN, *NOT_CODE, *INSTEAD):
        if rule.page:
            assert re.search(rule.pattern, read(rule.page), re.MULTILINE), rule


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in DATA], ids=lambda block: block.name
)
def test_data_can_be_read(block: Block) -> None:
    assert DATA[block.language](block.text)


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language == "python" and b.file_name is None],
    ids=lambda block: block.name,
)
def test_a_piece_of_python_knows_the_names_it_uses(block: Block) -> None:
    defined(block)


def test_the_example_of_an_adapter_has_all_that_the_contract_asks_for() -> None:
    page = "docs/adding-a-provider.md"
    block = next(block for block in blocks_of(page) if block.language == "python")
    adapter = defined(block)["AcmePay"]
    wanted = {name for name in dir(contract.Provider) if not name.startswith("_")}
    assert wanted | set(contract.Provider.__annotations__) <= set(vars(adapter))


# Longer than a page may take (shell.py).
@pytest.mark.timeout(360)
@pytest.mark.parametrize("page", [p for p in pages() if any(map(is_shell, blocks_of(p)))])
def test_a_pages_commands_work(page: str, site: Site, tmp_path: Path) -> None:
    blocks = blocks_of(page)
    ran = run_page(blocks, tmp_path, {**site.environment("demo"), **_things(page, site, tmp_path)})
    said = f"{ran.last_block} failed:\n{ran.output}"
    assert ran.exit_code == 0, f"{said}\n{site.stack.log_tails()}"
    commands = (command for block in filter(is_shell, blocks) for command in commands_of(block))
    if programs := set().union(*map(lacking, commands)):
        pytest.skip(f"right so far; not on this machine: {sorted(programs)}")


def test_the_libraries_page_names_what_is_pinned() -> None:
    """Each row of docs/decisions/0014-libraries.md: names, versions, licences, purpose."""
    pinned = dict(
        re.findall(
            r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)",
            "".join((ROOT / f"requirements{which}.txt").read_text() for which in ("", "-dev")),
            re.MULTILINE,
        )
    )
    for row in re.findall(
        r"^\| ([^|]+) \| ([\d., ]+) \|", read("docs/decisions/0014-libraries.md"), re.MULTILINE
    ):
        versions = row[1].split(", ")
        for name, version in zip(row[0].split(", "), versions, strict=False):
            assert pinned[name.lower().partition(" ")[0]] == version, name


def test_each_command_is_run_or_has_a_reason() -> None:
    """A page with no command that is run would prove nothing: most commands must be run."""
    shown = [block for block in BLOCKS if is_shell(block) and block.page not in ELSEWHERE]
    commands = [(b.page, c) for b in shown for c in commands_of(b)]
    left_out = [command for page, command in commands if rule_for(NOT_RUN, page, command)]
    assert len(left_out) < len(commands) / 2


def test_what_is_run_elsewhere_is_run_there() -> None:
    for page, test in ELSEWHERE.items():
        assert f'PAGE = "{page}"' in (ROOT / test).read_text()


def defined(block: Block) -> dict[str, Any]:
    """The names that a piece of Python defines, given the names that its page uses."""
    known: dict[str, Any] = {**vars(contract), "TokenCache": tokens.TokenCache}
    known |= {"Stack": Stack, "partial": partial}
    exec(compile(block.text, block.name, "exec"), known)  # noqa: S102  our own page
    return known


def _things(page: str, site: Site, folder: Path) -> dict[str, str]:
    """The values that a page's commands use as if they existed."""
    things = {"A_FREE_PORT": str(free_port())}
    if page == "docs/cli.md":
        order = {"amount": 1, "currency": "EUR", "payer": NEVER_ANSWERS}
        headers = {"X-API-Key": site.key_of("other")}
        payment = requests.post(site.payments, json=order, headers=headers, timeout=10).json()
        things["A_PENDING_PAYMENT"] = payment["id"]
        things["A_KEY"] = str(site.new_key("other")["prefix"])
        added = site.flask("webhooks", "add", "other", NOBODYS_URL, "--json")
        things["AN_ENDPOINT"] = json.loads(added)["id"]
        things["MTN_SUBSCRIPTION_KEY"] = "subscription"
        (folder / "api-user-and-key.txt").write_text("user\nkey\n", encoding="ascii")
    return things
