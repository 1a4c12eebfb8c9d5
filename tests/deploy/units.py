"""The units in deploy/systemd as systemd reads them (systemd.unit(5), systemd.exec(5))."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from devstack.programs import ROOT

UNITS = ROOT / "deploy/systemd"
DROP_IN = UNITS / "maramoja-.service.d/hardened.conf"
SERVICES = sorted(UNITS.glob("*.service"))
# Settings whose values add up. Of all others systemd keeps the last, which is the drop-in's.
ADDED = {"Environment", "EnvironmentFile"}
Lines = Mapping[str, list[str]]


def lines_of(*paths: Path) -> dict[str, list[str]]:
    """Each setting's values; a unit file may name a setting several times."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for name, value in re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE):
            found[name].append(value)
    return found


def effective(path: Path) -> dict[str, str]:
    """A unit's settings: the unit first, then its drop-ins."""
    return {name: " ".join(values) for name, values in kept(lines_of(path, DROP_IN)).items()}


def kept(lines: Lines) -> dict[str, list[str]]:
    """The values that count: all where they add up, else the last."""
    found = {}
    for name, values in lines.items():
        # An empty value resets those before it.
        last = max((place + 1 for place, value in enumerate(values) if not value), default=0)
        found[name] = values[last:] if name in ADDED else values[last:][-1:]
    return found


def environment_of(lines: Lines, read: Mapping[str, str]) -> dict[str, str]:
    """The variables of the unit's programs. `read`: the text of each EnvironmentFile.

    A file's variables override those of Environment=, in whichever order they are.
    """
    settings = kept(lines)
    found: dict[str, str] = {}
    for value in settings.get("Environment", []):
        found |= dict(pair.split("=", 1) for pair in shlex.split(value))
    for name in settings.get("EnvironmentFile", []):
        found |= environment_file(read[name])
    return found


# A value: in single quotes, in double quotes, or bare. Inside bare text quotes mean nothing.
_LINE = re.compile(
    r"""^[ \t]*(?P<name>[A-Za-z_]\w*)[ \t]*=[ \t]*
        (?: '(?P<single>[^']*)'[ \t\r]* | "(?P<double>(?:\\.|[^"\\])*)"[ \t\r]*
          | (?P<bare>(?:\\.|[^\\\n'"])(?:\\.|[^\\\n])*|) )$""",
    re.MULTILINE | re.VERBOSE | re.DOTALL,
)


def environment_file(text: str) -> dict[str, str]:
    """The variables of an EnvironmentFile: a value may have spaces, and is not expanded."""
    found = {}
    for line in _LINE.finditer(re.sub(r"^\s*[#;].*$", "", text, flags=re.MULTILINE)):
        if (quoted := line["single"]) is not None:
            value = quoted
        elif (quoted := line["double"]) is not None:
            value = re.sub(r"\\([\"\\`$])", r"\1", quoted.replace("\\\n", ""))
        else:
            value = re.sub(r"\\(.)", r"\1", line["bare"].replace("\\\n", "")).strip(" \t\r")
        found[line["name"]] = value
    return found
