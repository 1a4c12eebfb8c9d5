"""URLs and addresses that must be refused, those that must not be, and a resolver for tests."""
# ruff: noqa: RUF001 - characters that look alike are the point

from __future__ import annotations

import socket
import threading
from typing import Any, Self

from tests.nobodys_addresses import NEIGHBOURS_4, NOBODYS_HOST

PUBLIC = (NOBODYS_HOST,)

SCHEME = "must begin with https://"
CHARACTERS = "may not hold spaces"
AUTHORITY = "only name a host and a port"
PORT = "port must be one of these: 443."
HOST = "must be a name, such as hooks.example.com, or"
FULL = "must be a full name"
ADDRESS = "public addresses only"

FORMS = {
    "empty": ("", SCHEME),
    "no scheme": ("hooks.example.com/x", SCHEME),
    "no scheme, two slashes": ("//hooks.example.com/x", SCHEME),
    "plain http": ("http://hooks.example.com/x", SCHEME),
    "plain http in capitals": ("HTTP://hooks.example.com/x", SCHEME),
    "ftp": ("ftp://hooks.example.com/x", SCHEME),
    "file": ("file:///etc/passwd", SCHEME),
    "gopher": ("gopher://127.0.0.1:6379/_FLUSHALL", SCHEME),
    "data": ("data:text/plain,hello", SCHEME),
    "javascript": ("javascript:alert(1)", SCHEME),
    "unix socket": ("http+unix://%2Fvar%2Frun%2Fdocker.sock/info", SCHEME),
    "one slash": ("https:/hooks.example.com/x", SCHEME),
    "no slash": ("https:hooks.example.com/x", SCHEME),
    "url in front": ("url:https://hooks.example.com/", SCHEME),
    "no host": ("https://", AUTHORITY),
    "no host but a path": ("https:///etc/passwd", AUTHORITY),
    "no host but a port": ("https://:443/", AUTHORITY),
    "no host but a query": ("https://?x=1", AUTHORITY),
    "space before": (" https://hooks.example.com/", CHARACTERS),
    "space inside": ("https://hooks.example.com/a b", CHARACTERS),
    "space in the host": ("https://hooks.example.com @127.0.0.1/", CHARACTERS),
    "line feed after": ("https://hooks.example.com/\n", CHARACTERS),
    "header in the path": ("https://hooks.example.com/\r\nX-A:b", CHARACTERS),
    "header in the host": ("https://hooks.example.com\r\nHost:a/", CHARACTERS),
    "tab in the scheme": ("ht\ttps://hooks.example.com/", CHARACTERS),
    "nul in the host": ("https://hooks.example.com\x00.evil.test/", CHARACTERS),
    "delete": ("https://hooks.example.com/\x7f", CHARACTERS),
    "backslash for a slash": ("https:\\\\hooks.example.com/", CHARACTERS),
    "backslash before a user": ("https://127.0.0.1\\@hooks.example.com/", CHARACTERS),
    "backslash in the path": ("https://hooks.example.com/\\", CHARACTERS),
    "fragment": ("https://hooks.example.com/#x", CHARACTERS),
    "fragment hiding a user": ("https://127.0.0.1#@hooks.example.com/", CHARACTERS),
    "full-width digits": ("https://１２７.０.０.１/", CHARACTERS),
    "circled digits": ("https://①②⑦.⓪.⓪.①/", CHARACTERS),
    "ideographic full stops": ("https://127。0。0。1/", CHARACTERS),
    "letters outside ascii": ("https://bücher.example/", CHARACTERS),
    "letters that look alike": ("https://hооks.example.com/", CHARACTERS),
    "full-width slash": ("https://hooks.example.com／x", CHARACTERS),
    "zero-width space": ("https://hooks.exam\u200bple.com/", CHARACTERS),
    "soft hyphen": ("https://hooks.exam\u00adple.com/", CHARACTERS),
    "right to left": ("https://hooks.example.com/\u202e", CHARACTERS),
    "user": ("https://user@hooks.example.com/", AUTHORITY),
    "user and password": ("https://user:secret@hooks.example.com/", AUTHORITY),
    "empty user": ("https://@hooks.example.com/", AUTHORITY),
    "host as a user": ("https://hooks.example.com@127.0.0.1/", AUTHORITY),
    "host and port as a user": ("https://hooks.example.com:443@127.0.0.1/", AUTHORITY),
    "two users": ("https://a@127.0.0.1@hooks.example.com/", AUTHORITY),
    "percent in the host": ("https://%31%32%37.0.0.1/", AUTHORITY),
    "percent for a full stop": ("https://127%2e0.0.1/", AUTHORITY),
    "percent for a slash": ("https://hooks.example.com%2f@evil.test/", AUTHORITY),
    "percent for a nul": ("https://hooks.example.com%00/", AUTHORITY),
    "underscore": ("https://hooks_.example.com/", AUTHORITY),
    "a port twice": ("https://hooks.example.com:443:80/", AUTHORITY),
    "a port of nothing": ("https://hooks.example.com:/", AUTHORITY),
    "a port in words": ("https://hooks.example.com:https/", AUTHORITY),
    "a port below zero": ("https://hooks.example.com:-443/", AUTHORITY),
    "a port with a plus": ("https://hooks.example.com:+443/", AUTHORITY),
    "a port with a zero in front": ("https://hooks.example.com:0443/", AUTHORITY),
    "port 0": ("https://hooks.example.com:0/", AUTHORITY),
    "port of six digits": ("https://hooks.example.com:443000/", AUTHORITY),
    "port beyond all": ("https://hooks.example.com:65536/", PORT),
    "port that wraps to 443": ("https://hooks.example.com:65979/", PORT),
    "port of ssh": ("https://hooks.example.com:22/", PORT),
    "port of redis": ("https://hooks.example.com:6379/", PORT),
    "port of postgres": ("https://hooks.example.com:5432/", PORT),
    "port of http": ("https://hooks.example.com:80/", PORT),
    "port of http, other": ("https://hooks.example.com:8443/", PORT),
    "one label": ("https://backend/", FULL),
    "localhost": ("https://localhost/", FULL),
    "localhost in capitals": ("https://LOCALHOST/", FULL),
    "full stop at the end": ("https://hooks.example.com./", HOST),
    "localhost and a full stop": ("https://localhost./", HOST),
    "address and a full stop": ("https://127.0.0.1./", HOST),
    "full stop in front": ("https://.example.com/", HOST),
    "two full stops": ("https://hooks..example.com/", HOST),
    "only a full stop": ("https://./", HOST),
    "hyphen in front": ("https://-hooks.example.com/", HOST),
    "hyphen at the end": ("https://hooks-.example.com/", HOST),
    "label too long": (f"https://{'a' * 64}.example.com/", HOST),
    "name too long": (f"https://{'a.' * 130}com/", HOST),
    "octal": ("https://0177.0.0.1/", HOST),
    "octal, padded": ("https://0000000177.0.0.01/", HOST),
    "octal of ten": ("https://012.0.0.1/", HOST),
    "hexadecimal": ("https://0x7f.0.0.1/", HOST),
    "hexadecimal, short": ("https://0x7f.1/", HOST),
    "hexadecimal, one number": ("https://0x7f000001/", HOST),
    "hexadecimal at the end": ("https://127.0.0.0x1/", HOST),
    "one number": ("https://2130706433/", HOST),
    "one number, public": ("https://1572395022/", HOST),
    "one number, beyond 32 bits": ("https://6425673729/", HOST),
    "one number, octal": ("https://017700000001/", HOST),
    "two numbers": ("https://127.1/", HOST),
    "three numbers": ("https://127.0.1/", HOST),
    "five numbers": ("https://127.0.0.1.1/", HOST),
    "a number too large": ("https://127.0.0.256/", HOST),
    "zero": ("https://0/", HOST),
    "a name that ends in a number": ("https://hooks.example.1/", HOST),
    "brackets around ipv4": ("https://[127.0.0.1]/", HOST),
    "ipv6 without brackets": ("https://::1/", AUTHORITY),
    "ipv6, zone": ("https://[fe80::1%25eth0]/", AUTHORITY),
    "ipv6, zone as it is": ("https://[fe80::1%eth0]/", AUTHORITY),
    "ipv6, zone on a public one": (f"https://[{NOBODYS_HOST}%25lo]/", AUTHORITY),
    "ipv6, bracket left open": ("https://[::1/", AUTHORITY),
    "ipv6, bracket twice": ("https://[[::1]]/", AUTHORITY),
    "ipv6 of the future": ("https://[v1.fe80::a]/", AUTHORITY),
    "ipv6, written out": ("https://[3ffe:ffff:0:0:0:0:0:14]/", HOST),
    "ipv6, zeros in front": ("https://[3ffe:ffff::0014]/", HOST),
    "ipv6, loopback written out": ("https://[0:0:0:0:0:0:0:1]/", HOST),
    "ipv6, ten groups": ("https://[1:2:3:4:5:6:7:8:9:a]/", HOST),
    "name after brackets": ("https://[::1].example.com/", AUTHORITY),
    "too long": (f"https://hooks.example.com/{'a' * 2048}", "2048 characters at most"),
}

# Addresses that must be refused, both written in a URL and as the address of a name.
NOT_PUBLIC = {
    "this network": "0.0.0.0",  # noqa: S104 - the point of it
    "this network, other": "0.1.2.3",
    "loopback": "127.0.0.1",
    "loopback, other": "127.255.255.254",
    "private 10": "10.0.0.1",
    "private 172": "172.16.0.1",
    "private 172, last": "172.31.255.255",
    "private 192": "192.168.1.1",
    "carrier's": "100.64.0.1",
    "carrier's, last": "100.127.255.255",
    "metadata of alibaba": "100.100.100.200",
    "metadata of aws, google, azure": "169.254.169.254",
    "metadata of aws containers": "169.254.170.2",
    "link-local": "169.254.0.1",
    "azure's own": "168.63.129.16",
    "assignments": "192.0.0.8",
    "metadata of oracle": "192.0.0.192",
    "documentation 1": "192.0.2.1",
    "documentation 2": "198.51.100.1",
    "documentation 3": "203.0.113.1",
    "relay of 6to4": "192.88.99.1",
    "benchmarks": "198.18.0.1",
    "benchmarks, last": "198.19.255.255",
    "multicast": "224.0.0.1",
    "multicast, other": "239.255.255.250",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "v6 unspecified": "::",
    "v6 loopback": "::1",
    "v6 compatible": "::7f00:1",
    "v6 compatible, public": "::c611:ffff",
    "v6 mapped loopback": "::ffff:7f00:1",
    "v6 mapped metadata": "::ffff:a9fe:a9fe",
    "v6 mapped public": "::ffff:c611:ffff",
    "v6 translated": "::ffff:0:7f00:1",
    "nat64 of loopback": "64:ff9b::7f00:1",
    "nat64 of private": "64:ff9b::a00:1",
    "nat64 of metadata": "64:ff9b::a9fe:a9fe",
    "nat64 of a local network": "64:ff9b:1::7f00:1",
    "discarded": "100::1",
    "teredo": "2001:0:7f00:1::",
    "teredo with a client": "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "benchmarks in v6": "2001:2::1",
    "orchid": "2001:20::1",
    "documentation in v6": "2001:db8::1",
    "documentation in v6, new": "3fff::1",
    "6to4 of loopback": "2002:7f00:1::1",
    "6to4 of metadata": "2002:a9fe:a9fe::1",
    "6to4 of private": "2002:c0a8:101::1",
    "6to4 of public": "2002:c611:ffff::1",
    "isatap of private": "3ffe:ffff::5efe:a00:1",
    "isatap of private, unique": "3ffe:ffff::200:5efe:a00:1",
    "segment routing": "5f00::1",
    "unique local": "fc00::1",
    "metadata of aws in v6": "fd00:ec2::254",
    "metadata of google in v6": "fd20:ce::254",
    "link-local in v6": "fe80::1",
    "site-local": "fec0::1",
    "multicast in v6": "ff02::1",
    "not handed out": "4000::1",
}

GOOD = {
    "plain": "https://hooks.example.com/x",
    "no path": "https://hooks.example.com",
    "query without a path": "https://hooks.example.com?tenant=1",
    "capitals": "HTTPS://Hooks.Example.COM/Path",
    "its own port": "https://hooks.example.com:443/",
    "idna": "https://xn--bcher-kva.example/",
    "digits in front": "https://3com.example.com/",
    "hyphens": "https://a--b.example-c.com/",
    "a name of numbers, but for its end": "https://127.0.0.1.example.com/",
    "percent-encoded path": "https://hooks.example.com/a%20b?c=%2e%2e",
    "a user in the path": "https://hooks.example.com/@user:80",
    "ipv4": f"https://{NEIGHBOURS_4[0]}/",
    "ipv6": f"https://[{NOBODYS_HOST}]/",
    "ipv6 with a port": f"https://[{NOBODYS_HOST}]:443/",
    "just short enough": "https://hooks.example.com/".ljust(2048, "a"),
}
GOOD_ADDRESSES = (
    *NEIGHBOURS_4,
    NOBODYS_HOST,
    # The last address before 198.18.0.0/15, as a network that has only IPv6 reaches it.
    "64:ff9b::c611:ffff",
)


class Names:
    """A resolver with a table of its own, which records the names that it was asked for."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, socket.SOCK_STREAM, 6, "", (one, port)) for one in self.addresses]


class Hanging(Names):
    """A resolver that gives no answer until the block ends."""

    def __init__(self) -> None:
        super().__init__()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def __call__(self, host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
        self._threads.append(threading.current_thread())
        self.asked.append(host)
        self._over.wait(30)
        return []

    @property
    def is_asked_still(self) -> bool:
        """Whether some lookup has no answer yet."""
        return any(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def written(address: str) -> str:
    return f"https://[{address}]/" if ":" in address else f"https://{address}/"
