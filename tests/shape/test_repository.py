"""The repository: import rules are kept, requirements are pinned, no private paths or addresses."""

from __future__ import annotations

import re
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from payments_app.kernel.http.public_address import is_public
from tests.shape.source_tree import ROOT

# A path on a developer's machine. The home of `user` in prose is not one.
OWN_PATH = re.compile(
    r"(?<![\w.~-])(?:/(?:work/|root/|Users/\w|home/(?!user\b|maramoja\b)\w)|[A-Z]:\\Users)"
)
TEXT_MAX = 2_000_000
# Four numbers, or groups of hexadecimal digits: may be an address. Versions have fewer parts.
MAYBE_ADDRESS = re.compile(
    r"(?<![\w.%])(?:\d+\.){3}\d+(?![\w.]*\w)|(?<![\w:])[0-9a-f:]*::[0-9a-f:]*"
)
# Addresses of no host, though they look public, and unassigned ones (tests/nobodys_addresses.py).
NOBODYS = [
    ip_network(network)
    # 2000::/3 is all allocated IPv6, and is also written without its length.
    for network in (
        "2000::/128",
        "168.63.129.16/32",
        "192.88.99.0/24",
        "3ffe::/16",
        "64:ff9b::/96",
        "2002::/16",
    )
]

# A rule, finding or line named by a letter and a number: a reader would need the list of them. The
# README has one such list, of its promises.
NUMBERED = re.compile(
    r'"""(?!G[1-9]\b)[A-Z]\d{1,2}\b:'
    r"|\((?!G[1-9]\b)[A-Z]\d{1,2}\)"
    r"|(?<![\w\\.\[-])[A-Z]\d{1,2} ?(?:\u2013|-|to) ?[A-Z]\d{1,2}\b"
    r"|\b[Ff]indings? [A-Z]\d{1,2}\b"
)
# Versions of libraries, and a section of RFC 9110, which look like addresses.
LOOKS_LIKE_ONE = {"6.2.5.1", "1.1.1.2", "8.4.1.2"}


def tracked() -> list[Path]:
    """The files in the repository, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # Outside a checkout no file is checked, and that must not pass.
    assert listed.returncode == 0, listed.stderr
    return [path for name in listed.stdout.split("\0") if (path := ROOT / name).is_file()]


def test_the_arrows_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    own = Path(__file__).resolve()
    found = []
    for path in tracked():
        if path == own or path.stat().st_size > TEXT_MAX:
            continue
        text = path.read_bytes().decode(errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in OWN_PATH.finditer(text)]

    assert not found


def test_no_file_names_an_address_that_is_somebodys() -> None:
    """Readers send to the addresses of examples and tests: use those of RFC 5737 and 3849."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path.stat().st_size <= TEXT_MAX
        for match in MAYBE_ADDRESS.finditer(path.read_bytes().decode(errors="ignore"))
        if is_somebodys(match[0])
    ]

    assert not found


def is_somebodys(written: str) -> bool:
    if written in LOOKS_LIKE_ONE:
        return False
    try:
        address = ip_address(written)
    except ValueError:
        return False
    return is_public(address) and not any(address in network for network in NOBODYS)


def test_nothing_is_named_by_a_number_of_a_list_that_is_not_here() -> None:
    own = Path(__file__).resolve()
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path.suffix in {".md", ".py", ".sh", ".yml", ".yaml"} and path != own
        for match in NUMBERED.finditer(path.read_text(encoding="utf-8"))
    ]

    assert not found, "say it in words"


@pytest.mark.parametrize(
    "written", ["lines C1\u2013C14", "lines C1-C14", "(P1)", '"""I11: by id.', "Finding S7: "]
)
def test_such_a_number_is_seen(written: str) -> None:
    assert NUMBERED.search(written)
    assert not NUMBERED.search('"""G7: each line of each story has come."""')


@pytest.mark.parametrize(
    "written", ["192.0.2.1", "2001:db8::1", "127.0.0.1", "1.2.3", "::", "10:30"]
)
def test_what_is_nobodys_or_no_address_may_be_named(written: str) -> None:
    assert not is_somebodys(written)
    assert is_somebodys(str(ip_address("192.0.2.255") + 1))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_pinned_and_name_no_index(name: str) -> None:
    text = (ROOT / name).read_text()

    assert "://" not in text
    for pin in pins_of(text):
        assert re.fullmatch(
            r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+( ;[^\\]+?)?( --hash=sha256:[0-9a-f]{64})+", pin
        ), pin


def pins_of(text: str) -> list[str]:
    """Each pin with its hashes on one line."""
    bare = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\s*\\\n\s*", " ", bare).splitlines()


def test_whatever_installs_what_is_pinned_asks_for_the_hashes() -> None:
    """pip requires hashes by itself only if each pin has one; one pin without would end that."""
    for name in ("Dockerfile", "docs/systemd.md", "devstack/bootstrap.sh"):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        found = re.findall(r"\bpip install\b.*", text)
        assert found, name
        assert all("--require-hashes" in line for line in found), found
    assert "--generate-hashes" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_what_is_asked_for_is_pinned(name: str) -> None:
    asked = re.findall(r"^([A-Za-z0-9._-]+)", (ROOT / f"{name}.in").read_text(), re.MULTILINE)
    pinned = re.findall(r"^([A-Za-z0-9._-]+)", (ROOT / f"{name}.txt").read_text(), re.MULTILINE)
    installed_elsewhere = re.findall(
        r"^([A-Za-z0-9._-]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )

    wanted = {_normal(package) for package in asked if not package.startswith("-")}
    assert wanted <= {_normal(package) for package in [*pinned, *installed_elsewhere]}


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
