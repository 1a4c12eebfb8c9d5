"""The units for one machine: what they start exists, and none has a right that it does not need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from devstack.programs import ROOT
from tests.deploy.settings_known import known_settings
from tests.deploy.units import (
    ADDED,
    DROP_IN,
    SERVICES,
    UNITS,
    effective,
    environment_file,
    lines_of,
)

# Tenths of systemd's exposure score of a service: 0 is best, 10 gives all of the machine.
EXPOSURE_MAX = "15"
HOME = Path("/opt/maramoja")
each = pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)


def test_there_is_one_for_each_part() -> None:
    assert [path.name for path in SERVICES] == [
        "maramoja-api.service",
        "maramoja-backup.service",
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
    """`flask` and `celery` import the code of the folder that they are started in."""
    unit = effective(path)
    release = "next" if path.name == "maramoja-migrate.service" else "current"
    assert unit["WorkingDirectory"] == str(HOME / release)
    program = re.sub(r"^/usr/bin/env \w+=\S+ ", "", unit["ExecStart"])
    programs = "deploy/backup" if path.name == "maramoja-backup.service" else ".venv/bin"
    assert program.startswith(f"{HOME / release}/{programs}/")


@pytest.mark.parametrize("path", [p for p in SERVICES if re.search("worker|beat", p.name)])
def test_a_port_is_set_where_no_settings_file_changes_it(path: Path) -> None:
    """A file's variables override those of Environment=, and all workers read the same file."""
    unit = effective(path)
    assert "_PORT" not in unit["Environment"]
    assert re.match(r"/usr/bin/env (WORKER_PORT=911%i|BEAT_PORT=9102) ", unit["ExecStart"])


@pytest.mark.parametrize("before", [None, "v0.2.0"], ids=["first install", "upgrade"])
def test_the_migration_is_the_new_releases(tmp_path: Path, before: str | None) -> None:
    """The page's own lines, up to the migration, in a folder that stands for /opt/maramoja."""
    new = "v0.3.0" if before else "v0.2.0"
    for release in filter(None, (before, new)):
        (tmp_path / release).mkdir()
    if before:
        (tmp_path / "current").symlink_to(before)
    page = (ROOT / "docs/systemd.md").read_text()
    if before:
        page = page[page.index("## Upgrade") :]
    until = page.index("systemctl start maramoja-migrate")
    for leads_to, link in re.findall(r"^sudo ln -sfn (\S+) (\S+)$", page[:until], re.MULTILINE):
        (tmp_path / Path(link).relative_to(HOME)).symlink_to(leads_to)
    folder = effective(UNITS / "maramoja-migrate.service")["WorkingDirectory"]
    assert (tmp_path / Path(folder).relative_to(HOME)).resolve() == tmp_path / new


@each
def test_each_is_bounded_and_says_how_long_it_may_take_to_end(path: Path) -> None:
    ours = lines_of(path)
    assert ours["MemoryMax"]
    assert ours["TasksMax"]
    if ours.get("Type") != ["oneshot"]:
        assert ours["Restart"] == ["always"]
        assert int(ours["TimeoutStopSec"][0]) >= 30


def test_a_settings_file_is_read_as_systemd_reads_it() -> None:
    text = """
    # A comment, and ; another
    ; WORKER_PORT=1
    SPACES=100 per minute  \n    QUOTED="two words" \n    SINGLE='it is $HOME'
    ESCAPED=a\\$b\\ c
    INSIDE=say "yes"
    DOLLAR=$HOME
    EMPTY=
    not a setting
    LONG=one \\
two
    """
    assert environment_file(text) == {
        "SPACES": "100 per minute",
        "QUOTED": "two words",
        "SINGLE": "it is $HOME",
        "ESCAPED": "a$b c",
        "INSIDE": 'say "yes"',
        "DOLLAR": "$HOME",
        "EMPTY": "",
        "LONG": "one two",
    }


@each
def test_each_sets_known_settings_only(path: Path) -> None:
    pairs = " ".join(lines_of(path, DROP_IN)["Environment"]).split()
    assert {pair.partition("=")[0] for pair in pairs} <= known_settings()


@pytest.mark.parametrize("name", ["migration", "backup"])
def test_an_address_with_more_rights_is_read_by_one_unit_only(name: str) -> None:
    unit = {"migration": "maramoja-migrate", "backup": "maramoja-backup"}[name]
    readers = [
        p.name for p in SERVICES if any(f"{name}.env" in f for f in lines_of(p)["EnvironmentFile"])
    ]
    assert readers == [f"{unit}.service"]


def test_a_timer_starts_the_backup_and_makes_up_for_a_missed_night() -> None:
    timer = lines_of(UNITS / "maramoja-backup.timer")
    assert timer["OnCalendar"] == ["*-*-* 02:17:00 UTC"]
    assert timer["Persistent"] == ["true"]
    assert timer["WantedBy"] == ["timers.target"]


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
    """The units where systemd finds them, with programs that exist on this machine."""
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
    for asked in (("verify", "--man=no", "maramoja.target", "maramoja-backup.timer"), exposure):
        done = subprocess.run(
            ["systemd-analyze", *asked, *units],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        # systemd only warns of a setting that it doesn't know.
        assert str(standing) not in done.stderr, done.stderr
