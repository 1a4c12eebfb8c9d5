"""The restore of a backup on the real stack: no payment is charged again or reported wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.drill import run_drill


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_restored_backup_charges_nothing_again(tmp_path: Path) -> None:
    result = run_drill(tmp_path, print, seconds=4)
    assert result.findings == [], result.summary()
    # Else there would be nothing to check.
    assert result.in_backup > 0
    assert result.charged > 0, "no key that the backup had lost was charged"
