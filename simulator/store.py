"""All state that survives a SIGKILL, in one file."""

from simulator.accounts import Accounts
from simulator.clock import Clock
from simulator.database import Database
from simulator.evidence import Evidence
from simulator.ledger import Ledger

IN_MEMORY = ":memory:"


class Store:
    """The parts of the store, over one database."""

    def __init__(self, path: str = IN_MEMORY) -> None:
        self._database = Database(path)
        self.clock = Clock(self._saved_offset())
        self.accounts = Accounts(self._database)
        self.ledger = Ledger(self._database)
        if not self.ledger.generation:
            self.ledger.start_generation(self.clock.now())
        self.evidence = Evidence(self._database, lambda: self.ledger.generation)

    def advance_clock(self, seconds: float) -> None:
        """Move the clock ahead and remember it: time must not go back after a restart."""
        self.clock.advance(seconds)
        self._database.insert("INSERT OR REPLACE INTO clock VALUES (1, ?)", (self.clock.offset_s,))

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _saved_offset(self) -> float:
        row = self._database.row("SELECT offset_s FROM clock")
        return float(row["offset_s"]) if row else 0.0
