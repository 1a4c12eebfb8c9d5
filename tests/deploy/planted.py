"""Series for Prometheus: a healthy installation, and for each alert its cause and a near miss.

A value is promtool's notation: `0+60x40` is a counter that grows by 60 a minute for 40 minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SHORT = 40
DAY = 26 * 60
PAGE, TICKET = "page", "ticket"

_FINAL = 'maramoja_payments_final_total{provider="mtn_momo",mode="live",status='
_ANSWER = 'maramoja_provider_answers_total{provider="mtn_momo",operation='
_HTTP = 'maramoja_http_requests_total{method="POST",route='
_CREATED = "maramoja_accept_seconds_"

PAID = f'{_FINAL}"SUCCESSFUL",failure_code="none"}}'
PAID_TEST = PAID.replace("live", "test")
NO_FUNDS = f'{_FINAL}"FAILED",failure_code="insufficient_funds"}}'
UNAVAILABLE = f'{_FINAL}"FAILED",failure_code="provider_unavailable"}}'
UNAVAILABLE_TEST = UNAVAILABLE.replace("live", "test")
ACCEPTED = 'maramoja_payments_accepted_total{provider="mtn_momo",mode="live"}'
TOKEN = f'{_ANSWER}"token",verdict="SUCCESSFUL"}}'
TAKEN = f'{_ANSWER}"submit",verdict="PENDING"}}'
TOLD = f'{_ANSWER}"check",verdict="SUCCESSFUL"}}'
NOTHING_SENT = f'{_ANSWER}"submit",verdict="NOT_SENT"}}'
NOTHING_TOLD = f'{_ANSWER}"check",verdict="UNKNOWN"}}'
OK_201 = f'{_HTTP}"/api/v1/payments",status="201"}}'
ERROR_500 = f'{_HTTP}"/api/v1/payments",status="500"}}'
ERROR_503 = f'{_HTTP}"/api/v1/payments",status="503"}}'
DRAINING = 'maramoja_http_requests_total{method="GET",route="/health/ready",status="503"}'
WITHIN_HALF = f'{_CREATED}bucket{{outcome="created",le="0.5"}}'
WITHIN_1 = f'{_CREATED}bucket{{outcome="created",le="1"}}'
WITHIN_2 = f'{_CREATED}bucket{{outcome="created",le="2.5"}}'
WITHIN_ALL = f'{_CREATED}bucket{{outcome="created",le="+Inf"}}'
CREATED = f'{_CREATED}count{{outcome="created"}}'
REPLAYED_SLOW = f'{_CREATED}bucket{{outcome="replayed",le="2.5"}}'
DUE_LAG = "maramoja_due_lag_seconds"
UNKNOWN_AGE = "maramoja_oldest_unknown_seconds"
UNSENT_AGE = "maramoja_oldest_unsent_seconds"
OPEN_AGE = "maramoja_oldest_open_payment_seconds"
UNPUBLISHED_AGE = "maramoja_oldest_unpublished_seconds"
WEBHOOK_LAG = "maramoja_webhook_lag_seconds"
AUDITED = 'maramoja_audit_entries{instance="a1"}'
AUDITED_2 = 'maramoja_audit_entries{instance="a2"}'
BREAKS = 'maramoja_invariant_breaks{invariant="one_reference"}'
HELD = "maramoja_held_tenants"
FENCED = 'maramoja_fenced_writes_total{job="worker",instance="w1"}'
ONE_BY_ONE = 'maramoja_payments_recorded_one_by_one_total{job="worker",instance="w1"}'
WEBHOOKS_ONE_BY_ONE = 'maramoja_webhooks_recorded_one_by_one_total{job="worker",instance="w1"}'
# Prometheus renames a label of ours if it has that label itself.
DOORBELLS = 'maramoja_doorbells_lost_total{job="api",exported_job="payments.process_due"}'
REDIS = 'maramoja_redis_errors_total{job="api",instance="a1"}'
TIMEOUTS = 'maramoja_database_pool_timeouts_total{job="api",instance="a1"}'
DEADLOCKS = 'maramoja_database_deadlocks_total{job="worker",instance="w1"}'
SURVEY = 'maramoja_survey_up{instance="a1"}'
SURVEY_2 = 'maramoja_survey_up{instance="a2"}'
SIZE = "maramoja_database_size_bytes"
API, API_2 = 'up{job="api",instance="a1"}', 'up{job="api",instance="a2"}'
WORKER, WORKER_2 = 'up{job="worker",instance="w1"}', 'up{job="worker",instance="w2"}'
BEAT = 'up{job="beat",instance="b1"}'

# What each minute adds in a healthy installation. Three in ten payers refuse, some answers are
# lost, a request in thousands fails: that is healthy.
_GROWS = {
    PAID: 40,
    NO_FUNDS: 18,
    UNAVAILABLE: 1,
    ACCEPTED: 60,
    TAKEN: 60,
    TOLD: 40,
    NOTHING_TOLD: 3,
    OK_201: 3000,
    ERROR_500: 1,
    DRAINING: 20,
    WITHIN_HALF: 58,
    WITHIN_1: 59,
    WITHIN_2: 60,
    WITHIN_ALL: 60,
    CREATED: 60,
    REPLAYED_SLOW: 30,
    SIZE: 1024**2,
    AUDITED: 3,
    AUDITED_2: 3,
}
_STAYS = {
    DUE_LAG: 1,
    UNKNOWN_AGE: 90,
    UNSENT_AGE: 3,
    OPEN_AGE: 7200,
    UNPUBLISHED_AGE: 1,
    WEBHOOK_LAG: 2,
    BREAKS: 0,
    HELD: 0,
    FENCED: 2,
    ONE_BY_ONE: 1,
    WEBHOOKS_ONE_BY_ONE: 1,
    DOORBELLS: 3,
    REDIS: 7,
    TIMEOUTS: 1,
    DEADLOCKS: 1,
    SURVEY: 1,
    SURVEY_2: 1,
    **dict.fromkeys((API, API_2, WORKER, WORKER_2, BEAT), 1),
}


@dataclass(frozen=True)
class Scenario:
    """`planted` replaces healthy series; None removes one. `fires`: (alert, severity)."""

    name: str
    planted: Mapping[str, str | None]
    fires: frozenset[tuple[str, str]] = frozenset()
    minutes: int = SHORT

    def series(self) -> dict[str, str]:
        grows = {
            name: f"{GIB if name == SIZE else 0}+{by}x{self.minutes}" for name, by in _GROWS.items()
        }
        stays = {name: f"{value}+0x{self.minutes}" for name, value in _STAYS.items()}
        all_of_it = {**grows, **stays, **self.planted}
        return {name: values for name, values in all_of_it.items() if values is not None}


GIB = 1024**3


def ill(alert: str, severity: str, planted: Mapping[str, str | None], **more: int) -> Scenario:
    return Scenario(
        f"{alert}-{severity}", planted, frozenset({(f"Maramoja{alert}", severity)}), **more
    )


def well(name: str, planted: Mapping[str, str | None], **more: int) -> Scenario:
    return Scenario(name, planted, **more)


def _at_rest() -> dict[str, str | None]:
    """No traffic: no counter grows."""
    return dict.fromkeys(_GROWS, f"5+0x{SHORT}")


CAUSES = (
    ill("SuccessRateLow", PAGE, {UNAVAILABLE: "0+4x40"}),
    # No payment has ever succeeded: there is no series with 0.
    ill("SuccessRateLow", PAGE, {PAID: None, UNAVAILABLE: "0+4x40"}),
    ill(
        "SuccessRateDropped",
        TICKET,
        {
            PAID: f"0+40x{DAY - 80} {40 * (DAY - 80)}+10x80",
            UNAVAILABLE: None,
            NO_FUNDS: f"0+18x{DAY - 80} {18 * (DAY - 80)}+48x80",
        },
        minutes=DAY,
    ),
    ill(
        "ProviderSilent",
        PAGE,
        {
            TAKEN: "0+60x20 1200+0x20",
            TOLD: "0+40x20 800+0x20",
            NOTHING_SENT: "0+0x20 0+6x20",
            PAID: None,
        }
        | {NO_FUNDS: None, UNAVAILABLE: None, ACCEPTED: "0+1x40", NOTHING_TOLD: None},
    ),
    # The provider still issues tokens, but all other calls get no answer.
    ill(
        "ProviderSilent",
        PAGE,
        {
            TOKEN: "0+1x40",
            TAKEN: "0+60x20 1200+0x20",
            TOLD: "0+40x20 800+0x20",
            NOTHING_TOLD: "0+0x20 0+5x20",
            PAID: None,
        }
        | {NO_FUNDS: None, UNAVAILABLE: None, ACCEPTED: "0+1x40"},
    ),
    ill("ProviderErrors", TICKET, {NOTHING_TOLD: "0+40x40"}),
    ill("DueWorkLag", PAGE, {DUE_LAG: "1+0x35 61+60x5"}),
    ill("UnsentOld", PAGE, {UNSENT_AGE: "1+0x20 1+60x20"}),
    ill("OpenLong", TICKET, {OPEN_AGE: f"{80_000}+60x{DAY}"}, minutes=DAY),
    ill("UnknownOld", TICKET, {UNKNOWN_AGE: "2400+60x40"}),
    ill("FencedWrites", TICKET, {FENCED: "2+1x40"}),
    ill("RecordedOneByOne", TICKET, {ONE_BY_ONE: "1+0x30 2+0x10"}),
    ill("DoorbellsLost", TICKET, {DOORBELLS: "3+0x25 3+4x15"}),
    ill("UnpublishedEvents", PAGE, {UNPUBLISHED_AGE: "1+0x35 61+60x5"}),
    ill("WebhookLag", TICKET, {WEBHOOK_LAG: "1+0x20 60+60x20"}),
    ill("WebhooksOneByOne", TICKET, {WEBHOOKS_ONE_BY_ONE: "0+0x35 3+0x5"}),
    ill("InvariantBreak", PAGE, {BREAKS: "0+0x38 1+0x2"}),
    ill("AuditEntriesFell", PAGE, {AUDITED: "1000+3x35 1104+3x4"}),
    ill("TenantHeld", TICKET, {HELD: "0+0x20 1+0x20"}),
    ill("ErrorBudget", PAGE, {ERROR_500: "0+0x28 0+200x12"}),
    ill("ErrorBudget", TICKET, {ERROR_500: "0+25x60", OK_201: "0+3000x60"}, minutes=60),
    ill("AcceptSlow", PAGE, {WITHIN_HALF: "0+40x40", WITHIN_1: "0+50x40"}),
    ill("PoolExhausted", PAGE, {TIMEOUTS: "1+0x35 2+2x5"}),
    ill("Deadlocks", TICKET, {DEADLOCKS: "1+0x12 2+0x27"}),
    ill("RedisErrors", TICKET, {REDIS: "7+0x25 7+20x15"}),
    ill("SurveyDown", PAGE, {SURVEY: "1+0x30 0+0x10", SURVEY_2: "1+0x30 0+0x10"}),
    ill("DatabaseGrowth", TICKET, {SIZE: f"{20 * GIB}+{8 * 1024**2}x{DAY}"}, minutes=DAY),
    ill("ApiAbsent", PAGE, {API: "1+0x30 0+0x10", API_2: "1+0x30 0+0x10"}),
    # Removed from the list of targets, as after a deployment was scaled to none.
    ill("ApiAbsent", PAGE, {API: None, API_2: None}),
    ill("WorkerAbsent", PAGE, {WORKER: "1+0x30 0+0x10", WORKER_2: None}),
    ill("BeatAbsent", TICKET, {BEAT: "1+0x25 0+0x15"}),
)

_OUTAGE_SEEN_BY_ONE = {ACCEPTED: "5+0x40", TAKEN: "5+0x40", TOLD: "5+0x40", NOTHING_TOLD: "0+6x40"}

NEAR_MISSES = (
    well("health", {}),
    well("a day of health", {}, minutes=DAY),
    well("no traffic at all", _at_rest()),
    well("just installed, nothing counted yet", dict.fromkeys(_GROWS)),
    well(
        "half of few payments fail",
        {PAID: "0+0x12 0+1x8 8+0x18", UNAVAILABLE: "0+0x12 0+1x8 8+0x18"},
    ),
    well(
        "three of some two dozen fail",
        {PAID: "0+0x10 0+2x12 24+0x16", UNAVAILABLE: "0+0x12 0+1x3 3+0x23"},
    ),
    well("payers refuse, as they do", {NO_FUNDS: "0+40x40"}),
    well("all fail on a test account", {PAID_TEST: "0+1x40", UNAVAILABLE_TEST: "0+90x40"}),
    well("nobody can explain one payment", {**_at_rest(), **_OUTAGE_SEEN_BY_ONE}),
    well(
        "the provider pauses for three minutes",
        {TAKEN: "0+60x37 2220+0x3", TOLD: "0+40x37 1480+0x3"},
    ),
    well("a tenth of the answers is lost", {NOTHING_TOLD: "0+10x40"}),
    well("a few of few requests fail", {OK_201: "0+1x40", ERROR_500: "0+0x30 0+1x6 6+0x4"}),
    well("a held tenant's clients try again", {HELD: "0+0x30 1+0x10", ERROR_503: "0+500x40"}),
    well(
        "few payments are slow",
        dict.fromkeys((WITHIN_2, WITHIN_ALL, CREATED), "0+1x40")
        | {WITHIN_HALF: "0+0x40", WITHIN_1: "0+0x40"},
    ),
    well("replays wait for their lock", {REPLAYED_SLOW: "0+900x40"}),
    well("a worker's restart leaves work for a minute", {DUE_LAG: "1+0x38 61+60x1 1+0x1"}),
    # The condition still holds at the end: these are quiet only by the time that their alert waits.
    well("something is unknown since minutes, and old", {UNKNOWN_AGE: "1+0x35 3700+60x4"}),
    well("a provider was away for some minutes", {UNSENT_AGE: "1+0x30 1+60x6 5+0x3"}),
    well("a payment is open for most of a day", {OPEN_AGE: "70000+60x40"}),
    well("nothing was changed for an hour", {AUDITED: "1000+0x40", AUDITED_2: "1000+0x40"}),
    # The database did not answer: there is no number, not a smaller one.
    well("the trails were not counted for a while", {AUDITED: "1000+3x20 _x10 1090+3x10"}),
    well("one machine paused once", {FENCED: "2+0x30 8+0x10"}),
    well("the broker was restarted", {DOORBELLS: "3+0x37 9+0x2", REDIS: "7+0x37 30+0x2"}),
    well("a single wait for a connection", {TIMEOUTS: "1+0x35 2+0x5"}),
    well("a deadlock more than half an hour ago", {DEADLOCKS: "1+0x5 2+0x34"}),
    well("one API host of two has lost the database", {SURVEY: "0+0x40"}),
    well("one process of each kind is away", {API_2: "0+0x40", WORKER_2: "0+0x40"}),
    well("a rolling restart of beat", {BEAT: "1+0x33 0+0x6"}),
    well("a small database doubles", {SIZE: f"{GIB}+{1024**2}x{DAY}"}, minutes=DAY),
    well(
        "a large database grows by as many bytes",
        {SIZE: f"{900 * GIB}+{8 * 1024**2}x{DAY}"},
        minutes=DAY,
    ),
)
