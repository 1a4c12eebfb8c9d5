"""Which account's payments a process claims next: rules that need no database."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from uuid import UUID, uuid4

from payments_app.payments.account_slots import ACCOUNT_LIMITS, AccountSlots, step_of
from payments_app.payments.claims import Lane, Queue
from payments_app.payments.states import Step
from payments_app.providers.contract import AccountKey, Observation, Verdict

PLATFORM = AccountKey("mtn_momo", None)
TENANT, OTHER = uuid4(), uuid4()
FIRST = ACCOUNT_LIMITS.first
QUICK = Observation(Verdict.PENDING, "pending", http_status=200, elapsed_s=0.05)


def is_open(_account: AccountKey, _step: Step) -> bool:
    return True


def queue(
    lane: Lane = Lane.SUBMIT, *, account: AccountKey = PLATFORM, tenant: UUID = TENANT
) -> Queue:
    return Queue(account, tenant, lane)


def own_account() -> AccountKey:
    return AccountKey("mtn_momo", uuid4())


def hold(slots: AccountSlots, shares: dict[Queue, int]) -> None:
    """Take the slots of these queues, without any answer."""
    for one, share in shares.items():
        for _ in range(share):
            slots.take(one.account, step_of(one))


def test_a_silent_account_holds_its_own_slots_and_nobody_elses() -> None:
    slots, silent, other = AccountSlots(), own_account(), own_account()
    waiting = {queue(account=silent): 100, queue(Lane.CHECK, account=silent): 100}
    hold(slots, slots.share_out(96, waiting, is_open))
    assert slots.share_out(96, waiting, is_open) == {}
    mine = {queue(account=other): 2}
    assert slots.share_out(96, waiting | mine, is_open) == mine


def test_a_quick_account_gets_more_slots_and_a_slow_one_fewer_within_bounds() -> None:
    slots, account = AccountSlots(), own_account()
    waiting = {queue(account=account): 100, queue(Lane.CHECK, account=account): 100}

    def at_once() -> int:
        return sum(slots.share_out(96, waiting, is_open).values())

    assert at_once() == FIRST
    for _ in range(2000):
        slots.learn(account, QUICK, took_s=0.1)
    assert at_once() == ACCOUNT_LIMITS.most
    for _ in range(30):
        slots.learn(account, QUICK, took_s=ACCOUNT_LIMITS.slow_s + 1)
    assert at_once() == ACCOUNT_LIMITS.least


def test_what_never_left_says_nothing_of_an_account_unless_it_took_long() -> None:
    """While one exchange waits 30 s for a token, the others give up after 3 s each."""
    slots, account = AccountSlots(), own_account()
    waiting = {queue(account=account): 100, queue(Lane.CHECK, account=account): 100}
    never_left = Observation(Verdict.NOT_SENT, "token_pending")
    for _ in range(2000):
        slots.learn(account, never_left, took_s=3.0)
    assert sum(slots.share_out(96, waiting, is_open).values()) == FIRST
    for _ in range(30):
        slots.learn(account, never_left, took_s=30.0)
    assert sum(slots.share_out(96, waiting, is_open).values()) == ACCOUNT_LIMITS.least


def test_a_backlog_of_one_step_leaves_slots_to_the_other() -> None:
    for first, then in ((Lane.SUBMIT, Lane.CHECK), (Lane.CHECK, Lane.SUBMIT)):
        slots = AccountSlots()
        backlog = {queue(first): 1000}
        hold(slots, slots.share_out(96, backlog, is_open))
        assert slots.share_out(96, backlog, is_open) == {}
        later = slots.share_out(96, backlog | {queue(then): 1000}, is_open)
        assert later.keys() == {queue(then)}
        assert sum(later.values()) >= FIRST // 4


def test_of_one_slot_at_a_time_submissions_and_questions_get_every_second() -> None:
    slots = AccountSlots()
    waiting = {queue(): 1000, queue(Lane.CHECK): 1000}
    served: Counter[Queue] = Counter()
    for _ in range(20):
        served.update(slots.share_out(1, waiting, is_open))
    assert served == {queue(): 10, queue(Lane.CHECK): 10}


def test_a_tenant_waits_behind_no_other_tenants_backlog() -> None:
    slots = AccountSlots()
    waiting = {queue(): 10_000, queue(tenant=OTHER): 3}
    assert slots.share_out(6, waiting, is_open) == {queue(): 3, queue(tenant=OTHER): 3}


def test_accounts_take_turns_however_many_tenants_one_has() -> None:
    slots, own = AccountSlots(), own_account()
    waiting = {queue(tenant=uuid4()): 5 for _ in range(50)} | {queue(account=own): 5}
    assert slots.share_out(6, waiting, is_open)[queue(account=own)] == 3


def test_a_question_that_was_asked_for_goes_first() -> None:
    slots = AccountSlots()
    waiting = {queue(Lane.CHECK): 100, queue(Lane.HINTED, tenant=OTHER): 2}
    hinted = queue(Lane.HINTED, tenant=OTHER)
    assert slots.share_out(2, waiting, is_open) == {hinted: 2}


def test_what_may_not_leave_takes_no_slot() -> None:
    slots = AccountSlots()
    waiting = {queue(): 5, queue(Lane.CHECK): 5}
    shares = slots.share_out(96, waiting, lambda _, step: step is Step.SUBMIT)
    assert shares == {queue(): 5}


def test_a_slot_is_free_again_whatever_came_of_it() -> None:
    slots, waiting = AccountSlots(), {queue(): 100}
    full = slots.share_out(96, waiting, is_open)
    hold(slots, full)
    with ExitStack() as exchanges:
        for _ in range(full[queue()]):
            exchanges.enter_context(slots.held(PLATFORM, Step.SUBMIT))
        exchanges.callback(lambda: None)
    assert slots.share_out(96, waiting, is_open) == full
