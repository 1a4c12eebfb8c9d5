"""Run the simulator: `python -m simulator --port 9010`."""

import argparse
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Sequence

from simulator.accounts import ANY_HOST, PRODUCTS, Seed
from simulator.app import Simulator, create_app
from simulator.server import Server
from simulator.store import IN_MEMORY, Store

_SEED = re.compile(rf"({'|'.join(PRODUCTS)}):([^:]+):([^:]+):([^:]+)")
# How often the listening loop checks whether it should stop.
_STOP_POLL_S = 0.1

_EPILOG = """\
An account given by --seed-account is there from the start; others are made as in MTN's sandbox,
by POST /v1_0/apiuser. Faults, settings, the clock and the ledger are under /_admin/:
see docs/simulator.md.

example:
  python -m simulator --port 9010 --store simulator.sqlite3 \\
    --seed-account collection:key-1:5f1c2a34-0d5e-4a7b-9c11-2b3c4d5e6f70:0123456789abcdef
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if error := _contradiction(options.seed_account):
        parser.error(error)
    try:
        store = Store(options.store)
    except sqlite3.Error as error:
        print(f"simulator: cannot use the store {options.store}: {error}", file=sys.stderr)
        return 1
    for seed in options.seed_account:
        store.accounts.seed(seed, callback_host=options.callback_host)
    simulator = create_app(store)
    try:
        return _run(simulator, options.host, options.port)
    finally:
        simulator.close()


def _run(simulator: Simulator, host: str, port: int) -> int:
    try:
        server = Server(host, port, simulator.answer)
    except OSError as error:
        print(f"simulator: cannot listen on {host}:{port}: {error}", file=sys.stderr)
        return 1
    with server:
        _serve(server, host)
    return 0


def _contradiction(seeds: list[Seed]) -> str | None:
    """Find an API user with two keys: it has one key, for all its products (1.4)."""
    keys: dict[str, str] = {}
    for seed in seeds:
        if keys.setdefault(seed.api_user, seed.api_key) != seed.api_key:
            return f"--seed-account: {seed.api_user} is given two API keys; a user has one"
    return None


def _serve(server: Server, host: str) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    loop = threading.Thread(target=server.serve_forever, args=(_STOP_POLL_S,), daemon=True)
    loop.start()
    print(f"simulator listening on http://{host}:{server.port}", flush=True)
    stop.wait()
    server.shutdown()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simulator",
        description="A stand-in for MTN MoMo's sandbox over HTTP, with faults on demand and a"
        " ledger of every movement of money.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one and prints it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--store",
        default=IN_MEMORY,
        metavar="FILE",
        help="SQLite file that keeps accounts, tokens, payments and ledger (default: memory)",
    )
    parser.add_argument(
        "--seed-account",
        type=_seed,
        action="append",
        default=[],
        metavar="PRODUCT:SUBSCRIPTION_KEY:API_USER:API_KEY",
        help="an account that exists from the start; may be repeated;"
        f" products: {', '.join(PRODUCTS)}",
    )
    parser.add_argument(
        "--callback-host",
        default=ANY_HOST,
        metavar="HOST",
        help="the seeded accounts' registered callback host; * allows any (%(default)s)",
    )
    return parser


def _seed(text: str) -> Seed:
    match = _SEED.fullmatch(text)
    if match is None:
        message = f"must be PRODUCT:SUBSCRIPTION_KEY:API_USER:API_KEY, not {text!r}"
        raise argparse.ArgumentTypeError(message)
    return Seed(*match.groups())


if __name__ == "__main__":
    sys.exit(main())
