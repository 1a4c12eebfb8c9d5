"""A setting that is missing or malformed stops the start with one line that names it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import pytest
from cryptography.fernet import Fernet
from kombu import Connection

from payments_app.providers.contract import Mode
from payments_app.settings import SettingInvalid, Settings
from payments_app.worker.celery_app import broker_address

GOOD: Mapping[str, str] = {
    "DATABASE_URL": "postgresql://app:hunter2@db.internal:5432/maramoja",
    "REDIS_URL": "redis://:hunter2@redis.internal:6379/0",
    "SECRET_KEYS": Fernet.generate_key().decode(),
}
ACCOUNT: Mapping[str, str] = {
    "MTN_TARGET_ENVIRONMENT": "mtnuganda",
    "MTN_COLLECTION_SUBSCRIPTION_KEY": "hunter2-subscription",
    "MTN_COLLECTION_API_USER": "4f1c9c1e-6f2f-4b0e-8f57-0d6a3f6f7a01",
    "MTN_COLLECTION_API_KEY": "hunter2-key",
}


def read(**changes: str) -> Settings:
    return Settings.from_env({**GOOD, **changes})


def refusal(env: Mapping[str, str]) -> str:
    with pytest.raises(SettingInvalid) as refused:
        Settings.from_env(env)
    return str(refused.value)


def test_the_fewest_settings_are_enough() -> None:
    settings = read()

    assert settings.rate_limit_default == "100 per minute"
    assert settings.idempotency_ttl_hours == 24
    assert (settings.log_level, settings.log_format) == ("INFO", "json")
    assert settings.webhook_allow_private_addresses is False
    assert settings.public_base_url is None
    assert settings.cors_allowed_origins == ()
    assert settings.platform_accounts == ()
    assert settings.traces_exporter is None
    assert settings.celery_broker_url == settings.redis_url == GOOD["REDIS_URL"]
    assert settings.migration_database_url == settings.database_url


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [None, "", "   "])
def test_a_missing_setting_is_named_with_what_it_should_be(name: str, value: str | None) -> None:
    env = {**GOOD} if value is None else {**GOOD, name: value}
    if value is None:
        del env[name]

    line = refusal(env)

    assert line.startswith(f"{name} is missing: it should be ")
    assert line.endswith("See docs/settings.md.")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "hunter2"),
        ("DATABASE_URL", "mysql://u:hunter2@h/d"),
        ("DATABASE_URL", "postgresql://"),
        ("DATABASE_URL", "postgresql://u:hunter2@host"),
        ("DATABASE_URL", "postgresql://u:hunter2@host:port/d"),
        ("DATABASE_URL", "sqlite:///hunter2.db"),
        ("MIGRATION_DATABASE_URL", "hunter2"),
        ("REDIS_URL", "hunter2"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://:hunter2@host:port/0"),
        ("REDIS_URL", "redis://:hunter2@host:99999/0"),
        ("REDIS_URL", "redis://:hunter2@host/zero"),
        ("REDIS_URL", "redis://:hunter2@host:6379/0?socket_timeout=soon"),
        ("REDIS_URL", "http://hunter2"),
        ("REDIS_URL", "unix://hunter2/redis.sock"),
        ("CELERY_BROKER_URL", "hunter2"),
        ("CELERY_BROKER_URL", "sqs://hunter2"),
        ("CELERY_BROKER_URL", "amqp://"),
        ("CELERY_BROKER_URL", "amqp://u:hunter2@host:port//"),
        ("CELERY_BROKER_URL", "redis://:hunter2@host/zero"),
        ("SECRET_KEYS", "hunter2"),
        ("SECRET_KEYS", ","),
        ("SECRET_KEYS", "hunter2" * 6 + "="),
        ("SECRET_KEYS", "schlüssel"),
        ("PUBLIC_BASE_URL", "pay.example.com"),
        ("PUBLIC_BASE_URL", "ftp://pay.example.com"),
        ("PUBLIC_BASE_URL", "https://"),
        ("PUBLIC_BASE_URL", "https://pay.example.com?key=hunter2"),
        ("PUBLIC_BASE_URL", "https://pay.example.com#hunter2"),
        ("PUBLIC_BASE_URL", "https://u:hunter2@pay.example.com"),
        ("PUBLIC_BASE_URL", "https://pay example com"),
        ("PUBLIC_BASE_URL", "https://pay.example.com:port"),
        ("RATE_LIMIT_DEFAULT", "hunter2"),
        ("RATE_LIMIT_DEFAULT", "100"),
        ("RATE_LIMIT_DEFAULT", "0 per minute"),
        ("IDEMPOTENCY_TTL_HOURS", "0"),
        ("IDEMPOTENCY_TTL_HOURS", "-1"),
        ("IDEMPOTENCY_TTL_HOURS", "8761"),
        ("IDEMPOTENCY_TTL_HOURS", "1.5"),
        ("IDEMPOTENCY_TTL_HOURS", "1_0"),
        ("IDEMPOTENCY_TTL_HOURS", "٢٤"),
        ("IDEMPOTENCY_TTL_HOURS", "a day"),
        ("AUDIT_HEADS_FILE", "heads.jsonl"),
        ("AUDIT_HEADS_FILE", "/mnt/audit/"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("WEBHOOK_ALLOW_PRIVATE_ADDRESSES", "maybe"),
        ("DATABASE_ALLOW_SUPERUSER", "perhaps"),
        ("TRUSTED_PROXIES", "-1"),
        ("TRUSTED_PROXIES", "10"),
        ("RATE_LIMIT_UNAUTHENTICATED", "often"),
        ("RATE_LIMIT_CALLBACKS", "0 per minute"),
        ("CALLBACK_NETWORKS", "203.0.113.7/24"),
        ("CALLBACK_NETWORKS", ","),
        ("METRICS_NETWORKS", "203.0.113.7/24"),
        ("METRICS_NETWORKS", "prometheus"),
        ("WORKER_PORT", "65536"),
        ("WORKER_PORT", "-1"),
        ("WORKER_PORT", "http"),
        ("BEAT_PORT", "9102/tcp"),
        ("CORS_ALLOWED_ORIGINS", "*"),
        ("CORS_ALLOWED_ORIGINS", "https://*.example.com"),
        ("CORS_ALLOWED_ORIGINS", "null"),
        ("CORS_ALLOWED_ORIGINS", "app.example.com"),
        ("CORS_ALLOWED_ORIGINS", "https://app.example.com/"),
        ("CORS_ALLOWED_ORIGINS", "https://App.example.com"),
        ("CORS_ALLOWED_ORIGINS", "https://app.example.com:443"),
        ("CORS_ALLOWED_ORIGINS", "https://app.example.com, *"),
        ("CORS_ALLOWED_ORIGINS", ","),
    ],
)
def test_a_malformed_setting_is_named_and_its_value_not_repeated(name: str, value: str) -> None:
    line = refusal({**GOOD, name: value})

    assert line.startswith(f"{name} is malformed: it should be ")
    assert "hunter2" not in line
    assert "\n" not in line


@pytest.mark.parametrize("missing", ACCOUNT)
def test_a_platform_account_is_whole_or_not_at_all(missing: str) -> None:
    env = {**GOOD, **ACCOUNT, missing: ""}

    assert refusal(env).startswith(f"{missing} is missing: ")


def test_a_target_environment_alone_makes_no_account() -> None:
    assert read(MTN_TARGET_ENVIRONMENT="sandbox").platform_accounts == ()


@pytest.mark.parametrize(
    ("environment", "mode", "base_url"),
    [
        ("sandbox", Mode.TEST, "https://sandbox.momodeveloper.mtn.com"),
        ("mtnuganda", Mode.LIVE, "https://proxy.momoapi.mtn.com"),
    ],
)
def test_an_account_is_at_the_address_of_its_environment(
    environment: str, mode: Mode, base_url: str
) -> None:
    (account,) = read(**{**ACCOUNT, "MTN_TARGET_ENVIRONMENT": environment}).platform_accounts

    assert (account.mode, account.base_url) == (mode, base_url)


def test_an_accounts_address_can_be_another() -> None:
    (account,) = read(**ACCOUNT, MTN_BASE_URL="http://simulator:9010/").platform_accounts

    assert account.base_url == "http://simulator:9010"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MTN_BASE_URL", "simulator"),
        ("MTN_TARGET_ENVIRONMENT", "mtn uganda"),
        ("MTN_COLLECTION_API_KEY", "hunter2 hunter3"),
    ],
)
def test_a_malformed_part_of_the_account_is_named(name: str, value: str) -> None:
    line = refusal({**GOOD, **ACCOUNT, name: value})

    assert line.startswith(f"{name} is malformed: ")
    assert "hunter" not in line


def test_no_secret_is_in_the_settings_own_text() -> None:
    text = repr(read(**ACCOUNT))

    assert "hunter2" not in text
    assert GOOD["SECRET_KEYS"] not in text


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_database_address_has_one_driver(scheme: str) -> None:
    settings = read(DATABASE_URL=f"{scheme}://app@/maramoja?host=/run/postgresql")

    assert settings.database_url == "postgresql+psycopg://app@/maramoja?host=/run/postgresql"


@pytest.mark.parametrize(
    "url",
    [
        "redis://redis",
        "redis://redis/",
        "redis://user:p%40ss@redis:6380/3",
        "rediss://redis:6380/0",
        "redis://[::1]:6379/0",
        "unix:///run/redis.sock",
        "unix://user:pass@/run/redis.sock?db=3",
    ],
)
def test_redis_addresses_of_all_forms_are_taken(url: str) -> None:
    assert read(REDIS_URL=url).redis_url == url
    assert read(CELERY_BROKER_URL=url).celery_broker_url == url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://redis", "redis://redis:6379/0"),
        ("redis://redis:6380/3", "redis://redis:6380/3"),
        ("redis://redis?db=3", "redis://redis:6379/3"),
        ("redis://:p%40ss@redis/1", "redis://:p%40ss@redis:6379/1"),
        ("redis://redis/1?password=p%2Fss", "redis://:p%2Fss@redis:6379/1"),
        ("redis://redis/0?socket_timeout=5", "redis://redis:6379/0"),
        ("redis://[::1]/0", "redis://[::1]:6379/0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        (
            "unix://u:p%40@/run/redis.sock?db=2",
            "redis+socket://u:p%40@/run/redis.sock?virtual_host=2",
        ),
        ("amqp://u:p@rabbit:5672//", "amqp://u:p@rabbit:5672//"),
    ],
)
def test_a_broker_address_is_put_in_kombus_words(url: str, address: str) -> None:
    assert broker_address(url) == address
    assert Connection(address).transport_cls in {"redis", "amqp"}


@pytest.mark.parametrize(
    ("query", "mode"),
    [("", "CERT_REQUIRED"), ("?ssl_cert_reqs=none", "CERT_NONE")],
)
def test_a_broker_over_tls_is_verified_unless_told_otherwise(query: str, mode: str) -> None:
    address = broker_address(f"rediss://redis:6380/2{query}")

    assert urlsplit(address).path == "/2"
    assert Connection(address).ssl["ssl_cert_reqs"].name == mode


def test_an_installation_may_allow_private_addresses_for_webhooks() -> None:
    for word, meant in {"true": True, "1": True, "FALSE": False, "0": False}.items():
        assert read(WEBHOOK_ALLOW_PRIVATE_ADDRESSES=word).webhook_allow_private_addresses is meant


def test_space_around_a_value_does_not_count() -> None:
    keys = f" {GOOD['SECRET_KEYS']} , {Fernet.generate_key().decode()},"

    settings = read(SECRET_KEYS=keys, LOG_LEVEL=" debug ")

    assert len(settings.secret_keys) == 2
    assert settings.log_level == "DEBUG"


def test_origins_are_a_list() -> None:
    settings = read(CORS_ALLOWED_ORIGINS="https://a.example , http://localhost:3000,")

    assert settings.cors_allowed_origins == ("https://a.example", "http://localhost:3000")


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    ("given", "exporter"),
    [
        (ENDPOINT, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c.example.com/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "true"}, None),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, "otlp"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, "otlp"),
        (
            {
                **ENDPOINT,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "otlp",
        ),
        # A variable that an operator sets for all services must not stop one that exports no spans.
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
    ],
)
def test_spans_go_where_opentelemetrys_own_variables_say(
    given: dict[str, str], exporter: str | None
) -> None:
    assert read(**given).traces_exporter == exporter


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_SDK_DISABLED", "perhaps"),
        # Credentials have a variable of their own: error messages repeat an address.
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:hunter2@collector"),
    ],
)
def test_spans_that_could_go_nowhere_stop_the_start(name: str, value: str) -> None:
    line = refusal({**GOOD, **ENDPOINT, name: value})

    assert line.startswith(name)
    assert "hunter2" not in line
