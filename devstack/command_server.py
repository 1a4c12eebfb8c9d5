"""Runs `flask …` in forks of one process that has imported the app's libraries already.

A test run starts many commands, and most of their processor time would be imports. Each command
still has its own process, environment and app, as at a terminal.

    python -m devstack.command_server SOCKET MODULE…      imports the modules, and serves
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

import flask.cli

from devstack.errors import StackError

# prometheus_client reads it when it is imported, so a fork would ignore it.
_READ_AT_IMPORT = "PROMETHEUS_MULTIPROC_DIR"
_BACKLOG = 64
LISTENING = "command server listening"


@dataclass(frozen=True)
class Finished:
    """What a command has printed, and its exit code."""

    code: int
    stdout: str
    stderr: str


def run(
    path: Path, arguments: Sequence[str], environment: Mapping[str, str], *, limit_s: float
) -> Finished:
    """Have the server run `flask …`, with no standard input.

    Raises TimeoutError if it takes longer than about `limit_s`. Then, or if the caller is
    interrupted, the command is killed. StackError if the server has ended.
    """
    if _READ_AT_IMPORT in environment:
        raise ValueError(f"{_READ_AT_IMPORT} has no effect here")
    request = json.dumps({"arguments": list(arguments), "environment": dict(environment)})
    with (
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
        socket.socket(socket.AF_UNIX) as server,
        server.makefile("r") as answers,
    ):
        server.settimeout(limit_s)
        try:
            server.connect(str(path))
            socket.send_fds(server, [b" "], [stdout.fileno(), stderr.fileno()])
            server.sendall(request.encode())
            server.shutdown(socket.SHUT_WR)
            code = _exit_code(answers)
        except (ConnectionError, FileNotFoundError) as error:
            raise StackError(
                f"the command server has ended: {error}", remedy="see command-server.log"
            ) from error
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return Finished(code, *texts)


def _exit_code(answers: TextIO) -> int:
    """Read the command's process id, and later its exit code."""
    pid = answers.readline()
    if not pid:
        raise ConnectionError("it has closed the connection")
    try:
        code = answers.readline()
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
        raise
    if not code:
        raise ConnectionError("it was killed with its commands")
    return int(code)


def serve(path: str) -> None:
    """Fork for each request. Returns in the fork that is to run a command."""
    # Forks that end are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(_BACKLOG)
        sys.stdout.write(f"{LISTENING}\n")
        sys.stdout.flush()
        while True:
            client, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                break
            client.close()
    _attend(client)


def _attend(client: socket.socket) -> None:
    """Fork the command, and tell the client its exit code. Returns in the command's process."""
    _, files, _, _ = socket.recv_fds(client, 1, 2)
    with client.makefile("r") as requests:
        request = json.loads(requests.read())
    pid = os.fork()
    if pid == 0:
        client.close()
        _become(files, **request)
        return
    try:
        client.sendall(f"{pid}\n".encode())
    except OSError:
        # The client waits no longer.
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(files: list[int], *, arguments: list[str], environment: dict[str, str]) -> None:
    """Take on the command's output, environment and arguments.

    It stays in the server's process group, so that it ends with the server at the latest.
    """
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, given in zip((0, 1, 2), (nothing, *files), strict=True):
        os.dup2(given, ours)
        os.close(given)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["flask", "--app", "wsgi", *arguments]


def main() -> NoReturn:
    """Import the given modules, then serve; in a fork, run the command."""
    path, *modules = sys.argv[1:]
    for name in modules:
        importlib.import_module(name)
    serve(path)
    flask.cli.cli.main(prog_name="flask")
    raise SystemExit(0)


if __name__ == "__main__":
    main()
