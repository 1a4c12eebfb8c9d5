"""All settings, read once from the environment; a missing or malformed one stops the start."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from limits import parse_many
from redis.connection import parse_url
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from payments_app.kernel.networks import Network
from payments_app.providers.contract import Mode, ProviderAccount

T = TypeVar("T")

MTN_DEFAULTS: Final = {
    "sandbox": "https://sandbox.momodeveloper.mtn.com",
    "production": "https://proxy.momoapi.mtn.com",
}
RATE_LIMIT: Final = "100 per minute"
# Per address, for requests without a valid key.
UNAUTHENTICATED_RATE_LIMIT: Final = "300 per minute"
# Per address. A provider has few addresses, and sends one or two callbacks for each payment.
CALLBACK_RATE_LIMIT: Final = "6000 per minute"
ANSWERS_KEPT_HOURS: Final = 24
# Ten times what MTN advises.
STATUS_CHECKS_PER_S_MAX: Final = 100
# More than one PostgreSQL server could record.
STATUS_CHECKS_PER_S_LIMIT: Final = 10_000
# A year.
HOURS_MAX: Final = 8760
# Ten years.
DAYS_MAX: Final = 3650
# Loopback, and networks that are not reachable from outside: RFC 1918 and RFC 4193.
METRICS_NETWORKS: Final = tuple(
    ip_network(one)
    for one in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1/128", "fc00::/7"),
    )
)
PORT_MAX: Final = 65_535
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class SettingInvalid(SystemExit):
    """A setting is missing or malformed. Ends the process with one line that names it."""

    def __init__(self, name: str, should_be: str) -> None:
        super().__init__(f"{name} {should_be}. See docs/settings.md.")
        self.name = name


@dataclass(frozen=True, slots=True)
class Settings:
    """The typed values. docs/settings.md explains each."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    celery_broker_url: str = field(repr=False)
    secret_keys: tuple[str, ...] = field(repr=False)
    migration_database_url: str = field(default="", repr=False)
    public_base_url: str | None = None
    rate_limit_default: str = RATE_LIMIT
    rate_limit_unauthenticated: str = UNAUTHENTICATED_RATE_LIMIT
    rate_limit_callbacks: str = CALLBACK_RATE_LIMIT
    callback_networks: tuple[Network, ...] = ()
    trusted_proxies: int = 0
    idempotency_ttl_hours: int = ANSWERS_KEPT_HOURS
    payer_retention_days: int | None = None
    audit_heads_file: Path | None = None
    status_checks_per_s_max: int = STATUS_CHECKS_PER_S_MAX
    cors_allowed_origins: tuple[str, ...] = ()
    log_level: str = "INFO"
    log_format: str = "json"
    webhook_allow_private_addresses: bool = False
    database_allow_superuser: bool = False
    traces_exporter: str | None = None
    metrics_networks: tuple[Network, ...] = METRICS_NETWORKS
    worker_port: int = 0
    beat_port: int = 0
    platform_accounts: tuple[ProviderAccount, ...] = ()

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:  # house: allow length because one a line
        """Read all settings. Raises SettingInvalid, which names the first invalid one."""
        read = _Reader(env)
        redis_url = read.required("REDIS_URL", _redis_url)
        database_url = read.required("DATABASE_URL", _database_url)
        return cls(
            database_url=database_url,
            migration_database_url=read.optional(
                "MIGRATION_DATABASE_URL", _database_url, database_url
            ),
            redis_url=redis_url,
            celery_broker_url=read.optional("CELERY_BROKER_URL", _broker_url, redis_url),
            secret_keys=read.required("SECRET_KEYS", _secret_keys),
            public_base_url=read.optional("PUBLIC_BASE_URL", _http_url, None),
            rate_limit_default=read.optional("RATE_LIMIT_DEFAULT", _rate, RATE_LIMIT),
            rate_limit_unauthenticated=read.optional(
                "RATE_LIMIT_UNAUTHENTICATED", _rate, UNAUTHENTICATED_RATE_LIMIT
            ),
            rate_limit_callbacks=read.optional("RATE_LIMIT_CALLBACKS", _rate, CALLBACK_RATE_LIMIT),
            callback_networks=read.optional("CALLBACK_NETWORKS", _networks, ()),
            trusted_proxies=read.optional("TRUSTED_PROXIES", _proxies, 0),
            idempotency_ttl_hours=read.optional(
                "IDEMPOTENCY_TTL_HOURS", _hours, ANSWERS_KEPT_HOURS
            ),
            payer_retention_days=read.optional("PAYER_RETENTION_DAYS", _days, None),
            audit_heads_file=read.optional("AUDIT_HEADS_FILE", _file, None),
            status_checks_per_s_max=read.optional(
                "STATUS_CHECKS_PER_S_MAX", _checks_per_s, STATUS_CHECKS_PER_S_MAX
            ),
            cors_allowed_origins=read.optional("CORS_ALLOWED_ORIGINS", _origins, ()),
            log_level=read.optional("LOG_LEVEL", _log_level, "INFO"),
            log_format=read.optional("LOG_FORMAT", _log_format, "json"),
            webhook_allow_private_addresses=read.optional(
                "WEBHOOK_ALLOW_PRIVATE_ADDRESSES", _boolean, default=False
            ),
            database_allow_superuser=read.optional(
                "DATABASE_ALLOW_SUPERUSER", _boolean, default=False
            ),
            traces_exporter=_traces_exporter(read),
            metrics_networks=read.optional("METRICS_NETWORKS", _networks, METRICS_NETWORKS),
            worker_port=read.optional("WORKER_PORT", _port, 0),
            beat_port=read.optional("BEAT_PORT", _port, 0),
            platform_accounts=_platform_accounts(read),
        )


class _Reader:
    """Reads one variable at a time; an empty one counts as not set."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def text(self, name: str) -> str:
        return self._env.get(name, "").strip()

    def required(self, name: str, parse: Callable[[str], T]) -> T:
        value = self.text(name)
        if not value:
            raise SettingInvalid(name, f"is missing: it should be {_wanted(parse)}")
        return self._parsed(name, value, parse)

    def optional(self, name: str, parse: Callable[[str], T], default: T) -> T:
        value = self.text(name)
        return self._parsed(name, value, parse) if value else default

    def _parsed(self, name: str, value: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(value)
        except ValueError:
            # The message leaves the value out: it may be a secret.
            raise SettingInvalid(name, f"is malformed: it should be {_wanted(parse)}") from None


def _wanted(parse: Callable[[str], object]) -> str:
    return (parse.__doc__ or "").strip()


def _database_url(value: str) -> str:
    """a PostgreSQL address such as postgresql://user:password@host:5432/name"""
    scheme, _, rest = value.partition("://")
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ValueError
    address = f"postgresql+psycopg://{rest}"
    try:
        url = make_url(address)
    except ArgumentError:
        raise ValueError from None
    if not url.database:
        raise ValueError
    return address


def _redis_url(value: str) -> str:
    """a Redis address such as redis://host:6379/0, rediss://… or unix:///path/redis.sock?db=0"""
    parts = urlsplit(value)
    if parts.scheme == "unix":
        well_formed = parts.path.startswith("/") and not parts.hostname
    else:
        # redis-py reads any other path as database 0.
        well_formed = bool(parts.hostname) and re.fullmatch(r"(/[0-9]*)?", parts.path) is not None
    if not well_formed:
        raise ValueError
    parse_url(value)  # type: ignore[no-untyped-call]
    return value


def _broker_url(value: str) -> str:
    """a broker address such as redis://host:6379/1 or amqp://user:password@host//"""
    if urlsplit(value).scheme in ("redis", "rediss", "unix"):
        return _redis_url(value)
    parts = urlsplit(value)
    if parts.scheme not in ("amqp", "amqps", "pyamqp") or not parts.hostname:
        raise ValueError
    # Raises ValueError for an invalid port.
    _ = parts.port
    return value


def _secret_keys(value: str) -> tuple[str, ...]:
    """comma-separated Fernet keys, newest first (make one: python -c "from cryptography.fernet import Fernet as F; print(F.generate_key().decode())")"""
    keys = tuple(key.strip() for key in value.split(",") if key.strip())
    if not keys:
        raise ValueError
    for key in keys:
        Fernet(key)
    return keys


def _http_url(value: str) -> str:
    """an address such as https://pay.example.com, without a query"""
    parts = urlsplit(value)
    plain = re.fullmatch(r"[!-~]+", value) and not (parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise ValueError
    # Raises ValueError for an invalid port.
    _ = parts.port
    return value.rstrip("/")


def _origins(value: str) -> tuple[str, ...]:
    """comma-separated origins such as https://app.example.com, each without a path, and no *"""
    origins = tuple(origin.strip() for origin in value.split(",") if origin.strip())
    if not origins:
        raise ValueError
    for origin in origins:
        # As a browser writes it: lower case, and a port only if it isn't the scheme's default.
        form = re.fullmatch(r"(https?)://(?:[a-z0-9.-]+|\[[0-9a-f:]+\])(?::([0-9]+))?", origin)
        if form is None or (form[1], form[2]) in (("http", "80"), ("https", "443")):
            raise ValueError
        _http_url(origin)
    return origins


def _rate(value: str) -> str:
    """a rate in Flask-Limiter's notation, such as 100 per minute, above zero"""
    if any(limit.amount < 1 for limit in parse_many(value)):
        raise ValueError
    return value


def _networks(value: str) -> tuple[Network, ...]:
    """comma-separated networks such as 203.0.113.0/24, or single addresses"""
    found = tuple(ip_network(one.strip()) for one in value.split(",") if one.strip())
    if not found:
        raise ValueError
    return found


def _hours(value: str) -> int:
    """a whole number of hours from 1 to 8760"""
    if not re.fullmatch("[0-9]{1,4}", value) or not 1 <= int(value) <= HOURS_MAX:
        raise ValueError
    return int(value)


def _days(value: str) -> int:
    """a whole number of days from 1 to 3650"""
    if not re.fullmatch("[0-9]{1,4}", value) or not 1 <= int(value) <= DAYS_MAX:
        raise ValueError
    return int(value)


def _file(value: str) -> Path:
    """the whole path of a file, such as /mnt/audit/heads.jsonl"""
    path = Path(value)
    if not path.is_absolute() or value.endswith("/"):
        raise ValueError
    return path


def _checks_per_s(value: str) -> int:
    """a whole number of questions a second from 1 to 10000"""
    if not re.fullmatch("[0-9]{1,5}", value) or not 1 <= int(value) <= STATUS_CHECKS_PER_S_LIMIT:
        raise ValueError
    return int(value)


def _port(value: str) -> int:
    """a port from 1 to 65535, or 0 for none"""
    if not re.fullmatch("[0-9]{1,5}", value) or int(value) > PORT_MAX:
        raise ValueError
    return int(value)


def _proxies(value: str) -> int:
    """the number of proxies in front of the API, from 0 to 9"""
    if not re.fullmatch("[0-9]", value):
        raise ValueError
    return int(value)


def _log_level(value: str) -> str:
    """DEBUG, INFO, WARNING, ERROR or CRITICAL"""
    if value.upper() not in LOG_LEVELS:
        raise ValueError
    return value.upper()


def _log_format(value: str) -> str:
    """json or console"""
    if value not in ("json", "console"):
        raise ValueError
    return value


def _boolean(value: str) -> bool:
    """true or false"""
    words = {"true": True, "1": True, "false": False, "0": False}
    if value.lower() not in words:
        raise ValueError
    return words[value.lower()]


def _word(value: str) -> str:
    """one word without spaces"""
    if not re.fullmatch(r"\S+", value):
        raise ValueError
    return value


def _exporter(value: str) -> str:
    """otlp, console or none"""
    if value not in ("otlp", "console", "none"):
        raise ValueError
    return value


def _protocol(value: str) -> str:
    """http/protobuf, the one protocol of OTLP that is built in"""
    if value != "http/protobuf":
        raise ValueError
    return value


def _traces_exporter(read: _Reader) -> str | None:
    """The exporter of spans; None: no tracing. The SDK itself reads the other OTEL_… variables."""
    disabled = read.optional("OTEL_SDK_DISABLED", _boolean, default=False)
    named = read.optional("OTEL_TRACES_EXPORTER", _exporter, None)
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    # The more specific variable wins.
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next(filter(read.text, protocols), protocols[0])
    addresses = [read.optional(name, _http_url, None) for name in endpoints]
    exporter = named or ("otlp" if any(addresses) else "none")
    if disabled or exporter == "none":
        return None
    read.optional(protocol, _protocol, None)
    return exporter


def _platform_accounts(read: _Reader) -> tuple[ProviderAccount, ...]:
    """The platform's own MTN account. If any of its variables is set, all are required."""
    names = {
        "subscription_key": "MTN_COLLECTION_SUBSCRIPTION_KEY",
        "api_user": "MTN_COLLECTION_API_USER",
        "api_key": "MTN_COLLECTION_API_KEY",
    }
    if not any(read.text(name) for name in names.values()):
        return ()
    environment = read.required("MTN_TARGET_ENVIRONMENT", _word)
    default = MTN_DEFAULTS["sandbox" if environment == "sandbox" else "production"]
    credentials = {f"collection_{part}": read.required(n, _word) for part, n in names.items()}
    return (
        ProviderAccount(
            id=None,
            provider="mtn_momo",
            mode=Mode.TEST if environment == "sandbox" else Mode.LIVE,
            base_url=read.optional("MTN_BASE_URL", _http_url, default),
            target_environment=environment,
            credentials=credentials,
            version="platform",
        ),
    )
