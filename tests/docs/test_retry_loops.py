"""The three loops of docs/idempotency.md, with a proxy that loses, delays and refuses requests.

Each must charge once, whatever fails, and must stop where a retry is wrong.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tests.docs.conftest import NEVER_ANSWERS, Site
from tests.docs.misbehaving import MisbehavingProxy, Move
from tests.docs.pages import blocks_of
from tests.docs.shell import PATH

PAGE = "docs/idempotency.md"
LOOPS: Mapping[str, list[str]] = {
    "pay.py": [sys.executable],
    "pay.mjs": ["node"],
    "pay.sh": ["bash"],
}
NEEDS = {"pay.py": [], "pay.mjs": ["node"], "pay.sh": ["bash", "curl"]}
# The page's limits are minutes; here they are seconds. A text that isn't found fails the test.
# An answer that comes later than the time limit of a request is one more request: on a slow machine
# a second is not enough.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 0.4
# How much longer than the loop says a pause may be. A busy machine may prolong some, but not all.
SLACK_S = 1.5
# A loop says the time until the next try in tenths of a second, or in milliseconds.
SAID = re.compile(r"trying again in ([\d.]+) (m?)s$", re.MULTILINE)
ROUNDED_S = 0.05
SHORTER: Mapping[str, dict[str, str]] = {
    "pay.py": {
        "TIMEOUT_S = 20": "TIMEOUT_S = 5",
        "FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30": "FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 0.4",
        "    wait = 1.0\n": "    wait = 0.2\n",
    },
    "pay.mjs": {
        "TIMEOUT_MS = 20_000": "TIMEOUT_MS = 5_000",
        "FIRST_WAIT_MS = 500": "FIRST_WAIT_MS = 100",
        "LONGEST_WAIT_MS = 30_000": "LONGEST_WAIT_MS = 400",
        "  let wait = 1000;\n": "  let wait = 200;\n",
    },
    "pay.sh": {
        "timeout_s=20": "timeout_s=5",
        "first_wait_ms=500": "first_wait_ms=100",
        "longest_wait_ms=30000": "longest_wait_ms=400",
        "pause=$((pause < 16 ? pause * 2 : 30))": "pause=0.4",
    },
}
GIVE_UP = {
    "pay.py": {"GIVE_UP_S = 120": "GIVE_UP_S = 8"},
    "pay.mjs": {"GIVE_UP_MS = 120_000": "GIVE_UP_MS = 8_000"},
    "pay.sh": {"give_up_s=120": "give_up_s=8"},
}
FOLLOW = {
    "pay.py": {"FOLLOW_S = 600": "FOLLOW_S = 1"},
    "pay.mjs": {"FOLLOW_MS = 600_000": "FOLLOW_MS = 1_000"},
    "pay.sh": {"follow_s=600": "follow_s=1"},
}
PAYER, REJECTING_PAYER = "256772123456", "46733123451"
IN_PROGRESS = "idempotency_key_in_progress"
TROUBLE = [
    *[Move("refuse")] * 3,
    Move("lose"),
    Move("answer", 503, "temporarily_unavailable", retry_after=0),
    Move("answer", 429, "rate_limited", retry_after=1),
    Move("hang"),
    Move("answer", 409, IN_PROGRESS, retry_after=1),
    Move("cut"),
    Move("answer", 502),
    Move("answer", 504),
    Move("answer", 500, "internal_error"),
]
TROUBLE_ASKING = [
    Move("answer", 503, retry_after=0),
    Move("refuse"),
    Move("answer", 429, "rate_limited", retry_after=1),
    Move("cut"),
]
FINAL_ANSWERS = [
    (400, "idempotency_key_invalid"),
    (401, "unauthenticated"),
    (403, "tenant_suspended"),
    (404, "not_found"),
    (405, "method_not_allowed"),
    (409, "external_id_taken"),
    (413, "body_too_large"),
    (415, "unsupported_media_type"),
    (422, "validation_failed"),
    (422, "idempotency_key_reused"),
]


def tenant_of(name: str) -> str:
    return f"loop-{name.partition('.')[2]}"


@dataclass
class Loop:
    """One loop in a folder of its own, with a tenant and a proxy of its own."""

    name: str
    site: Site
    folder: Path
    proxy: MisbehavingProxy

    @property
    def tenant(self) -> str:
        return tenant_of(self.name)

    def start(self, order: str, payer: str = PAYER) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*LOOPS[self.name], self.name, order, "12.50", "EUR", payer],
            cwd=self.folder,
            env={
                **self.site.environment(self.tenant),
                "MARAMOJA_URL": self.proxy.url,
                "PATH": PATH,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, order: str, payer: str = PAYER) -> tuple[int, str]:
        """Return the exit code and the output, or the errors if there is no output."""
        process = self.start(order, payer)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip() or err

    def shorten(self, changes: Mapping[str, dict[str, str]]) -> None:
        path = self.folder / self.name
        text = path.read_text()
        for long, short in changes[self.name].items():
            assert text.count(long) == 1, f"{PAGE}: {self.name} has no {long!r} any more"
            text = text.replace(long, short)
        path.write_text(text)

    def payment_of(self, order: str) -> dict[str, object]:
        """The one payment of this order, read without the proxy."""
        found = self.site.get("", tenant=self.tenant, external_id=order)["data"]
        assert len(found) == 1
        return dict(found[0])


@pytest.fixture
def in_each_loop(site: Site, tmp_path: Path) -> Callable[[Callable[[Loop], None]], None]:
    """Check the three loops at the same time, each with a folder and a proxy of its own."""

    def check_one(name: str, check: Callable[[Loop], None]) -> None:
        text = next(block.text for block in blocks_of(PAGE) if block.file_name == name)
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(text)
        with MisbehavingProxy(site.stack.api_url) as proxy:
            loop = Loop(name, site, folder, proxy)
            loop.shorten(SHORTER)
            check(loop)

    def check_all(check: Callable[[Loop], None]) -> None:
        runnable = [name for name, needs in NEEDS.items() if all(map(shutil.which, needs))]
        for name in runnable:
            site.key_of(tenant_of(name))
        with ThreadPoolExecutor(len(runnable)) as pool:
            running = {name: pool.submit(check_one, name, check) for name in runnable}
        failed = {name: done.exception() for name, done in running.items() if done.exception()}
        for name, error in failed.items():
            error.add_note(f"in {name} of {PAGE}")
        if failed:
            raise ExceptionGroup("loops that went wrong", list(failed.values()))
        if left_out := set(NEEDS) - set(runnable):
            pytest.skip(f"right so far; what {sorted(left_out)} needs is not on this machine")

    return check_all


InEachLoop = Callable[[Callable[[Loop], None]], None]


def test_the_payer_is_charged_once_through_all_trouble(in_each_loop: InEachLoop) -> None:
    def check(loop: Loop) -> None:
        loop.proxy.posts, loop.proxy.gets = list(TROUBLE), list(TROUBLE_ASKING)
        code, said = loop.run("trouble-1")
        payment = loop.payment_of("trouble-1")
        assert (code, said) == (0, f"SUCCESSFUL {payment['id']}")
        posts = loop.proxy.sent("POST")
        assert len(posts) == len(TROUBLE) + 1
        assert len({(post.key, post.body, post.path) for post in posts}) == 1
        answers = [post.forwarded["id"] for post in posts if post.forwarded is not None]
        assert answers == [payment["id"]] * 4
        assert loop.site.movements(payment) == 1

    in_each_loop(check)


def test_pauses_grow_and_what_the_server_asks_for_is_kept(in_each_loop: InEachLoop) -> None:
    def check(loop: Loop) -> None:
        asked_s = 1
        loop.proxy.posts = [
            *[Move("refuse")] * 5,
            Move("answer", 429, "rate_limited", retry_after=asked_s),
        ]
        process = loop.start("pauses-1")
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
        said = [float(time) / (1000 if milli else 1) for time, milli in SAID.findall(told)]
        at = [seen.at for seen in loop.proxy.sent("POST")]
        pauses = [later - earlier for earlier, later in pairwise(at)]
        for number, pause in enumerate(pauses[:5]):
            longest = min(FIRST_WAIT_S * 2**number, LONGEST_WAIT_S)
            assert longest / 2 - ROUNDED_S <= said[number] <= longest + ROUNDED_S, (number, told)
            assert pause >= max(longest / 2, said[number] - ROUNDED_S), (number, pauses, told)
        longer = [pause - wait for pause, wait in zip(pauses[:5], said[:5], strict=True)]
        assert min(longer) <= SLACK_S, (pauses, told)
        assert pauses[5] >= asked_s

    in_each_loop(check)


@pytest.mark.parametrize("before", [[], [Move("refuse")]], ids=["the first", "a retry"])
def test_it_stops_where_a_retry_would_not_help(
    in_each_loop: InEachLoop, before: list[Move]
) -> None:
    def check(loop: Loop) -> None:
        for status, code in FINAL_ANSWERS if not before else FINAL_ANSWERS[-1:]:
            loop.proxy.seen.clear()
            loop.proxy.posts = [*before, Move("answer", status, code)]
            exit_code, said = loop.run("refused-1")
            assert exit_code == 2, (status, said)
            assert str(status) in said
            assert len(loop.proxy.sent("POST")) == len(before) + 1

    in_each_loop(check)


def test_without_an_answer_it_says_pending_and_the_next_run_finishes(
    in_each_loop: InEachLoop,
) -> None:
    def check(loop: Loop) -> None:
        loop.shorten(GIVE_UP)
        loop.proxy.posts = [Move("lose"), *[Move("answer", 503)] * 50]
        code, said = loop.run("later-1")
        assert (code, said.split()) == (3, ["PENDING"])
        assert len(loop.proxy.sent("POST")) > 3
        loop.proxy.posts = []
        payment = loop.payment_of("later-1")
        assert loop.run("later-1") == (0, f"SUCCESSFUL {payment['id']}")
        assert len({seen.key for seen in loop.proxy.sent("POST")}) == 1
        assert loop.site.movements(payment) == 1

    in_each_loop(check)


def test_killed_after_sending_the_next_run_pays_nothing_twice(in_each_loop: InEachLoop) -> None:
    def check(loop: Loop) -> None:
        loop.proxy.posts = [Move("hang")]
        process = loop.start("killed-1")
        _until(lambda: bool(loop.proxy.seen))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        code, said = loop.run("killed-1")
        payment = loop.payment_of("killed-1")
        assert (code, said) == (0, f"SUCCESSFUL {payment['id']}")
        assert len({seen.key for seen in loop.proxy.sent("POST")}) == 1
        assert loop.site.movements(payment) == 1

    in_each_loop(check)


def test_two_runs_at_once_have_one_key(in_each_loop: InEachLoop) -> None:
    def check(loop: Loop) -> None:
        both = [loop.start("twice-1"), loop.start("twice-1")]
        said = {process.communicate(timeout=60)[0].strip() for process in both}
        assert said == {f"SUCCESSFUL {loop.payment_of('twice-1')['id']}"}
        assert len({seen.key for seen in loop.proxy.sent("POST")}) == 1

    in_each_loop(check)


def test_a_failed_payment_is_told_and_stays_failed(in_each_loop: InEachLoop) -> None:
    def check(loop: Loop) -> None:
        assert loop.run("rejected-1", REJECTING_PAYER)[0] == 1
        assert loop.run("rejected-1", REJECTING_PAYER)[0] == 1
        assert loop.site.movements(loop.payment_of("rejected-1")) == 0

    in_each_loop(check)


def test_a_payment_that_does_not_end_is_pending_not_failed(in_each_loop: InEachLoop) -> None:
    def check(loop: Loop) -> None:
        loop.shorten(FOLLOW)
        code, said = loop.run("stuck-1", NEVER_ANSWERS)
        assert (code, said) == (3, f"PENDING {loop.payment_of('stuck-1')['id']}")

    in_each_loop(check)


def test_an_expired_key_leads_to_its_payment(in_each_loop: InEachLoop) -> None:
    def check(loop: Loop) -> None:
        first = loop.run("expired-1")
        expire(loop.site, loop.proxy.sent("POST")[0].key)
        payment = loop.payment_of("expired-1")
        assert loop.run("expired-1") == first == (0, f"SUCCESSFUL {payment['id']}")

    in_each_loop(check)


def expire(site: Site, key: str | None) -> None:
    """Make the key expired, as after IDEMPOTENCY_TTL_HOURS."""
    assert key is not None
    with psycopg.connect(site.stack.administrator_url) as connection:
        changed = connection.execute(
            "UPDATE idempotency_keys SET expires_at = now() - interval '1 second' WHERE key = %s",
            [UUID(key)],
        )
        assert changed.rowcount == 1


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
