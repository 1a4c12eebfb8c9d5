"""One run from its plan to its report: start, inject faults, recover, wait, gather, judge."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Final

import psycopg

from chaos.cases import Verdict, sort_by_key
from chaos.clients import Crowd
from chaos.evidence import Evidence, Sources, Window, gather
from chaos.fault_injector import FaultInjector, Met
from chaos.history import History
from chaos.invariants import judge_all
from chaos.listener import Listener, listening
from chaos.plan import TENANTS, Plan
from chaos.process_faults import POSTGRES
from chaos.provider import ProviderAdmin, Storm
from chaos.report import Result, as_markdown
from chaos.scripts import SILENT_PAYER, masked
from chaos.stage import Stage, set_stage
from chaos.verdicts import judge_case

Say = Callable[[str], None]

# After everything is repaired, a payment that is still open after this long is stuck.
HEAL_MAX_S: Final = 120.0
PROGRESS_S: Final = 3.0
# How much longer a run may take until every planned fault was applied.
OVERTIME_MAX_S: Final = 90.0
_POLL_S: Final = 0.25
# Log events of fencing: a stale write, a lost lease, a contradicted amount.
FENCES: Final = ("payment.zombie_write", "payment.lease_lost", "payment.amount_contradicted")
# Keys that clients use after the first steps; locks without a holder are planted for them in Redis.
_AHEAD_FROM_STEP: Final = 25


@dataclass(frozen=True, slots=True)
class _Scene:
    """The parts of a run in progress."""

    stage: Stage
    plan: Plan
    history: History
    storm: Storm
    nemesis: FaultInjector
    crowd: Crowd
    sources: Sources
    listener: Listener
    say: Say


def run_plan(
    plan: Plan, directory: Path, say: Say, *, overtime_max_s: float = OVERTIME_MAX_S
) -> Result:
    """Run the plan; its files are in `directory`, which is emptied first."""
    shutil.rmtree(directory, ignore_errors=True)
    clocks = directory / "clocks"
    clocks.mkdir(parents=True)
    (directory / "plan.json").write_text(plan.as_json(), encoding="utf-8")
    say(f"seed {plan.seed}, {plan.seconds:.0f} s, plan {plan.digest()}: starting everything")
    with (
        History(directory / "history.jsonl") as history,
        listening(Random(f"{plan.seed}/listener")) as listener,
        set_stage(plan, clocks) as stage,
    ):
        scene = _scene(stage, plan, history, listener, say)
        try:
            _disturb(scene, overtime_max_s)
            healed_s = _heal(scene)
            evidence = _gather(scene)
            # The production command must find no violation either; it exits with 1 if it does.
            stage.stack.flask("invariants", "check")
            hits = scene.storm.hits(scene.sources.provider.rows("requests"))
            fenced = _fences(stage)
        finally:
            _keep_logs(stage, directory / "log")
    (directory / "evidence.json").write_text(json.dumps(asdict(evidence)), encoding="utf-8")
    result = _judge(plan, evidence, scene.nemesis.met, hits=hits, healed_s=healed_s, fenced=fenced)
    pairs = json.dumps(dict(result.pairs), ensure_ascii=False)
    (directory / "pairs.json").write_text(pairs, encoding="utf-8")
    (directory / "report.md").write_text(as_markdown(result), encoding="utf-8")
    return result


def _scene(stage: Stage, plan: Plan, history: History, listener: Listener, say: Say) -> _Scene:
    stack = stage.stack
    with ThreadPoolExecutor(len(TENANTS)) as pool:
        keys = dict(zip(TENANTS, pool.map(stack.issue_key, TENANTS), strict=True))
    listener.add_endpoints(stack.api_url, keys)
    admin = ProviderAdmin(stack.simulator_url)
    scripted = [fault for pair in plan.pairs for fault in pair.faults]
    storm = Storm(admin, plan.weather, scripted)
    return _Scene(
        stage=stage,
        plan=plan,
        history=history,
        storm=storm,
        nemesis=FaultInjector(stage, storm, plan.disasters, _keys_ahead(plan)),
        crowd=Crowd(plan.scripts, url=stack.api_url, keys=keys, history=history),
        sources=Sources(stack.administrator_url, stack.api_url, keys, admin),
        listener=listener,
        say=say,
    )


def _disturb(scene: _Scene, overtime_max_s: float) -> None:
    scene.storm.begin()
    scene.nemesis.begin()
    scene.crowd.start()
    started = time.monotonic()
    must_end = started + scene.plan.seconds
    # On a slow machine some faults have not been applied yet when the time is over.
    may_end = must_end + overtime_max_s
    while (now := time.monotonic()) < must_end or (now < may_end and not scene.storm.is_spent()):
        time.sleep(PROGRESS_S)
        scene.say(_progress(scene, time.monotonic() - started))
        if scene.crowd.failures:
            raise RuntimeError("a client of the harness broke") from scene.crowd.failures[0]
    scene.crowd.finish()


def _heal(scene: _Scene) -> float:
    """Repair everything, wait until every payment that can be final is; return the seconds."""
    scene.say("healing")
    scene.nemesis.end()
    scene.storm.end()
    scene.listener.calm()
    started = time.monotonic()
    deadline, said_at = started + HEAL_MAX_S, started
    scene.crowd.leave(within_s=HEAL_MAX_S)
    while (left := _open_payments(scene)) and time.monotonic() < deadline:
        if time.monotonic() - said_at > PROGRESS_S:
            said_at = time.monotonic()
            scene.say(f"healing for {said_at - started:3.0f} s: {left} payments open")
        time.sleep(_POLL_S)
    healed_s = time.monotonic() - started
    while _untold(scene) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return healed_s


def _gather(scene: _Scene) -> Evidence:
    scene.say("gathering evidence")
    return gather(
        scene.sources,
        scene.history.lines,
        database_away=[
            Window(met.began_at, met.ended_at)
            for met in scene.nemesis.met
            if met.target in POSTGRES
        ],
        redis=scene.plan.redis,
        told=scene.listener.told,
    )


def _judge(
    plan: Plan,
    evidence: Evidence,
    met: Sequence[Met],
    *,
    hits: Mapping[str, int],
    healed_s: float,
    fenced: Mapping[str, int],
) -> Result:
    cases = sort_by_key(evidence)
    found = [*judge_all(evidence), *(one for case in cases for one in judge_case(case))]
    order = list(Verdict)
    findings = sorted(found, key=lambda finding: order.index(finding.verdict))
    return Result(
        plan=plan,
        evidence=evidence,
        cases=cases,
        findings=findings,
        met=met,
        provider_hits=hits,
        planned_disasters=sorted({disaster.name for disaster in plan.disasters}),
        healed_s=healed_s,
        fenced=fenced,
    )


def _progress(scene: _Scene, passed_s: float) -> str:
    history = scene.history
    happening = ", ".join(scene.nemesis.now.copy().values()) or "quiet"
    return (
        f"{passed_s:4.0f} s  {history.count('asked')} requests, {history.count('ok')} answered,"
        f" {history.count('unknown')} unknown, {len(scene.nemesis.met)} disasters; {happening}"
    )


def _open_payments(scene: _Scene) -> int:
    """Payments that can still end. A silent payer's payment stays in `awaiting_payer`."""
    query = """SELECT count(*) FROM payments
        WHERE status = 'PENDING' AND (payer_masked <> %s OR stage <> 'awaiting_payer')"""
    with suppress(psycopg.OperationalError), psycopg.connect(scene.sources.database_url) as found:
        row = found.execute(query, [masked(SILENT_PAYER)]).fetchone()
        return int(row[0]) if row else 0
    return 1


def _untold(scene: _Scene) -> int:
    """Deliveries still pending. Their pauses are cut short: no run can wait for 24 hours."""
    hurry = """UPDATE webhook_deliveries SET next_attempt_at = clock_timestamp()
        WHERE status = 'pending' AND lease_until IS NULL"""
    query = """SELECT (SELECT count(*) FROM webhook_deliveries WHERE status = 'pending')
        + (SELECT count(*) FROM events WHERE feed_data IS NULL)"""
    with suppress(psycopg.OperationalError), psycopg.connect(scene.sources.database_url) as found:
        found.execute(hurry)
        row = found.execute(query).fetchone()
        return int(row[0]) if row else 0
    return 1


def _keys_ahead(plan: Plan) -> list[str]:
    steps = zip(*(script.steps[_AHEAD_FROM_STEP:] for script in plan.scripts), strict=True)
    return [step.key for row in steps for step in row if step.kind in ("pay", "twins")]


def _fences(stage: Stage) -> Mapping[str, int]:
    found: Counter[str] = Counter(dict.fromkeys(FENCES, 0))
    for process in stage.stack.processes.values():
        for line in process.log_text().splitlines():
            for name in FENCES:
                found[name] += f'"{name}"' in line
    return found


def _keep_logs(stage: Stage, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    for process in stage.stack.processes.values():
        if process.log_path.exists():
            shutil.copyfile(process.log_path, directory / process.log_path.name)
