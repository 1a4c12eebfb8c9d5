"""One clock for a whole run. It stands still unless the schedule moves it.

The database uses it too: a simulation's database has a schema `sim` before pg_catalog in the
search path, and its clock_timestamp() and statement_timestamp() read a sequence, whose changes
every session sees at once. So leases end and payments fall due by the engine's own statements,
and a run doesn't depend on how fast the machine is. Each call of clock_timestamp() is a
microsecond later than the last, so that no two rows are due at the same instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from unittest.mock import patch

import psycopg

from payments_app.kernel import clock as kernel_clock

MICROSECONDS: Final = 1_000_000
_START: Final = datetime(2031, 3, 1, 9, 0, tzinfo=UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_INSTALL: Final = """
CREATE SCHEMA sim;
CREATE SEQUENCE sim.clock;
GRANT USAGE ON SCHEMA sim TO PUBLIC;
GRANT SELECT, USAGE ON SEQUENCE sim.clock TO PUBLIC;
CREATE FUNCTION sim.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE
    AS $$ SELECT timestamptz 'epoch' + last_value * interval '1 microsecond' FROM sim.clock $$;
CREATE FUNCTION sim.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS $$ SELECT timestamptz 'epoch' + nextval('sim.clock') * interval '1 microsecond' $$;
DO $$ DECLARE place record; BEGIN
    FOR place IN
        SELECT d.adrelid::regclass AS relation, a.attname
        FROM pg_attrdef d JOIN pg_attribute a ON (a.attrelid, a.attnum) = (d.adrelid, d.adnum)
        WHERE pg_get_expr(d.adbin, d.adrelid) = 'clock_timestamp()'
    LOOP
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT sim.clock_timestamp()',
                       place.relation, place.attname);
    END LOOP;
    -- Our functions name their schemas, with the real clock in the first of them.
    FOR place IN
        SELECT oid::regprocedure AS function FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
          AND prosrc ~ '\\m(clock|statement)_timestamp\\M'
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = sim, pg_catalog, public, pg_temp',
                       place.function);
    END LOOP;
END $$
"""
# For each session of the gateway: the engine sets its own search path when it connects.
SEARCH_PATH: Final = "sim, pg_catalog, public"


def install(administrator: psycopg.Connection) -> None:
    """Install the clock in this database. Sessions with SEARCH_PATH read it."""
    administrator.execute(_INSTALL)


class VirtualClock:
    """Counts microseconds since 1970. Only the thread that runs now may use it."""

    def __init__(self, administrator: psycopg.Connection) -> None:
        self._administrator = administrator
        self.microseconds = 0
        self._told = 0
        self.restart()

    def restart(self) -> None:
        """Set the clock to the instant at which every run begins."""
        self.microseconds = (_START - _EPOCH) // timedelta(microseconds=1)
        self._told = 0
        self.tell()

    def now(self) -> datetime:
        """The current instant, with its time zone."""
        return _EPOCH + timedelta(microseconds=self.microseconds)

    def in_database(self) -> datetime:
        """The database's instant: each call of its clock moved it on by a microsecond."""
        row = self._administrator.execute("SELECT sim.statement_timestamp()").fetchone()
        assert row is not None
        return max(self.now(), row[0])

    def seconds(self) -> float:
        """The value that the kernel's boot_seconds() returns."""
        return self.microseconds / MICROSECONDS

    def since_start_s(self) -> float:
        """Seconds since the run began, for the trace."""
        return self.seconds() - (_START - _EPOCH).total_seconds()

    def spend(self, seconds: float) -> None:
        """Add a call's duration; the database gets it when the next transaction begins."""
        self.microseconds += round(seconds * MICROSECONDS)

    def leap(self, seconds: float) -> None:
        """Move the clock, also for transactions that are open."""
        self.spend(seconds)
        self.tell()

    def leap_to(self, instant: datetime) -> None:
        """Move the clock to an instant; it never goes back."""
        self.leap(max((instant - self.now()).total_seconds(), 0.0))

    def tell(self) -> None:
        """Write the time to the database."""
        if self._told != self.microseconds:
            self._administrator.execute("SELECT setval('sim.clock', %s)", [self.microseconds])
            self._told = self.microseconds


class _Time:
    """Replaces the module `time` in kernel.clock."""

    CLOCK_BOOTTIME: Final = 7

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def clock_gettime(self, _which: int) -> float:
        return self._clock.seconds()


class _Datetime:
    """Replaces the class `datetime` in kernel.clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def now(self, _zone: tzinfo) -> datetime:
        return self._clock.now()


@contextmanager
def ruling(clock: VirtualClock) -> Iterator[None]:
    """Make the kernel's one source of time read this clock. Only time is replaced here."""
    with (
        patch.object(kernel_clock, "time", _Time(clock)),
        patch.object(kernel_clock, "datetime", _Datetime(clock)),
    ):
        yield
