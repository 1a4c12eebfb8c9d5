"""Every command: its output about one tenant contains nothing of another's."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from flask import Flask

from tests.api.http_caller import NOBODYS
from tests.isolation.rules import COMMANDS, NOT_OURS, Of
from tests.isolation.scene import INTRUDERS, Scene
from tests.nobodys_addresses import NOBODYS_URL

# Parameters that name a tenant, and those that name one thing.
TENANT_PARAMETERS = {"slug", "tenant"}
ID_PARAMETERS = {"payment_id", "key_id", "account_id", "endpoint_id", "id", "number"}
# Arguments after the tenant; a command that is missing here takes none.
ARGUMENTS = {
    "providers check": ["mtn_momo"],
    "providers set": ["mtn_momo", "--mode", "test", "--target-environment", "sandbox"],
    "webhooks add": [NOBODYS_URL],
    "webhooks listen": ["--from-start", "--once", "--mode", "test"],
    "webhooks tail": ["--from-start", "--once", "--mode", "test"],
    "webhooks resend": ["--failed"],
}


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    """The tree's leaves, with their names."""
    for name, command in sorted(group.commands.items()):
        if not above and name in NOT_OURS:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        else:
            yield " ".join((*above, name)), command


def test_each_command_has_a_rule(app: Flask) -> None:
    assert {name for name, _ in commands(app.cli)} == set(COMMANDS), "see tests/isolation/rules.py"


def test_the_rules_fit_what_the_commands_take(app: Flask) -> None:
    for name, command in commands(app.cli):
        taken = {str(parameter.name) for parameter in command.params}
        by_tenant, by_id = bool(taken & TENANT_PARAMETERS), bool(taken & ID_PARAMETERS)
        rule = COMMANDS[name]
        assert (rule is Of.TENANT_AND_ID) == (by_tenant and by_id), name
        assert (rule is Of.ID) == (by_id and not by_tenant), name
        assert rule is not Of.TENANT or by_tenant, name


@pytest.mark.parametrize("name", [name for name, rule in COMMANDS.items() if rule is Of.TENANT])
def test_a_tenants_command_tells_nothing_of_another(app: Flask, scene: Scene, name: str) -> None:
    other = scene.intruders[INTRUDERS[0]].tenant.slug
    tenant = ["--tenant", other] if name == "payments list" else [other]
    words = [*name.split(), *tenant, *ARGUMENTS.get(name, ())]

    result = app.test_cli_runner().invoke(args=words)

    told = result.output + result.stderr
    ours = (*scene.secrets, str(scene.victim.tenant.id), scene.victim.key.prefix)
    assert [one for one in ours if one in told] == []


def test_another_tenants_id_looks_like_nobodys(app: Flask, scene: Scene) -> None:
    """The id of the victim's endpoint, in its own mode, given with another tenant."""
    other = scene.intruders[INTRUDERS[0]].tenant.slug
    for name in (name for name, rule in COMMANDS.items() if rule is Of.TENANT_AND_ID):
        told = []
        for one in (scene.ids["endpoint_id"], NOBODYS):
            words = [*name.split(), other, one, "--mode", "test", *ARGUMENTS.get(name, ())]
            result = app.test_cli_runner().invoke(args=words)
            told.append((result.exit_code, result.output.replace(one, "ID")))
        assert told[0] == told[1], name
        assert told[0][0] != 0, name
