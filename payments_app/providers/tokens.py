"""Access tokens: fetched once for all workers, renewed before they end, never stored in plain.

A process caches the tokens it has used; Redis shares tokens, and the lock to fetch one. Redis may
be empty, unavailable or wrong: then more tokens are fetched, and no worse.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, NamedTuple

import structlog
from redis import Redis, RedisError

from payments_app.kernel import metrics
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.secrets import Cipher, SecretUnreadable
from payments_app.providers.contract import Observation, ProviderAccount, Verdict

# MTN: "reuse for about 60 minutes, refresh 10 minutes early" (best practices). A sixth of the life
# does the same for short ones: Airtel's 180 s are renewed at 150 s.
RENEW_EARLY_PART: Final = 1 / 6
RENEW_EARLY_MAX_S: Final = 600.0
LIFE_MAX_S: Final = 86_400.0
# Others wait this long for a fetch under way, then return NOT_SENT, so that no worker idles.
WAIT_MAX_S: Final = 3.0
POLL_S: Final = 0.05
# The lock to fetch a token lasts this long, even if its process is killed. MTN's new platform may
# take 20 s: then a second process fetches one too, which costs one call and no more.
TURN_MS: Final = 10_000
FAILURE_PAUSE_MAX_S: Final = 10.0
# A longer pause that the provider itself asks for is obeyed, up to this.
ASKED_PAUSE_MAX_S: Final = 30.0
# After the second new token in a row that was refused, the next one is fetched this much later: 1,
# 2, 4 … 60 s. Else a provider that refuses every token would get a fetch with each status check.
NEW_REFUSED_PAUSE_MAX_S: Final = 60.0
# A provider that refuses some calls and accepts others costs at most one token in this time.
NEW_REFUSED_KEPT_S: Final = 1.0
# Only a bound on memory: accounts times products times credential versions that were in use.
SLOTS_MAX: Final = 10_000

_FAILED: Final = "failed:"
# Replace a value (or, with an empty new one, delete it) only while it is still the expected one.
_SWAP: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token as the provider has just issued it, and its lifetime."""

    token: str = field(repr=False)
    lives_s: float


FetchToken = Callable[[], IssuedToken | Observation]


@dataclass(frozen=True, slots=True)
class _Held:
    """A token in use. Times are boot_seconds: past `renew_at` it should be renewed."""

    token: str = field(repr=False)
    lives_s: float
    renew_at: float
    ends_at: float

    @classmethod
    def of(cls, issued: IssuedToken, *, ends_at: float) -> _Held:
        lives_s = min(issued.lives_s, LIFE_MAX_S)
        early_s = min(RENEW_EARLY_MAX_S, lives_s * RENEW_EARLY_PART)
        return cls(issued.token, lives_s, renew_at=ends_at - early_s, ends_at=ends_at)


class _Label(NamedTuple):
    """Names a token: `name` is its key in Redis; `owner`, never written in plain, identifies the
    credentials it was fetched with, so that no others use it, whatever the version says.
    """

    name: str
    owner: str
    provider: str


class _Slot:
    """What one process knows about one account's token. `lock`: one thread fetches at a time."""

    def __init__(self, label: _Label) -> None:
        self.label = label
        self.lock = threading.Lock()
        self.held: _Held | None = None
        self.refused: str | None = None
        self.failures = 0
        self.paused_until = float("-inf")
        self.refusal: Observation = _not_sent("token_unavailable")
        # How many tokens were obtained, and the number of the last that was refused while new.
        self.gets = self.refused_get = 0
        # How many new tokens in a row were refused, and until when no further one is fetched.
        self.new_refused = 0
        self.keep_until = float("-inf")

    def usable(self) -> str | None:
        held = self.held
        return held.token if held is not None and boot_seconds() < held.ends_at else None

    def fresh(self) -> str | None:
        held = self.held
        return held.token if held is not None and boot_seconds() < held.renew_at else None

    def adopt(self, held: _Held | None) -> None:
        """Take over another process's token, if it lasts longer than ours."""
        if held is None or held.token == self.refused:
            return
        # Read once: discard() doesn't take the lock.
        ours = self.held
        if ours is None or held.ends_at > ours.ends_at:
            self.held = held
            self.gets += 1

    def pause(self, *, failures: int, pause_s: float) -> None:
        self.failures = max(self.failures, failures)
        self.paused_until = max(self.paused_until, boot_seconds() + pause_s)

    def paused(self) -> Observation | None:
        """The last refusal, while it is too early to try again."""
        left = self.paused_until - boot_seconds()
        return replace(self.refusal, retry_after_s=left) if left > 0 else None


class TokenCache:
    """Returns a valid token, which any number of threads and processes share."""

    def __init__(self, redis: Redis, cipher: Cipher) -> None:
        """`redis`: its client bounds each command (short socket timeouts)."""
        self._shared = _Shared(redis, cipher)
        self._slots: dict[_Label, _Slot] = {}
        # New tokens that were refused, and not accepted since.
        self._in_doubt: dict[str, _Slot] = {}

    def token(
        self, account: ProviderAccount, product: str, fetch_token: FetchToken
    ) -> str | Observation:
        """The account's token for `product`; `fetch_token` is called only if there is none to use.

        Returns a NOT_SENT observation if there is none now. What `fetch_token` raises passes
        through.
        """
        slot = self._slot(account, product)
        if (token := slot.fresh()) is not None:
            return token
        usable = slot.usable()
        # While the old token is valid nobody waits: one thread renews it, the others use it.
        if not slot.lock.acquire(timeout=0 if usable else WAIT_MAX_S):
            return usable or _not_sent("token_pending", retry_after_s=1.0)
        try:
            return slot.fresh() or self._renewed(slot, fetch_token)
        finally:
            slot.lock.release()

    def discard(self, account: ProviderAccount, product: str, token: str) -> bool:
        """Drop `token`, which the provider has refused, unless it was replaced already.

        False: it is kept, because new ones were refused as well, and a further one must wait.
        """
        slot = self._slot(account, product)
        # Without the lock: a fetch under way would block this, and brings a new token anyway.
        held = slot.held
        is_held = held is not None and held.token == token
        if is_held and boot_seconds() < slot.keep_until:
            return False
        slot.refused = token
        if is_held and slot.held is held:
            slot.held = None
        self._shared.remove(slot.label, token)
        return True

    def note_refused(self, account: ProviderAccount, product: str, token: str) -> None:
        """`token`, which is new and replaced a refused one, was refused as well.

        Each token obtained counts once, however many calls were under way with it.
        """
        slot = self._slot(account, product)
        # A provider may issue the same token again: each time one is obtained counts.
        if slot.refused_get == slot.gets:
            return
        slot.refused_get = slot.gets
        if len(self._in_doubt) >= SLOTS_MAX:
            self._in_doubt.clear()
        self._in_doubt[token] = slot
        slot.new_refused += 1
        if slot.new_refused > 1:
            pause_s = min(2.0 ** min(slot.new_refused - 2, 10), NEW_REFUSED_PAUSE_MAX_S)
            slot.keep_until = boot_seconds() + pause_s
            log.warning("tokens.new_one_refused", provider=account.provider, pause_s=pause_s)

    def note_accepted(self, token: str) -> None:
        """A call with `token` was accepted: its refusals had another reason.

        A refused token is replaced again, but not within NEW_REFUSED_KEPT_S.
        """
        if (slot := self._in_doubt.pop(token, None)) is not None:
            slot.new_refused = 0
            slot.keep_until = min(slot.keep_until, boot_seconds() + NEW_REFUSED_KEPT_S)

    def _renewed(self, slot: _Slot, fetch_token: FetchToken) -> str | Observation:
        """Needs the slot's lock: another process's token, a new one, or the old one for now."""
        give_up_at = boot_seconds() + WAIT_MAX_S
        while True:
            if (refusal := slot.paused()) is not None:
                return slot.usable() or refusal
            turn = self._shared.acquire_lock(slot.label)
            slot.adopt(self._shared.read(slot.label))
            if (token := slot.fresh()) is not None:
                self._shared.end_turn(slot.label, turn)
                return token
            if turn.mine:
                return self._fetched(slot, turn, fetch_token)
            if turn.failures:
                slot.pause(failures=turn.failures, pause_s=turn.left_s)
            elif slot.usable() is not None or boot_seconds() >= give_up_at:
                return slot.usable() or _not_sent("token_pending", retry_after_s=1.0)
            else:
                time.sleep(POLL_S)

    def _fetched(
        self, slot: _Slot, turn: _RefreshLock, fetch_token: FetchToken
    ) -> str | Observation:
        failures, pause_s = 0, 0.0
        try:
            # The lifetime starts at some moment of the call: count from before it.
            start = boot_seconds()
            outcome = fetch_token()
            _count(slot.label.provider, outcome, boot_seconds() - start)
            if isinstance(outcome, IssuedToken):
                slot.held = _Held.of(outcome, ends_at=start + min(outcome.lives_s, LIFE_MAX_S))
                slot.failures = 0
                slot.gets += 1
                self._shared.write(slot.label, slot.held)
                return outcome.token
            failures = slot.failures + 1
            pause_s = _pause_s(failures, outcome.retry_after_s)
            slot.refusal = Observation(Verdict.NOT_SENT, outcome.reason, failure=outcome.failure)
            slot.pause(failures=failures, pause_s=pause_s)
            return slot.usable() or replace(outcome, retry_after_s=pause_s)
        finally:
            self._shared.end_turn(slot.label, turn, failures=failures, pause_s=pause_s)

    def _slot(self, account: ProviderAccount, product: str) -> _Slot:
        label = _label(account, product)
        if (slot := self._slots.get(label)) is not None:
            return slot
        if len(self._slots) >= SLOTS_MAX:
            self._slots.clear()
        return self._slots.setdefault(label, _Slot(label))


@dataclass(frozen=True, slots=True)
class _RefreshLock:
    """Who may fetch a token: we, another, or nobody after a failure (for `left_s` more)."""

    mine: bool
    nonce: str = ""
    failures: int = 0
    left_s: float = 0.0


class _Shared:
    """What processes share through Redis. Without Redis, a process acts as if it were alone."""

    def __init__(self, redis: Redis, cipher: Cipher) -> None:
        self._redis = redis
        self._cipher = cipher

    def acquire_lock(self, label: _Label) -> _RefreshLock:
        nonce = secrets.token_hex(16)
        name = _turn_name(label)
        try:
            if self._redis.set(name, nonce, nx=True, px=TURN_MS):
                return _RefreshLock(mine=True, nonce=nonce)
            holder, left_ms = self._read_with_life(name)
        except RedisError:
            log.warning("tokens.redis_away")
            return _RefreshLock(mine=True)
        if not 0 < left_ms <= max(TURN_MS, ASKED_PAUSE_MAX_S * 1000):
            # It has just ended, or none of our processes set it: it must not block us for ever.
            return _RefreshLock(mine=True)
        failures = holder.removeprefix(_FAILED)
        if holder.startswith(_FAILED) and failures.isdecimal():
            return _RefreshLock(mine=False, failures=int(failures[:3]), left_s=left_ms / 1000)
        return _RefreshLock(mine=False)

    def end_turn(
        self, label: _Label, turn: _RefreshLock, *, failures: int = 0, pause_s: float = 0.0
    ) -> None:
        """Release the lock, or after a failure block everyone for `pause_s`."""
        if turn.nonce:
            new = f"{_FAILED}{failures}" if failures else ""
            self._swap(_turn_name(label), turn.nonce, new, keep_ms=max(1, int(pause_s * 1000)))

    def read(self, label: _Label) -> _Held | None:
        try:
            return self._unsealed(label, *self._read_with_life(label.name))
        except RedisError:
            return None

    def write(self, label: _Label, held: _Held) -> None:
        left_ms = int((held.ends_at - boot_seconds()) * 1000)
        plain = json.dumps({"owner": label.owner, "token": held.token, "lives_s": held.lives_s})
        if left_ms > 0:
            try:
                self._redis.set(label.name, self._cipher.encrypt(plain), px=left_ms)
            except RedisError:
                log.warning("tokens.redis_away")

    def remove(self, label: _Label, token: str) -> None:
        try:
            sealed, left_ms = self._read_with_life(label.name)
        except RedisError:
            return
        found = self._unsealed(label, sealed, left_ms)
        if found is not None and found.token == token:
            self._swap(label.name, sealed, "", keep_ms=1)

    def _unsealed(self, label: _Label, sealed: str, left_ms: int) -> _Held | None:
        try:
            found = json.loads(self._cipher.decrypt(sealed))
            if found["owner"] != label.owner:
                return None
            issued = IssuedToken(str(found["token"]), float(found["lives_s"]))
        except (SecretUnreadable, ValueError, KeyError, TypeError):
            return None
        left_s = min(left_ms / 1000, issued.lives_s)
        return _Held.of(issued, ends_at=boot_seconds() + left_s)

    def _read_with_life(self, name: str) -> tuple[str, int]:
        """The value ("" for none) and how many milliseconds it has left. Raises RedisError."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(name)
            pipe.pttl(name)
            value, left_ms = pipe.execute()
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
        return text, int(left_ms)

    def _swap(self, name: str, expected: str, new: str, *, keep_ms: int) -> None:
        try:
            self._redis.eval(_SWAP, 1, name, expected, new, str(keep_ms))
        except RedisError:
            log.warning("tokens.redis_away")


def _label(account: ProviderAccount, product: str) -> _Label:
    parts = (
        account.provider,
        str(account.id or "platform"),
        product,
        account.base_url,
        account.target_environment,
        account.version,
    )
    place = sha256(json.dumps(parts).encode()).hexdigest()[:32]
    secret = json.dumps((parts, sorted(account.credentials.items())))
    owner = sha256(secret.encode()).hexdigest()
    name = f"token:{account.provider}:{account.id or 'platform'}:{product}:{place}"
    return _Label(name, owner, account.provider)


def _count(provider: str, outcome: IssuedToken | Observation, took_s: float) -> None:
    verdict = Verdict.SUCCESSFUL if isinstance(outcome, IssuedToken) else outcome.verdict
    if isinstance(outcome, Observation) and outcome.is_unread:
        log.warning("provider.answer_unread", provider=provider, operation="token")
    metrics.provider_answers.labels(provider, "token", verdict).inc()
    metrics.provider_exchange_seconds.labels(provider, "token").observe(took_s)


def _turn_name(label: _Label) -> str:
    return f"{label.name}:turn"


def _not_sent(reason: str, *, retry_after_s: float | None = None) -> Observation:
    return Observation(Verdict.NOT_SENT, reason, retry_after_s=retry_after_s)


def _pause_s(failures: int, asked_s: float | None) -> float:
    """1, 2, 4 … 10 seconds after failures in a row, or what the provider asked for if more."""
    grown_s = min(FAILURE_PAUSE_MAX_S, 2.0 ** min(failures - 1, 10))
    return max(grown_s, min(asked_s or 0.0, ASKED_PAUSE_MAX_S))
