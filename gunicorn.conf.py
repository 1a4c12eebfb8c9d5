"""How gunicorn serves the API; its own flags and GUNICORN_CMD_ARGS override each line."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from gunicorn import util
from gunicorn.http import wsgi

bind = f"0.0.0.0:{os.environ.get('PORT', '8000')}"

# A request waits for PostgreSQL and Redis most of its time: threads share a process while they
# do, and two processes for each core keep the cores busy. WEB_CONCURRENCY sets the number.
workers = int(os.environ.get("WEB_CONCURRENCY", "0")) or 2 * (os.cpu_count() or 1)
worker_class = "gthread"
threads = 8

# No request of ours calls a provider, so one that takes longer than this is stuck.
timeout = 30
# What a deploy lets running requests have, before it ends them.
graceful_timeout = 30
# Longer than a load balancer's usual 60 s: it, not we, closes an idle connection, and no request
# is sent into one that is just being closed.
keepalive = 75
# Recycling workers hides a leak; we would rather see it.
max_requests = 0
# Each worker makes its own database and Redis connections: two processes that share one after a
# fork read each other's answers.
preload_app = False

# Heartbeats are files; in memory they neither wait for a disk nor need one that can be written.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn's advice
# Its remote control is a socket in the home directory: nobody uses it, and a read-only container
# has no place for it.
control_socket_disable = True

# A request line is a path and a query of ours: short. Bounded, so that nobody fills memory.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190

# The app logs each request itself, as structured lines without secrets.
accesslog = None
errorlog = "-"

# An answer need not say what serves it; there is no setting for it.
wsgi.SERVER = "maramoja"
# What gunicorn refuses by itself never reaches the app. The same headers, and the same form.
# Kept here, as importing them from the app would keep the app over a reload; a test compares.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SERVER_ERROR = 500
UNKNOWN_CODING = 501


def refuse(sock: socket.socket, status: int, reason: str, _message: str) -> None:
    """Answer what is no HTTP with a problem document; gunicorn's page repeats what was sent."""
    ours = status >= SERVER_ERROR and status != UNKNOWN_CODING
    code, title = ("internal_error", "Internal error") if ours else ("bad_request", "Bad request")
    status = SERVER_ERROR if ours else 400
    document = {
        "type": f"/problems/{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": "Send it again." if ours else f"This is not HTTP that we take: {reason}.",
        "request_id": None,
    }
    body = json.dumps(document)
    headers = {
        "Connection": "close",
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        **SECURITY_HEADERS,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    util.write_nonblock(sock, f"HTTP/1.1 {status} {title}\r\n{lines}\r\n{body}".encode("latin-1"))


util.write_error = refuse


def on_starting(_server: object) -> None:
    """A wrong setting or database role ends us here, with its one line.

    A worker that it ended would be started again for ever. In a process of its own, because what is imported here would outlive a reload (SIGHUP).
    """
    program = "import payments_app, wsgi; payments_app.refuse_unsafe_role(wsgi.app)"
    tried = subprocess.run([sys.executable, "-c", program], check=False)  # noqa: S603  our own
    if tried.returncode != 0:
        sys.exit(tried.returncode)
