"""The API's gunicorn settings; gunicorn's own flags and GUNICORN_CMD_ARGS override each line."""

import fcntl
import gc
import itertools
import json
import logging
import os
import resource
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from gunicorn import glogging, util
from gunicorn.http import wsgi
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request
from gunicorn.workers import gthread

# Workers store their metrics in files, so that each can report for all. Each master has a new
# folder, in memory; prometheus_client reads its name once, at import. A reload (SIGHUP) runs this
# file again with the library imported, so it keeps the folder and the counts.
MEMORY = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")  # noqa: S108 - as below
COUNTS = "PROMETHEUS_MULTIPROC_DIR"
FOLDERS = "maramoja-metrics-"
if "prometheus_client" not in sys.modules:
    os.environ[COUNTS] = str(MEMORY / f"{FOLDERS}{secrets.token_hex(8)}")

from prometheus_client.mmap_dict import MmapedDict  # noqa: E402 - once it has a name
from prometheus_client.multiprocess import mark_process_dead  # noqa: E402

bind = f"0.0.0.0:{os.environ.get('PORT', '8000')}"

# A request mostly waits for PostgreSQL and Redis: threads share a process meanwhile, and two
# processes per core keep the cores busy. WEB_CONCURRENCY sets the number of processes.
workers = int(os.environ.get("WEB_CONCURRENCY", "0")) or 2 * (os.cpu_count() or 1)
threads = 8
# Each connection is an open file. The rest are for databases, metrics and logs, with a reserve.
files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
worker_connections = 1000 if files == resource.RLIM_INFINITY else min(1000, max(files - 128, 64))

# How long a process pauses after it has accepted a connection, so that others accept the next one.
TURN_S = 0.0005
# Time limits: for a client's first byte, before its thread is freed; for a whole request; for that
# and reading the response; for the client to close after it, and the bytes that are read until then.
SILENT_MAX_S = 0.05
REQUEST_MAX_S = 20.0
EXCHANGE_MAX_S = 30.0
LINGER_MAX_S = 2.0
LINGER_BYTES = 65_536
DROPPED = "X-DROPPED-HEADERS"  # For payments_app/api/near_misses.py.


class Worker(gthread.ThreadWorker):
    """gthread that shares connections fairly and bounds each wait (docs/decisions/0030, 0032)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        # Connections in a thread, with their start; those past their time limit are not used again.
        self.handled = {}
        self.over = set()
        # Connections with their last response sent, and how many more bytes are read. Oldest first.
        self.leaving = {}
        if self.cfg.header_map == "drop" and "h2" not in self.cfg.http_protocols:
            self.cfg.set("header_map", "dangerous")  # handle_request drops them instead.

    def accept(self, listener: socket.socket) -> None:
        """Accept one and pause; else the first process to wake would accept all connections."""
        before = self.nr_conns
        super().accept(listener)
        if self.nr_conns > before and self.cfg.workers > 1:
            time.sleep(TURN_S)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - gunicorn's
        """Start or stop accepting. A stopping worker accepts all that wait, so that none hangs."""
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        for listener in self.sockets:
            taken = -1
            while taken < self.nr_conns < self.worker_connections:
                taken = self.nr_conns
                super().accept(listener)
            listener.close()
        self.sockets = []
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, time.monotonic() + gthread.STOP_KEEPALIVE_LINGER)

    def handle(self, conn: gthread.TConn) -> object:
        """Serve a connection in a thread; a silent one frees its thread and waits without one."""
        if not conn.initialized and not conn.wait_for_data(SILENT_MAX_S):
            return gthread._DEFER  # noqa: SLF001 - it has no other name
        self.handled[conn] = time.monotonic()
        return super().handle(conn)

    def handle_request(self, req: Request, conn: gthread.TConn) -> bool:
        """Call the app. WSGI maps - to _ in header names: of one with _, only its name is passed."""
        conn.request = req
        dropped = ",".join(name for name, _ in req.headers if "_" in name)
        kept = [one for one in req.headers if "_" not in one[0] and one[0] != DROPPED]
        req.headers = [*kept, (DROPPED, dropped)] if dropped else kept
        return super().handle_request(req, conn)

    def handle_error(self, req: object, client: object, addr: object, exc: Exception) -> None:
        """Refuse, and log no input that isn't HTTP: it may be a key."""
        if isinstance(exc, ParseException):
            kind = type(exc)
            unquoting = type(kind.__name__, (kind,), {"__str__": lambda _: kind.__name__})
            exc = unquoting.__new__(unquoting)
        super().handle_error(req, client, addr, exc)

    def finish_request(self, conn: gthread.TConn, done: futures.Future) -> None:
        """Keep the connection or close it; gthread would block all until the client closes."""
        self.handled.pop(conn, None)
        is_over = conn in self.over
        self.over.discard(conn)
        try:
            if done.result() is gthread._DEFER:  # noqa: SLF001
                silent_s = REQUEST_MAX_S if self.alive else gthread.STOP_KEEPALIVE_LINGER
                self.watch(conn, silent_s, self.on_pending_socket_readable)
                self.pending_conns.append(conn)
            elif done.result() and not is_over:
                super().finish_request(conn, done)
            else:
                # RFC 9112, 9.6: closing at once may cut off the response.
                conn.sock.shutdown(socket.SHUT_WR)
                self.watch(conn, LINGER_MAX_S, self.linger)
                self.leaving[conn] = LINGER_BYTES
        except Exception:  # noqa: BLE001 - as gthread has it: the loop is all others' too
            self.part(conn)

    def watch(self, conn: gthread.TConn, seconds: float, heard: Callable[..., None]) -> None:
        """Call `heard` when the connection has data to read."""
        conn.timeout = time.monotonic() + seconds
        conn.sock.settimeout(0)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(heard, conn))

    def linger(self, conn: gthread.TConn, sock: socket.socket) -> None:
        """Discard what still arrives, until the client closes or has sent too much."""
        try:
            more = len(sock.recv(LINGER_BYTES))
        except BlockingIOError:
            return
        except OSError:
            more = 0
        self.leaving[conn] -= more
        if not more or self.leaving[conn] <= 0:
            self.part(conn)

    def part(self, conn: gthread.TConn) -> None:
        """Close the connection, and stop watching it."""
        if self.leaving.pop(conn, None) is not None:
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Runs once a second or more often: close connections past their time limit."""
        if self.nr_conns >= self.worker_connections:
            self.make_room()
        super().murder_pending()
        now = time.monotonic()
        while self.leaving and (oldest := next(iter(self.leaving))).timeout <= now:
            self.part(oldest)
        for conn, since in self.handled.copy().items():  # A copy: threads add to it meanwhile.
            if since + REQUEST_MAX_S <= now:
                self.hurry(conn, is_late=since + EXCHANGE_MAX_S <= now)

    def make_room(self) -> None:
        """Close some connections that have no request under way, the least useful first."""
        idle = itertools.chain(self.leaving, self.pending_conns, self.keepalived_conns)
        for conn in itertools.islice(idle, self.cfg.threads):
            conn.timeout = 0.0
        self.murder_keepalived()

    def hurry(self, conn: gthread.TConn, *, is_late: bool) -> None:
        """Stop reading, so that its thread can still answer; if it is late, stop writing too."""
        # Linux still returns data that arrives later: a body's rest would be read as a request.
        self.over.add(conn)
        if request := getattr(conn, "request", None):
            request.force_close()  # The response says `Connection: close`.
        with suppress(OSError):
            conn.sock.shutdown(socket.SHUT_RDWR if is_late else socket.SHUT_RD)


worker_class = Worker

timeout = 30  # No request calls a provider, so one that takes longer is stuck.
graceful_timeout = 30  # How long running requests may go on in a deploy before they are ended.
# How long a process still serves after SIGTERM while /health/ready fails, so that a load balancer
# stops sending requests. 0 if no balancer checks it, or if something waits before SIGTERM
# (Kubernetes' preStop). A second SIGTERM ends the wait at once; SIGINT does not wait.
drain_s = float(os.environ.get("DRAIN_SECONDS") or 0)
# Longer than a load balancer's usual 60 s, so that the balancer closes idle connections, not we:
# else it could send a request into a connection that we are closing.
keepalive = 75
max_requests = 0  # Recycling workers would hide a leak.
# Each worker opens its own database and Redis connections: sharing after a fork mixes responses.
preload_app = False
# By default, a client on this machine can set the app's mount point by a header SCRIPT_NAME.
forwarder_headers = ""
# Heartbeats are files; in memory they don't wait for a disk, nor need a writable one.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn's advice
# gunicorn's remote control is a socket in the home directory, which may be read-only. It is unused.
control_socket_disable = True
# Allocations before the garbage collector runs. Python's default of 700 is one request's.
GARBAGE_MIN = 10_000
# Limits, so that no client can fill the memory.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190

accesslog = None  # The app logs each request itself, as structured lines without secrets.
errorlog = "-"


class JsonLine(logging.Formatter):
    """Formats gunicorn's own log lines like the app's."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record as a JSON line."""
        said = {"event": record.getMessage(), "level": record.levelname.lower()}
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        trace = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**said, "logger": record.name, "timestamp": at, **trace})


class Log(glogging.Logger):
    """gunicorn's logger, in the format of LOG_FORMAT."""

    def setup(self, cfg: object) -> None:
        """Set the formatter, also after a reload."""
        super().setup(cfg)
        if (os.environ.get("LOG_FORMAT") or "json") == "json":
            for handler in self.error_log.handlers:
                handler.setFormatter(JsonLine())


logger_class = Log

# Responses need not name the server software; gunicorn has no setting for it.
wsgi.SERVER = "maramoja"
# Refusals by gunicorn never reach the app: they get the same headers, and the same form. A copy, as
# an import from the app would keep the app loaded over a reload; a test compares.
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
    """Answer input that isn't HTTP with a problem document; gunicorn's page repeats it."""
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


def on_starting(server: object) -> None:
    """Stop the start with one line if a setting or the database role is wrong.

    A worker that stopped so would be restarted for ever. A separate process checks, because modules
    that are imported here would stay loaded over a reload (SIGHUP).
    """
    program = "import payments_app, wsgi; payments_app.refuse_unsafe_role(wsgi.app)"
    environment = {name: value for name, value in os.environ.items() if name != COUNTS}
    tried = subprocess.run([sys.executable, "-c", program], check=False, env=environment)  # noqa: S603  our own
    if tried.returncode != 0:
        sys.exit(tried.returncode)
    remove_orphans()
    # The lock is held by this master and its workers, until the last of them ends.
    server.owner = make_folder(Path(os.environ[COUNTS]))


def when_ready(server: object) -> None:
    """If DRAIN_SECONDS is set, SIGTERM first makes readiness say "draining"."""
    if not drain_s:
        return

    def drain(signal_number: int, frame: object) -> None:
        leaving = leaving_file()
        if leaving.exists():
            server.signal(signal_number, frame)
            return
        leaving.touch()
        end = threading.Timer(drain_s, server.signal, (signal_number, frame))
        end.daemon = True
        end.start()

    signal.signal(signal.SIGTERM, drain)


def post_worker_init(worker: object) -> None:
    """Give the app the function by which /health/ready knows that this process is about to end."""
    # Objects loaded so far are never garbage: the collector skips them, and runs less often.
    gc.freeze()
    gc.set_threshold(GARBAGE_MIN)
    # The app's log handler masks secrets, and gunicorn's log lines quote client input.
    if worker.cfg.errorlog == "-":
        worker.log.error_log.handlers.clear()
        worker.log.error_log.propagate = True
    worker.wsgi.extensions["maramoja.leaving"] = leaving_file().exists


def leaving_file() -> Path:
    """The file that exists from the moment that the master got SIGTERM."""
    return Path(os.environ[COUNTS]) / "leaving"


def child_exit(server: object, worker: object) -> None:
    """After a worker has ended for any reason, delete its gauges and keep its counters."""
    mark_process_dead(worker.pid)
    try:
        gather_counts(Path(os.environ[COUNTS]), alive=server.WORKERS)
    except Exception:
        # An error in the counters must not end the master: it is logged.
        server.log.exception("the counts of ended workers can't be gathered")


def on_exit(_server: object) -> None:
    """Delete the metrics folder with its master."""
    shutil.rmtree(os.environ[COUNTS], ignore_errors=True)


def make_folder(folder: Path) -> object:
    """Make the folder with a locked file that marks it as in use; the result holds the lock."""
    folder.mkdir(mode=0o700)
    lock = (folder / "owner.new").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # The file gets its name after it is locked, so that it is never seen unlocked.
    (folder / "owner.new").rename(folder / "owner")
    return lock


def remove_orphans() -> None:
    """Remove the folders of masters that were killed."""
    for owner in MEMORY.glob(f"{FOLDERS}*/owner"):
        # An error means that its master is alive, or that it is another user's.
        with suppress(OSError), owner.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent)


def gather_counts(folder: Path, *, alive: object) -> None:
    """Merge the counts of ended workers into one file; else each would leave its own."""
    with (folder / "moving").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A worker is reading them: the next worker's end merges them, and nothing is lost.
            return
        for path in folder.glob("*.db"):
            kind, _, pid = path.stem.rpartition("_")
            if pid.isdigit() and int(pid) not in alive and kind in ("counter", "histogram"):
                gathered = MmapedDict(str(folder / f"{kind}_ended.db"))
                # A worker that was killed while it created the file left it empty.
                counted = path.stat().st_size and MmapedDict.read_all_values_from_file(path)
                for key, value, _, _ in counted or ():
                    gathered.write_value(key, gathered.read_value(key)[0] + value, 0.0)
                gathered.close()
                path.unlink()
