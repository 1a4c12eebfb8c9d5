"""A short run on the real stack. It meets too few faults to count, but must find nothing wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.cases import Verdict
from chaos.plan import make_plan
from chaos.report import as_markdown
from chaos.run import run_plan


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_short_run_is_clean(tmp_path: Path) -> None:
    plan = make_plan(11, seconds=15)
    said: list[str] = []
    result = run_plan(plan, tmp_path, said.append, overtime_max_s=0)
    assert result.findings == [], as_markdown(result)
    assert result.verdicts[Verdict.OK] == len(result.cases) > 0
    assert [met.error for met in result.met if met.error] == []
    assert sum(result.provider_hits.values()) > 0
    assert any(line.endswith("quiet") or "requests" in line for line in said)
    for name in ("plan.json", "history.jsonl", "evidence.json", "report.md", "log/api.log"):
        assert (tmp_path / name).stat().st_size > 0
