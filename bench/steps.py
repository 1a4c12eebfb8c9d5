"""A worker that works when it is told: one process, one look at what is due for each line of input.

Nothing else goes on in it, so that what a look costs the database can be counted and timed. Answers
each line with the seconds that the looks took, as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from payments_app import create_app
from payments_app.worker.tasks import process_due


def main() -> None:
    """Read how many looks to take, and take them."""
    create_app()
    print("ready", flush=True)
    for line in sys.stdin:
        took = []
        for _ in range(int(line)):
            started = time.perf_counter()
            process_due()
            took.append(time.perf_counter() - started)
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
