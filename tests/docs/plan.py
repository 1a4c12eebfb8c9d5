"""How the pages' commands are run: what is replaced, what isn't run, and why.

Everything in a fenced block is run unless NOT_RUN or NOT_CODE names it. A line of these tables
that matches nothing any more fails the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Rule:
    """`page` "" means all pages; `pattern` is searched in a command with its continuation lines."""

    page: str
    pattern: str
    meaning: str


# Pages whose blocks another test runs.
ELSEWHERE: Final = {"docs/systemd.md": "tests/deploy/test_systemd_page.py"}

# (page, pattern) → reason. A command that matches one of these is not run.
NOT_RUN: Final = (
    Rule("", r"^make ", "CI calls these verbs, and tests/devstack runs what is behind them"),
    Rule("", r"^docker\b", "needs Docker"),
    Rule("", r"^(gunicorn|celery) ", "a server that stays: the stack of these tests runs the same"),
    Rule("", r"^flask recovery ", "tests/chaos/test_drill.py goes that way"),
    Rule("", r"deploy/backup/", "tests/chaos/test_drill.py runs both scripts"),
    Rule("docs/cli.md", r"^flask invariants resolve", "tests/storage/test_invariants.py does it"),
    Rule("docs/systemd.md", r"", "tests/deploy/test_systemd_page.py runs the whole page"),
    Rule(
        "docs/backup.md",
        r"^(kubectl|sudo) ",
        "tests/deploy/test_backups_run.py runs what they start",
    ),
    Rule("docs/deploy.md", r"^(kubectl|cosign|sudo) ", "needs a cluster, a registry or a machine"),
    Rule("docs/operations.md", r"^(kubectl|sudo) ", "needs a cluster or a machine"),
    Rule("docs/runbooks/webhook-lag.md", r"^psql ", "tests/storage/test_gauges.py runs its query"),
    Rule(
        "docs/webhooks.md",
        r"^python3 receive\.py ",
        "a server that stays: tests/docs/test_receivers.py runs it",
    ),
    Rule("docs/adding-a-provider.md", r"^pytest ", "a part of this very test run"),
    Rule(
        "docs/cli.md",
        r"^flask providers set .*mtnuganda",
        "asks on a terminal: tests/commands/test_providers.py does it",
    ),
    Rule(
        "docs/mutants.md",
        r"-m tests.simulation --mutants$",
        "takes minutes: tests/simulation plays each mutant at the seed of its row",
    ),
    Rule("docs/pairs.md", r"-m tests.pairs$", "takes minutes: tests/pairs plays the same"),
    Rule(
        "docs/reliability.md",
        r"-m chaos.planned_pairs ",
        "of runs that take minutes: tests/chaos/test_figures.py sums up some",
    ),
    Rule("docs/cli.md", r"^flask providers check acme mtn_momo$", "asks MTN itself"),
    Rule("docs/audit.md", r"--heads /mnt/", "tests/commands/test_audit.py keeps such a file"),
)

# (page, pattern) → reason. Blocks without a language that hold no commands.
NOT_CODE: Final = (Rule("docs/cli.md", r"^mara_\(live", "the pattern for a secret scanner"),)

# (page, pattern) → the text that replaces it in the test.
INSTEAD: Final = (
    Rule("", r"\.venv/bin/python", "python"),
    # The tests' PostgreSQL does not fsync, which doctor reports as a problem.
    Rule("", r"^(flask doctor.*)$", r"\1 || [ $? = 1 ]"),
    Rule("docs/idempotency.md", r"load.py 1000 8", "load.py 40 4"),
    Rule("docs/cli.md", r"flask tenants create acme(?= .*--json)", "flask tenants create acme-2"),
    # The tests' stack has only a sandbox.
    Rule("docs/cli.md", r"(flask providers check acme) --mode live", r"\1 --mode test"),
    Rule("docs/cli.md", r"01a209ad-4164-7047-9850-453984927403", "$A_PENDING_PAYMENT"),
    Rule("docs/cli.md", r"mara_live_aP1cCV6BrT", "$A_KEY"),
    Rule("docs/cli.md", r"acme 01a20cc5-566e-76e5-a633-d037c429b2d2", "other $AN_ENDPOINT"),
    # A reader waits for its line; here, until it listens.
    Rule(
        "docs/simulator.md",
        r"^(python -m simulator [^&]*)$",
        r"\1 & until (: < /dev/tcp/127.0.0.1/9010) 2> /dev/null; do sleep 0.1; done",
    ),
    Rule("docs/simulator.md", r"\b9010\b", "$A_FREE_PORT"),
)
