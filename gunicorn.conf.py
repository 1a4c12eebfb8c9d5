"""How gunicorn serves the API; its own flags and GUNICORN_CMD_ARGS override each line."""

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

# What workers count is in files, so that any of them can answer for all. A fresh folder for each
# master, in memory; the library looks for its name once, when it is imported. A reload (SIGHUP)
# runs this file again, finds the library there, and keeps the folder and with it the counts.
MEMORY = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")  # noqa: S108 - as below
COUNTS = "PROMETHEUS_MULTIPROC_DIR"
FOLDERS = "maramoja-metrics-"
if "prometheus_client" not in sys.modules:
    os.environ[COUNTS] = str(MEMORY / f"{FOLDERS}{secrets.token_hex(8)}")

from prometheus_client.mmap_dict import MmapedDict  # noqa: E402 - once it has a name
from prometheus_client.multiprocess import mark_process_dead  # noqa: E402

bind = f"0.0.0.0:{os.environ.get('PORT', '8000')}"

# A request waits for PostgreSQL and Redis most of its time: threads share a process while they
# do, and two processes for each core keep the cores busy. WEB_CONCURRENCY sets the number.
workers = int(os.environ.get("WEB_CONCURRENCY", "0")) or 2 * (os.cpu_count() or 1)
threads = 8
# Each connection is an open file. The rest are for databases, counts and logs, with room to spare.
files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
worker_connections = 1000 if files == resource.RLIM_INFINITY else min(1000, max(files - 128, 64))

# How long a process that has just taken a connection leaves the next one to the others.
TURN_S = 0.0005
# What a client has for its first byte before its thread goes back to work; for a whole request; for
# that and taking the answer; for closing after the last one, and how much it may still send then.
SILENT_MAX_S = 0.05
REQUEST_MAX_S = 20.0
EXCHANGE_MAX_S = 30.0
LINGER_MAX_S = 2.0
LINGER_BYTES = 65_536
DROPPED = "X-DROPPED-HEADERS"  # For payments_app/api/near_misses.py.


class Worker(gthread.ThreadWorker):
    """gthread, but shares connections, and waits for no client long (docs/decisions/0030, 0032)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        # In a thread's hands, and since when; those whose time is over are never used again.
        self.handled = {}
        self.over = set()
        # Answered for the last time; how much of what they still send will be read. Oldest first.
        self.leaving = {}
        if self.cfg.header_map == "drop" and "h2" not in self.cfg.http_protocols:
            self.cfg.set("header_map", "dangerous")  # handle_request drops them instead.

    def accept(self, listener: socket.socket) -> None:
        """Take one, and step back, or who wakes first takes all there are, and serves them alone."""
        before = self.nr_conns
        super().accept(listener)
        if self.nr_conns > before and self.cfg.workers > 1:
            time.sleep(TURN_S)

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 - gunicorn's
        """Open the door or close it. Who stops serves all that stand before it; nobody hangs there."""
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
        """Serve a connection, in a thread; not one that is silent. That waits without a thread."""
        if not conn.initialized and not conn.wait_for_data(SILENT_MAX_S):
            return gthread._DEFER  # noqa: SLF001 - it has no other name
        self.handled[conn] = time.monotonic()
        return super().handle(conn)

    def handle_request(self, req: Request, conn: gthread.TConn) -> bool:
        """Have the app answer. WSGI can't tell _ from - in a header: of one with _ it gets the name."""
        conn.request = req
        dropped = ",".join(name for name, _ in req.headers if "_" in name)
        kept = [one for one in req.headers if "_" not in one[0] and one[0] != DROPPED]
        req.headers = [*kept, (DROPPED, dropped)] if dropped else kept
        return super().handle_request(req, conn)

    def handle_error(self, req: object, client: object, addr: object, exc: Exception) -> None:
        """Refuse. The log is not told what was sent in place of HTTP: it may be a key."""
        if isinstance(exc, ParseException):
            kind = type(exc)
            unquoting = type(kind.__name__, (kind,), {"__str__": lambda _: kind.__name__})
            exc = unquoting.__new__(unquoting)
        super().handle_error(req, client, addr, exc)

    def finish_request(self, conn: gthread.TConn, done: futures.Future) -> None:
        """Keep the connection, or end it; gthread would have everybody wait for the other end."""
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
                # RFC 9112, 9.6: who closes at once may cut off the answer.
                conn.sock.shutdown(socket.SHUT_WR)
                self.watch(conn, LINGER_MAX_S, self.linger)
                self.leaving[conn] = LINGER_BYTES
        except Exception:  # noqa: BLE001 - as gthread has it: the loop is all others' too
            self.part(conn)

    def watch(self, conn: gthread.TConn, seconds: float, heard: Callable[..., None]) -> None:
        """Have `heard` called when something comes from there."""
        conn.timeout = time.monotonic() + seconds
        conn.sock.settimeout(0)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(heard, conn))

    def linger(self, conn: gthread.TConn, sock: socket.socket) -> None:
        """Read away what still comes, until the client closes or has sent too much."""
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
        """Nobody waits for this client any more."""
        if self.leaving.pop(conn, None) is not None:
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def murder_pending(self) -> None:
        """Once a second or more often: end what was waited for long enough."""
        if self.nr_conns >= self.worker_connections:
            self.make_room()
        super().murder_pending()
        now = time.monotonic()
        while self.leaving and (oldest := next(iter(self.leaving))).timeout <= now:
            self.part(oldest)
        for conn, since in self.handled.copy().items():  # Threads add to it meanwhile.
            if since + REQUEST_MAX_S <= now:
                self.hurry(conn, is_late=since + EXCHANGE_MAX_S <= now)

    def make_room(self) -> None:
        """End some connections that wait for nothing of ours, the least missed first."""
        idle = itertools.chain(self.leaving, self.pending_conns, self.keepalived_conns)
        for conn in itertools.islice(idle, self.cfg.threads):
            conn.timeout = 0.0
        self.murder_keepalived()

    def hurry(self, conn: gthread.TConn, *, is_late: bool) -> None:
        """Its thread finds that nothing more comes, and still can answer; then that nobody reads."""
        # Linux hands out what comes after all the same: the rest of a body would be a request.
        self.over.add(conn)
        if request := getattr(conn, "request", None):
            request.force_close()  # The answer says that it is the last.
        with suppress(OSError):
            conn.sock.shutdown(socket.SHUT_RDWR if is_late else socket.SHUT_RD)


worker_class = Worker

timeout = 30  # No request of ours calls a provider, so one that takes longer is stuck.
graceful_timeout = 30  # What a deploy lets running requests have, before it ends them.
# How long a process that was told to end (SIGTERM) serves on first, while /health/ready says no: a
# balancer that asks it sends nothing here any more by then. 0 where nobody asks, or where whoever
# stops us waits before (Kubernetes' preStop). A second SIGTERM ends the wait, SIGINT takes none.
drain_s = float(os.environ.get("DRAIN_SECONDS") or 0)
# Longer than a load balancer's usual 60 s: it, not we, closes an idle connection, and no request
# is sent into one that is just being closed.
keepalive = 75
max_requests = 0  # Recycling workers hides a leak; we would rather see it.
# Each worker makes its own database and Redis connections: two processes that share one after a
# fork read each other's answers.
preload_app = False
# By default whoever is on this machine may say where the app is mounted, by a header SCRIPT_NAME.
forwarder_headers = ""
# Heartbeats are files; in memory they neither wait for a disk nor need one that can be written.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - gunicorn's advice
# Its remote control is a socket in the home directory, which may be read-only. Nobody uses it.
control_socket_disable = True
# Allocations before the collector looks for rings of objects. Python's own 700 are one request's.
GARBAGE_MIN = 10_000
# Bounded, so that nobody fills memory.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190

accesslog = None  # The app logs each request itself, as structured lines without secrets.
errorlog = "-"


class JsonLine(logging.Formatter):
    """gunicorn's own lines in the form of the app's."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said = {"event": record.getMessage(), "level": record.levelname.lower()}
        at = datetime.fromtimestamp(record.created, UTC).isoformat()
        trace = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**said, "logger": record.name, "timestamp": at, **trace})


class Log(glogging.Logger):
    """gunicorn's log, as LOG_FORMAT has it."""

    def setup(self, cfg: object) -> None:
        """Also after a reload."""
        super().setup(cfg)
        if (os.environ.get("LOG_FORMAT") or "json") == "json":
            for handler in self.error_log.handlers:
                handler.setFormatter(JsonLine())


logger_class = Log

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


def on_starting(server: object) -> None:
    """A wrong setting or database role ends us here, with its one line.

    A worker that it ended would be started again for ever. In a process of its own, because what is imported here would outlive a reload (SIGHUP).
    """
    program = "import payments_app, wsgi; payments_app.refuse_unsafe_role(wsgi.app)"
    environment = {name: value for name, value in os.environ.items() if name != COUNTS}
    tried = subprocess.run([sys.executable, "-c", program], check=False, env=environment)  # noqa: S603  our own
    if tried.returncode != 0:
        sys.exit(tried.returncode)
    remove_orphans()
    # Held by this master and its workers for as long as one of them lives.
    server.owner = make_folder(Path(os.environ[COUNTS]))


def when_ready(server: object) -> None:
    """Have SIGTERM say "draining" first, if we are to."""
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
    """Tell the app where it sees that it is to end; /health/ready asks."""
    # What has been loaded by now is never garbage: the collector need not look at it, nor as often.
    gc.freeze()
    gc.set_threshold(GARBAGE_MIN)
    # The app's log masks; gunicorn's lines quote strangers.
    if worker.cfg.errorlog == "-":
        worker.log.error_log.handlers.clear()
        worker.log.error_log.propagate = True
    worker.wsgi.extensions["maramoja.leaving"] = leaving_file().exists


def leaving_file() -> Path:
    """It is there from the moment the master was told to end."""
    return Path(os.environ[COUNTS]) / "leaving"


def child_exit(server: object, worker: object) -> None:
    """A worker has ended, however: its gauges are nobody's now, and its counts stay."""
    mark_process_dead(worker.pid)
    try:
        gather_counts(Path(os.environ[COUNTS]), alive=server.WORKERS)
    except Exception:
        # Counts are no reason to end a master: what it was is in the log.
        server.log.exception("the counts of ended workers can't be gathered")


def on_exit(_server: object) -> None:
    """The folder goes with its master."""
    shutil.rmtree(os.environ[COUNTS], ignore_errors=True)


def make_folder(folder: Path) -> object:
    """Make it, with a lock in it that says that it is in use; whoever holds the result holds that."""
    folder.mkdir(mode=0o700)
    lock = (folder / "owner.new").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Nobody ever sees it without its lock.
    (folder / "owner.new").rename(folder / "owner")
    return lock


def remove_orphans() -> None:
    """What masters left that were killed."""
    for owner in MEMORY.glob(f"{FOLDERS}*/owner"):
        # Somebody's who lives, or another user's.
        with suppress(OSError), owner.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent)


def gather_counts(folder: Path, *, alive: object) -> None:
    """Add what ended workers have counted to one file, or each of them would leave its own."""
    with (folder / "moving").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Somebody reads them just now: the next one's end will do, and nothing is lost.
            return
        for path in folder.glob("*.db"):
            kind, _, pid = path.stem.rpartition("_")
            if pid.isdigit() and int(pid) not in alive and kind in ("counter", "histogram"):
                gathered = MmapedDict(str(folder / f"{kind}_ended.db"))
                # One that was killed as it made the file has left it empty.
                counted = path.stat().st_size and MmapedDict.read_all_values_from_file(path)
                for key, value, _, _ in counted or ():
                    gathered.write_value(key, gathered.read_value(key)[0] + value, 0.0)
                gathered.close()
                path.unlink()
