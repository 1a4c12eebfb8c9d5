"""What `python -m devstack flask …` runs: flask, under the name that was typed.

Usage lines, examples and hints then name a command that works where they are read.
"""

from __future__ import annotations

import os
from typing import Final

from flask.cli import FlaskGroup

TYPED_AS: Final = "MARAMOJA_FLASK_TYPED_AS"


if __name__ == "__main__":
    FlaskGroup(name="flask").main(prog_name=os.environ.get(TYPED_AS, "flask"))
