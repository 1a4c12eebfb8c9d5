"""The units for one machine: what they start is there, and none has a right that it does not need."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from devstack.programs import ROOT
from tests.deploy.settings_known import known_settings

UNITS = ROOT / "deploy/systemd"
DROP_IN = UNITS / "maramoja-.service.d/hardened.conf"
SERVICES = sorted(UNITS.glob("*.service"))
# What systemd itself makes of a service: 0 is nothing to worry about, 10 is all of the machine.
EXPOSURE_MAX = "15"
# Settings whose values add up. Of all others systemd keeps the last, which is the drop-in's.
ADDED = {"Environment", "EnvironmentFile"}
HOME = Path("/opt/maramoja")
each = pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)


def lines_of(*paths: Path) -> dict[str, list[str]]:
    """Each setting's values; systemd's files may name one several times."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for name, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE):
            found[name].append(value)
    return found


def effective(path: Path) -> dict[str, str]:
    """A unit's settings as systemd has them: the unit first, then its drop-ins (systemd.unit(5))."""
    found: dict[str, str] = {}
    for name, values in lines_of(path, DROP_IN).items():
        # An empty value takes back those before it.
        last = max((place + 1 for place, value in enumerate(values) if not value), default=0)
        kept = values[last:]
        found[name] = " ".join(kept) if name in ADDED else "".join(kept[-1:])
    return found


def test_there_is_one_for_each_part() -> None:
    assert [path.name for path in SERVICES] == [
        "maramoja-api.service",
        "maramoja-beat.service",
        "maramoja-migrate.service",
        "maramoja-worker@.service",
    ]


@each
def test_each_is_hardened_by_the_drop_in_and_takes_nothing_back(path: Path) -> None:
    ours, shared = lines_of(path), lines_of(DROP_IN)
    assert shared["NoNewPrivileges"] == ["yes"]
    assert shared["ProtectSystem"] == ["strict"]
    assert shared["DynamicUser"] == ["yes"]
    assert shared["CapabilityBoundingSet"] == [""]
    assert set(ours) & set(shared) <= ADDED
    assert path.name.startswith(DROP_IN.parent.name.removesuffix(".service.d"))


@each
def test_each_works_in_the_folder_of_its_own_program(path: Path) -> None:
    """`flask` and `celery` take the code of the folder that they are started in."""
    unit = effective(path)
    release = "next" if path.name == "maramoja-migrate.service" else "current"
    assert unit["WorkingDirectory"] == str(HOME / release)
    assert unit["ExecStart"].startswith(f"{HOME / release}/.venv/bin/")


@pytest.mark.parametrize("before", [None, "v0.1.0"], ids=["first install", "upgrade"])
def test_the_migration_is_the_new_releases(tmp_path: Path, before: str | None) -> None:
    """The page's own lines, up to the migration, in a folder that stands for /opt/maramoja."""
    for release in filter(None, (before, "v0.2.0")):
        (tmp_path / release).mkdir()
    if before:
        (tmp_path / "current").symlink_to(before)
    page = (ROOT / "docs/deploy.md").read_text()
    until = page.index("systemctl start maramoja-migrate")
    for leads_to, link in re.findall(r"^sudo ln -sfn (\S+) (\S+)$", page[:until], re.MULTILINE):
        (tmp_path / Path(link).relative_to(HOME)).symlink_to(leads_to)
    folder = effective(UNITS / "maramoja-migrate.service")["WorkingDirectory"]
    assert (tmp_path / Path(folder).relative_to(HOME)).resolve() == tmp_path / "v0.2.0"


@each
def test_each_is_bounded_and_says_how_long_it_may_take_to_end(path: Path) -> None:
    ours = lines_of(path)
    assert ours["MemoryMax"]
    assert ours["TasksMax"]
    if ours.get("Type") != ["oneshot"]:
        assert ours["Restart"] == ["always"]
        assert int(ours["TimeoutStopSec"][0]) >= 30


@each
def test_each_sets_known_settings_only(path: Path) -> None:
    pairs = " ".join(lines_of(path, DROP_IN)["Environment"]).split()
    assert {pair.partition("=")[0] for pair in pairs} <= known_settings()


def test_only_the_migration_reads_the_owners_address() -> None:
    readers = [
        p.name
        for p in SERVICES
        if any("migration.env" in f for f in lines_of(p)["EnvironmentFile"])
    ]
    assert readers == ["maramoja-migrate.service"]


def test_a_reload_of_the_api_is_a_hangup_and_follows_the_link() -> None:
    api = lines_of(UNITS / "maramoja-api.service")
    assert api["ExecReload"] == ["/bin/kill -s HUP $MAINPID"]
    assert "--chdir /opt/maramoja/current " in api["ExecStart"][0]
    assert api["Type"] == ["notify"]


def test_the_target_wants_units_that_are_there() -> None:
    (wanted,) = lines_of(UNITS / "maramoja.target")["Wants"]
    for unit in wanted.split():
        assert (UNITS / re.sub(r"@\d", "@", unit)).exists(), unit


@pytest.fixture
def standing(tmp_path: Path) -> Path:
    """The units as systemd would find them, with programs that are on this machine."""
    found = tmp_path / "units"
    shutil.copytree(UNITS, found)
    for path in [*found.glob("*.service"), *found.glob("*/*.conf")]:
        text = re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", path.read_text(), flags=re.MULTILINE)
        text = re.sub(r"^(WorkingDirectory=).*", r"\1/tmp", text, flags=re.MULTILINE)
        path.write_text(text)
    return found


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="UNITS NOT VERIFIED: no systemd"
)
def test_systemd_finds_nothing_wrong_and_little_exposed(standing: Path) -> None:
    units = [re.sub("@", "@1", path.name) for path in SERVICES]
    environment = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{standing}:"}
    exposure = ("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}")
    for asked in (("verify", "--man=no", "maramoja.target"), exposure):
        done = subprocess.run(
            ["systemd-analyze", *asked, *units],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # A setting that systemd doesn't know is only told of.
        assert str(standing) not in done.stderr, done.stderr
