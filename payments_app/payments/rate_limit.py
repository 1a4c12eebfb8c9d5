"""Limits the status checks of each account at a provider, over all workers of the installation.

The rate starts at what the adapter advises. It rises by one check a second for each second in which
it delays checks and the answers are quick. When the provider says "too many", it falls by half the
share of recent checks that were so refused, as in RFC 8257: one in a hundred is no reason to halve
the rate. Retry-After closes the account until then, unless it is short and rare: a callback doesn't
open it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import structlog
from redis import Redis, RedisError

from payments_app.kernel import metrics
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.redis_script import Script
from payments_app.payments.backoff import RETRY_AFTER_MAX_S
from payments_app.payments.states import Step
from payments_app.providers.contract import AccountKey, Observation, Verdict

log = structlog.get_logger(__name__)

# Allowance that was not used for up to this time may be used at once.
BURST_S: Final = 1.2
# Checks are granted in batches worth this time: to claim and record them one by one costs a worker
# several times as much. Workers poll as often.
BATCH_S: Final = 1.0
# However often a provider refuses: one check in two seconds finds out when it accepts them again.
RATE_MIN: Final = 0.5
# Of several refusals within this time, one counts.
FALL_EVERY_S: Final = 1.0
# The half-life of an answer in the share of refusals.
SHARE_HALVES_S: Final = 2.0
# An answer within this time lets the rate rise.
QUICK_S: Final = 1.0
# A Retry-After up to this delays only its own payment, as long as few answers have one: a hiccup,
# no limit of the account's. A longer one, or a larger recent share, closes the account.
SHORT_S: Final = 2.0
CLOSING_SHARE: Final = 0.25
# The state of an account without checks is deleted after this time.
FORGOTTEN_S: Final = 3600
# While Redis is unavailable or hangs, it is tried this often, so that not every claim waits for it.
AVOID_S: Final = 5.0
# Accounts that a process remembers; above that it drops all, and only knows less.
REMEMBERED_MAX: Final = 10_000
# Arguments for each key: advice ('' for none), checks wanted, quick answers, calls beyond the first
# of a check, what part of the rate is left (1 for all), and for how many ms checks and submissions
# must wait. Returned for each: checks granted; ms until the next; ms until submissions may be sent;
# the rate in thousandths, -1 for none. A repeated call grants again what nobody uses: that costs
# some slots.
_SHARE: Final = """
local ceiling, least = tonumber(ARGV[1]), tonumber(ARGV[2])
local burst, batch = tonumber(ARGV[3]), tonumber(ARGV[4])
local fall_every, keep = tonumber(ARGV[5]), ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local told = {}
for number, key in ipairs(KEYS) do
    local a = {unpack(ARGV, 7 * number, 7 * number + 6)}
    local advice = tonumber(a[1])
    local wanted, quick, extra, left = tonumber(a[2]), tonumber(a[3]), tonumber(a[4]), tonumber(a[5])
    local state = redis.pcall('HMGET', key, 'rate', 'next', 'fell', 'checks', 'submits')
    if state.err then
        redis.call('DEL', key)
        state = {}
    end
    for field = 1, 5 do state[field] = tonumber(state[field] or '') end
    -- An instant further ahead than anybody may close an account for was not written by us.
    for field = 2, 5 do
        -- No number at all compares to nothing.
        if not ((state[field] or 0) <= now + FURTHEST_MS) then state[field] = nil end
    end
    local rate = state[1] or advice
    if rate ~= rate then rate = advice end
    if rate then rate = math.max(least, math.min(rate, ceiling)) end
    local next_at, fell = state[2] or 0, state[3] or 0
    local checks_at = math.max(state[4] or 0, now + tonumber(a[6]))
    local submits_at = math.max(state[5] or 0, now + tonumber(a[7]))
    if left < 1 and now - fell >= fall_every then
        rate, fell = math.max(least, (rate or ceiling) * left), now
    end
    local granted, ready_at = wanted, 0
    if checks_at > now then
        granted = 0
    elseif rate then
        local gap = 1000 / rate
        local from = math.max(next_at, now - burst)
        local least_wanted = math.min(wanted, math.max(1, math.floor(batch / gap)))
        granted = math.max(0, math.floor((now - from) / gap) + 1)
        granted = granted < least_wanted and 0 or math.min(wanted, granted)
        next_at = from + (granted + extra) * gap
        if granted < wanted then ready_at = next_at + (least_wanted - 1) * gap end
        if granted < wanted and left == 1 then
            rate = math.min(ceiling, rate + quick / math.max(rate, 1))
        end
    end
    if rate or checks_at > now or submits_at > now then
        redis.call('HSET', key, 'next', next_at, 'fell', fell, 'checks', checks_at,
                   'submits', submits_at)
        if rate then redis.call('HSET', key, 'rate', rate) end
        redis.call('EXPIRE', key, keep)
    end
    local wait = math.max(checks_at - now, math.ceil(ready_at - now), 0)
    told[4 * number - 3] = granted
    told[4 * number - 2] = wait
    told[4 * number - 1] = math.max(submits_at - now, 0)
    told[4 * number] = rate and math.floor(rate * 1000) or -1
end
return told
""".replace("FURTHEST_MS", str(int(RETRY_AFTER_MAX_S * 1000) + 1000))


@dataclass(slots=True)
class _Recent:
    """Decaying counts of recent answers and refusals, as of `counted_at` (boot_seconds)."""

    answered: float = 0.0
    refused: float = 0.0
    counted_at: float = 0.0

    def count(self, *, refused: bool, now: float) -> float:
        """Count one more answer. Returns the share of those that were refused."""
        fades = 0.5 ** ((now - self.counted_at) / SHARE_HALVES_S)
        self.counted_at = now
        self.answered = self.answered * fades + 1
        self.refused = self.refused * fades + refused
        return self.refused / self.answered


@dataclass(slots=True)
class _Known:
    """What this process knows of an account. Times are boot_seconds.

    `advice`: what the adapter advises. `rate`: the last one from Redis, None for no limit.
    `quick`, `extra`: counts not yet sent to Redis. `fell_at`: when the rate fell, without Redis.
    """

    advice: float | None = None
    rate: float | None = None
    quick: int = 0
    extra: int = 0
    checks_at: float = 0.0
    submits_at: float = 0.0
    next_here: float = 0.0
    fell_at: float = -FALL_EVERY_S
    checks: _Recent = field(default_factory=_Recent)
    submits: _Recent = field(default_factory=_Recent)


@dataclass(frozen=True, slots=True)
class _Report:
    """What is sent to Redis about an account, and the checks wanted."""

    wanted: int = 0
    rate_left: float = 1.0
    checks_closed_s: float = 0.0
    submits_closed_s: float = 0.0


class AccountPace:
    """The rate of status checks per account: shared in Redis, per process while that is away."""

    def __init__(self, redis: Redis, *, ceiling: float) -> None:
        """`ceiling`: the highest rate per second of any account that has a limit."""
        self._script = Script(redis, _SHARE)
        self._ceiling = ceiling
        # Guards what is known: threads that call providers update it while another thread claims.
        self._lock = threading.Lock()
        self._known: dict[AccountKey, _Known] = {}
        self._avoid_until = 0.0

    def advise(self, account: AccountKey, checks_per_s: float | None) -> None:
        """Set the rate that the adapter advises; None for no limit."""
        known = self._of(account)
        known.advice = checks_per_s

    def is_open(self, account: AccountKey, step: Step) -> bool:
        """Whether anything may be sent now, as far as this process knows."""
        known = self._of(account)
        return boot_seconds() >= (known.submits_at if step is Step.SUBMIT else known.checks_at)

    def grant(self, wanted: Mapping[AccountKey, int]) -> dict[AccountKey, int]:
        """How many of the wanted status checks may be sent now. They count, sent or not.

        Also updates, for each account, whether submissions may be sent: see `is_open`.
        """
        return self._exchange({account: _Report(count) for account, count in wanted.items()})

    def learn(self, account: AccountKey, step: Step, seen: Observation, calls: int) -> None:
        """Learn from the result of a submission, or of a status check that took `calls` calls."""
        known, is_check = self._of(account), step is Step.CHECK
        refused, asked_s = _is_refusal(seen), _asked_for_s(seen)
        with self._lock:
            recent = known.checks if is_check else known.submits
            share = recent.count(refused=refused or asked_s > 0, now=boot_seconds())
            if is_check:
                known.extra += max(0, calls - 1)
                known.quick += _is_quick(seen) and not refused
        closed_s = asked_s if asked_s > SHORT_S or share >= CLOSING_SHARE else 0.0
        if is_check:
            rate_left = 1 - share / 2 if refused else 1.0
            report = _Report(rate_left=rate_left, checks_closed_s=closed_s)
        else:
            # Unless NOT_SENT is proven, the provider may have the payment: a status check follows.
            is_proven = seen.verdict is Verdict.NOT_SENT
            report = _Report(submits_closed_s=closed_s if is_proven else 0.0)
        if report != _Report():
            self._exchange({account: report})

    def _of(self, account: AccountKey) -> _Known:
        with self._lock:
            if account not in self._known and len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            return self._known.setdefault(account, _Known())

    def _exchange(self, reports: Mapping[AccountKey, _Report]) -> dict[AccountKey, int]:
        known = {account: self._of(account) for account in reports}
        if boot_seconds() < self._avoid_until:
            return self._grant_all_here(known, reports)
        arguments: list[str | int] = [
            *(str(self._ceiling), str(RATE_MIN), int(BURST_S * 1000), int(BATCH_S * 1000)),
            *(int(FALL_EVERY_S * 1000), FORGOTTEN_S),
        ]
        for account, report in reports.items():
            arguments += self._told(known[account], report)
        try:
            told = self._script([_key(account) for account in reports], arguments)
        except RedisError as error:
            self._avoid_until = boot_seconds() + AVOID_S
            log.warning("pace.redis_unavailable", error=type(error).__name__)
            return self._grant_all_here(known, reports)
        numbers = iter(told)
        granted = {}
        for account in reports:
            granted[account] = self._heard(account, *(int(next(numbers)) for _ in range(4)))
        return granted

    def _told(self, known: _Known, report: _Report) -> list[str | int]:
        with self._lock:
            quick, extra = known.quick, known.extra
            known.quick = known.extra = 0
        return [
            "" if known.advice is None else str(known.advice),
            *(report.wanted, quick, extra, str(report.rate_left)),
            *(int(report.checks_closed_s * 1000), int(report.submits_closed_s * 1000)),
        ]

    def _heard(
        self, account: AccountKey, granted: int, wait_ms: int, submits_ms: int, rate: int
    ) -> int:
        known, now = self._of(account), boot_seconds()
        known.checks_at = now + wait_ms / 1000
        known.submits_at = now + submits_ms / 1000
        known.rate = None if rate < 0 else rate / 1000
        if known.rate is not None:
            metrics.status_checks_per_s.labels(account.provider).set(known.rate)
        return granted

    def _grant_all_here(
        self, known: Mapping[AccountKey, _Known], reports: Mapping[AccountKey, _Report]
    ) -> dict[AccountKey, int]:
        return {a: self._grant_here(known[a], report) for a, report in reports.items()}

    def _grant_here(self, known: _Known, report: _Report) -> int:
        """Without Redis: use the last known rate, for this process alone."""
        now = boot_seconds()
        with self._lock:
            if report.rate_left < 1 and now - known.fell_at >= FALL_EVERY_S:
                before = known.rate or known.advice or self._ceiling
                known.rate, known.fell_at = max(RATE_MIN, before * report.rate_left), now
            known.checks_at = max(known.checks_at, now + report.checks_closed_s)
            known.submits_at = max(known.submits_at, now + report.submits_closed_s)
            rate = known.rate or known.advice
            if now < known.checks_at:
                return 0
            if rate is None:
                return report.wanted
            start = max(known.next_here, now - BURST_S)
            least = min(report.wanted, max(1, int(BATCH_S * rate)))
            granted = min(report.wanted, int((now - start) * rate) + 1) if start <= now else 0
            granted = granted if granted >= least else 0
            known.next_here = start + granted / rate
            if granted < report.wanted:
                known.checks_at = known.next_here + (least - 1) / rate
            return granted


def _asked_for_s(seen: Observation) -> float:
    """How long the provider asks us to wait. A pause of our own doesn't count."""
    asked_s = seen.retry_after_s or 0.0
    # Ignore negative numbers and NaN.
    return min(asked_s, RETRY_AFTER_MAX_S) if seen.http_status is not None and asked_s > 0 else 0.0


def _is_refusal(seen: Observation) -> bool:
    return seen.http_status == HTTPStatus.TOO_MANY_REQUESTS or seen.reason == "throttled"


def _is_quick(seen: Observation) -> bool:
    is_answer = seen.http_status is not None and seen.http_status < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_answer and seen.elapsed_s <= QUICK_S


def _key(account: AccountKey) -> str:
    return f"pace:{account.provider}:{account.id or 'platform'}"
