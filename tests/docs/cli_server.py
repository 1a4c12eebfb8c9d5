"""`flask …` without a new process for each command: one app, and commands over a Unix socket.

    python cli_server.py SOCKET                      serves until it is killed
    python cli_server.py SOCKET -- tenants list      sends a command to the server

The commands run as `flask` runs them, with the client's standard input and environment.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def ask(path: str, arguments: list[str], stdin: str) -> tuple[int, str, str]:
    """Send a command; return exit code, standard output and standard error."""
    request = {"arguments": arguments, "stdin": stdin, "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(json.dumps(request).encode())
        client.shutdown(socket.SHUT_WR)
        with client.makefile("r", encoding="utf-8") as answer:
            code, out, err = json.loads(answer.read())
    return code, out, err


def serve(path: str) -> None:
    """Run one command after the other."""
    # house: allow local-import because a client needs none of it, and it takes a second
    from payments_app import create_app  # noqa: PLC0415

    runner = create_app().test_cli_runner()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            context, _ = server.accept()
            with context, context.makefile("r", encoding="utf-8") as lines:
                request = json.loads(lines.read())
                done = runner.invoke(
                    args=request["arguments"], input=request["stdin"], env=request["environment"]
                )
                context.sendall(json.dumps((done.exit_code, done.stdout, done.stderr)).encode())


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    given = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    exit_code, said, complained = ask(sys.argv[1], sys.argv[3:], given)
    sys.stdout.write(said)
    sys.stderr.write(complained)
    sys.exit(exit_code)
