"""Connections to gunicorn: as a client's socket opens them, and as its processes hold them."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import psutil

from devstack.stack import Stack

# Longer than any timeout of gunicorn.conf.py for a client.
PATIENCE_S = 60.0


def connections_of(stack: Stack) -> list[int]:
    """How many client connections each process of gunicorn has open."""
    port = int(stack.api_url.rpartition(":")[2])
    return [
        sum(
            connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
            for connection in worker.net_connections("tcp")
        )
        for worker in psutil.Process(stack.processes["api"].pid).children()
    ]


def connect(stack: Stack, open_until: ExitStack) -> socket.socket:
    """A client's connection, open until the stack of contexts ends."""
    host, _, port = stack.api_url.removeprefix("http://").partition(":")
    peer = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    return open_until.enter_context(peer)


def unread_from(port: int) -> int | None:
    """How many bytes of the client at this port the server has not read; None without a client.

    proc_pid_net(5) has the columns of /proc/net/tcp: addresses, and the queues of both directions,
    in hexadecimal.
    """
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, client, _, queues, *_ = line.split()
        if int(client.rpartition(":")[2], 16) == port:
            return int(queues.rpartition(":")[2], 16)
    return None
