"""A folder that stands for a machine with systemd: a page's commands do there what they would do.

`sudo`, `apt-get`, `git clone` and `python3 -m venv` are replaced by stand-ins. So are `systemctl`
and `systemd-run`: they read the units that were copied into the folder, and run their commands
with exactly the environment that systemd would set. The commands themselves are real.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Final

from devstack.environment import surroundings
from devstack.places import free_port, port_is_free
from devstack.programs import COMMAND_MAX_S, ROOT
from devstack.supervisor import Command, Process, Supervisor
from tests.deploy.units import Lines, environment_of, kept, lines_of

# The machine's paths that are in the folder.
PLACES = re.compile(
    r"(?<![\w/.-])(?=/(?:opt/maramoja|etc/maramoja|etc/systemd|usr/local/sbin|var/lib/maramoja-backups)\b)"
)
# What systemd itself sets for each process; the rest is what the tests' programs need.
GIVEN = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/",
    "LOGNAME": "maramoja",
    "USER": "maramoja",
}
NEEDED = ("COVERAGE_PROCESS_START", "LD_LIBRARY_PATH", "TMPDIR")


ASK: Final = """#!{python} -I
import json, os, sys
from multiprocessing.connection import Client
with Client({socket!r}) as systemd:
    systemd.send_bytes(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]).encode())
    answer = json.loads(systemd.recv_bytes())
if "run" in answer:
    os.chdir(answer["in"])
    os.execve(answer["run"][0], answer["run"], answer["with"])
print(answer["said"], end="", file=sys.stderr if answer["code"] else sys.stdout)
sys.exit(answer["code"])
"""
STAND_INS: Final = {
    "sudo": '#!/bin/sh\n[ "$1" = -u ] && shift 2\nexec "$@"\n',
    "id": "#!/bin/sh\necho 0\n",
    "apt-get": "#!/bin/sh\n",
    "systemctl": ASK,
    "systemd-run": ASK,
    "psql": '#!/bin/sh\nexec {psql} "$@"\n',
    # The packages are those of the tests' own environment.
    "python3": '#!/bin/sh\n[ "$1 $2" = "-m venv" ] && exec ln -s {prefix} "$3"\n',
    "git": """#!/bin/sh
    [ "$1 $2" = "clone --branch" ] && mkdir "$5" && cd {source} || exit 1
    {git} ls-files -z -co --exclude-standard -- payments_app migrations deploy requirements.txt '*.py' |
        xargs -0 cp --parents --target-directory="$5"
    """,
    # The tests' server has no file to write its settings into.
    "redis-cli": """#!{python} -I
import sys, redis
client = redis.Redis(port={redis_port})
print(sys.argv[1:] == ["CONFIG", "REWRITE"] or client.execute_command(*sys.argv[1:]))
""",
}


def _free_ports() -> str:
    while True:
        prefix = str(free_port())[:4]
        if all(map(port_is_free, _ports_of_workers(prefix))):
            return prefix


def _ports_of_workers(prefix: str) -> list[int]:
    return [int(f"{prefix}{instance}") for instance in (1, 2)]


# What a stand-in gets: its exit code and output, or the program to run.
HttpResponse = dict[str, object]


@dataclass(frozen=True)
class Ran:
    """A command that was given to systemd-run."""

    unit: str
    arguments: list[str]
    environment: dict[str, str]


@dataclass
class Machine:
    """`root` is a short path: a socket is in it."""

    root: Path
    supervisor: Supervisor
    postgres: Mapping[str, str]
    redis_port: int
    port: int = field(default_factory=free_port)
    beat_port: int = field(default_factory=free_port)
    # In place of 911, the first digits of the workers' ports.
    worker_ports: str = field(default_factory=_free_ports)
    services: dict[str, Process] = field(default_factory=dict)
    ran: list[Ran] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the folder, and serve the stand-ins of systemd's programs."""
        # Nothing listens there yet, so a port may have been picked twice.
        while len({self.port, self.beat_port, *_ports_of_workers(self.worker_ports)}) < 4:
            self.beat_port, self.worker_ports = free_port(), _free_ports()
        self.programs = self.root / "programs"
        for place in ("opt", "etc/systemd/system", "usr/local/sbin", "usr/bin", "programs"):
            (self.root / place).mkdir(parents=True)
        for name in ("pg_dump", "pg_restore"):
            (self.root / "usr/bin" / name).symlink_to(Path(self.postgres["PSQL"]).with_name(name))
        for name, text in self._stand_ins().items():
            (self.programs / name).write_text(text, encoding="utf-8")
            (self.programs / name).chmod(0o755)
        self._listener = Listener(str(self.root / "systemd"), "AF_UNIX")
        threading.Thread(target=self._serve, daemon=True).start()

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run the script in a shell of this machine."""
        path = f"{self.programs}:{self.root}/usr/local/sbin:{os.environ['PATH']}"
        environment = surroundings() | dict(self.postgres)
        # What is pinned is installed already: pip says so, or fails.
        environment |= {"PATH": path, "PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "SUDO_USER": "amina"}
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.placed(script)],
            env=environment,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_MAX_S,
            check=False,
        )

    def placed(self, text: str) -> str:
        """The text with this machine's paths and ports in place of the usual ones."""
        text = PLACES.sub(str(self.root), text)
        text = text.replace("=911%i", f"={self.worker_ports}%i")
        text = text.replace("BEAT_PORT=9102", f"BEAT_PORT={self.beat_port}")
        text = re.sub(r"(PORT=|127\.0\.0\.1:)8000\b", rf"\g<1>{self.port}", text)
        text = text.replace("127.0.0.1:5432", f"127.0.0.1:{self.postgres['PGPORT']}")
        return text.replace("127.0.0.1:6379", f"127.0.0.1:{self.redis_port}")

    def close(self) -> None:
        """Stop serving the stand-ins."""
        with Client(str(self.root / "systemd")) as last:
            last.send_bytes(b"[]")

    def environment(self, lines: Lines) -> dict[str, str]:
        """The variables of a unit's programs, and no others."""
        files = kept(lines).get("EnvironmentFile", [])
        read = {name: Path(self.placed(name)).read_text() for name in files}
        needed = {name: os.environ[name] for name in NEEDED if name in os.environ}
        given = {**GIVEN, "PATH": f"{self.root}/usr/bin:{GIVEN['PATH']}"}
        return {**needed, **given, **environment_of(lines, read)}

    def unit(self, name: str) -> tuple[Lines, str]:
        """The settings of the unit and its drop-ins, and its instance."""
        prefix, at, instance = name.partition("@")
        path = self.root / f"etc/systemd/system/{prefix}{at}.service"
        return lines_of(path, *self._drop_ins(name)), instance

    def _drop_ins(self, name: str) -> list[Path]:
        folder = self.root / "etc/systemd/system/maramoja-.service.d"
        return sorted(folder.glob("*.conf")) if name.startswith("maramoja-") else []

    def _serve(self) -> None:
        while True:
            with self._listener.accept() as asked:
                program, *arguments = json.loads(asked.recv_bytes()) or [""]
                if not program:
                    self._listener.close()
                    return
                try:
                    answer = self._systemctl(*arguments) if program == "systemctl" else None
                    answer = answer or self._systemd_run(arguments)
                except (OSError, KeyError, ValueError, AssertionError) as error:
                    answer = {"code": 1, "said": f"{program}: {error!r}"}
                asked.send_bytes(json.dumps(answer).encode())

    def _systemctl(self, verb: str, *names: str) -> HttpResponse:
        name = names[-1].removesuffix(".service") if names else ""
        if verb == "enable":
            lines = lines_of(self.root / "etc/systemd/system" / name)
            assert lines["WantedBy"], f"{name} has no [Install]"
        elif verb == "start" and name.endswith(".target"):
            target = lines_of(self.root / "etc/systemd/system" / name)
            for wanted in target["Wants"][0].split():
                self._start(wanted.removesuffix(".service"))
        elif verb == "start":
            return self._start(name)
        elif verb == "restart":
            self.services.pop(name).terminate()
            return self._start(name)
        elif verb == "reload":
            lines, _ = self.unit(name)
            command = lines["ExecReload"][0].replace("$MAINPID", str(self.services[name].pid))
            subprocess.run(shlex.split(command), check=True)
        elif verb != "daemon-reload":
            raise ValueError(verb)
        return {"code": 0, "said": ""}

    def _start(self, service: str) -> HttpResponse:
        lines, instance = self.unit(service)
        (line,) = kept(lines)["ExecStart"]
        line = self.placed(line).replace("%i", instance).replace("%%", "%")
        directory = Path(self.placed(kept(lines)["WorkingDirectory"][0]))
        arguments, environment = shlex.split(line), self.environment(lines)
        for state in kept(lines).get("StateDirectory", []):
            (self.root / "var/lib" / state).mkdir(mode=0o700, parents=True, exist_ok=True)
        if kept(lines).get("Type") == ["oneshot"]:
            done = subprocess.run(
                arguments,
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            return {"code": done.returncode, "said": done.stdout + done.stderr}
        command = Command(service, arguments, environment, directory)
        self.services[service] = self.supervisor.start(command)
        return {"code": 0, "said": ""}

    def _systemd_run(self, arguments: list[str]) -> HttpResponse:
        options, command = (
            arguments[: arguments.index("--")],
            arguments[arguments.index("--") + 1 :],
        )
        told = [re.fullmatch(r"--([\w-]+)(?:=(.*))?", option, re.DOTALL) for option in options]
        given = [(one[1], one[2] or "") for one in told if one]
        assert len(given) == len(options), options
        (unit,) = [value for name, value in given if name == "unit"]
        lines: dict[str, list[str]] = defaultdict(list)
        for name, value in given:
            if name == "setenv":
                lines["Environment"].append(shlex.quote(value))
            elif name == "property":
                setting, _, what = value.partition("=")
                lines[setting].append(what)
        for setting, values in lines_of(*self._drop_ins(unit)).items():
            lines[setting] += values
        environment = self.environment(lines)
        words = [_expanded(word, environment) for word in command]
        self.ran.append(Ran(unit, words, environment))
        directory = self.placed(kept(lines)["WorkingDirectory"][0])
        return {"run": list(map(self.placed, words)), "in": directory, "with": environment}

    def _stand_ins(self) -> dict[str, str]:
        told = {
            "python": sys.executable,
            "socket": str(self.root / "systemd"),
            "redis_port": self.redis_port,
            "psql": self.postgres["PSQL"],
            "prefix": sys.prefix,
            "git": shutil.which("git"),
            "source": ROOT,
        }
        return {name: text.format_map(told) for name, text in STAND_INS.items()}


def _expanded(word: str, environment: Mapping[str, str]) -> str:
    """An argument as systemd expands it: $NAME is a variable's value, $$ is a $."""
    return re.sub(
        r"\$(?:\$|\{(\w+)\}|([A-Za-z_]\w*))",
        lambda found: "$" if found[0] == "$$" else environment.get(found[1] or found[2], ""),
        word,
    )
