"""A worker that runs on command: each line of input is a number of passes over the due work.

The process does nothing else, so that what a pass costs the database can be counted and timed. It
answers each line with the seconds that each pass took, as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from payments_app import create_app
from payments_app.worker.tasks import process_due


def main() -> None:
    """Read how many passes to run, and run them."""
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
