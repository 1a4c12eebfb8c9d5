"""`python -m devstack flask …` runs this: flask, under the command's name as it was typed.

So usage lines, examples and hints name a command that the reader can run.
"""

from __future__ import annotations

import os
from typing import Final

from flask.cli import FlaskGroup

TYPED_AS: Final = "MARAMOJA_FLASK_TYPED_AS"


if __name__ == "__main__":
    FlaskGroup(name="flask").main(prog_name=os.environ.get(TYPED_AS, "flask"))
