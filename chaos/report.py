"""The result of a run for people: the last lines on the screen, and report.md. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from chaos.cases import Case, Finding, Verdict
from chaos.evidence import Evidence, Window
from chaos.fault_injector import Met
from chaos.figures import LostAnswers, Spread, act_counts, answer_counts, lost_answers
from chaos.plan import Plan
from chaos.planned_pairs import met_pairs, never_met
from chaos.process_faults import RECOVERY_S
from chaos.timeline import shortest, tell

FINDINGS_SHOWN: Final = 20
EXIT_CLEAN: Final = 0
EXIT_BAD: Final = 1
EXIT_NOT_MET: Final = 2


@dataclass(frozen=True)
class Result:
    """A finished run: what was planned, what was met, what was found."""

    plan: Plan
    evidence: Evidence
    cases: Sequence[Case]
    findings: Sequence[Finding]
    met: Sequence[Met]
    provider_hits: Mapping[str, int]
    planned_disasters: Sequence[str]
    healed_s: float
    fenced: Mapping[str, int]

    @property
    def verdicts(self) -> Mapping[Verdict, int]:
        """The number of keys by verdict: each key counts with its worst finding."""
        worst: dict[object, Verdict] = {case.key: Verdict.OK for case in self.cases}
        order = list(Verdict)
        for finding in self.findings:
            if finding.key is not None:
                known = worst.get(finding.key, Verdict.OK)
                worst[finding.key] = min(known, finding.verdict, key=order.index)
        counted = Counter(worst.values())
        return {verdict: counted[verdict] for verdict in Verdict}

    @property
    def hits(self) -> Mapping[str, int]:
        """How often each kind of fault was met, those with 0 included."""
        acted = Counter(met.name for met in self.met if met.acted)
        disasters = {name: acted[name] for name in self.planned_disasters}
        provider = {name: self.provider_hits.get(name, 0) for name in self.plan.weather.names}
        return {**disasters, **provider}

    @property
    def not_met(self) -> Sequence[str]:
        """The kinds that were never met."""
        return [name for name, count in self.hits.items() if count == 0]

    @cached_property
    def pairs(self) -> Mapping[str, int]:
        """How often each pair of faults on one payment was met, those with 0 included."""
        return met_pairs(self.plan.pairs, self.evidence)

    @cached_property
    def lost_answers(self) -> LostAnswers:
        """Times from a lost answer to the final status."""
        keys = {pair.key for pair in self.plan.pairs}
        return lost_answers(self.evidence, self.disturbed, keys)

    @property
    def disturbed(self) -> Sequence[Window]:
        """When a process was broken that every payment depends on.

        The API and beat are not among them; a broken worker shows in the payments it had claimed.
        """
        return [
            Window(met.began_at, met.ended_at + RECOVERY_S)
            for met in self.met
            if not met.target.startswith(("api", "beat", "worker"))
        ]

    @property
    def exit_status(self) -> int:
        """0 clean, 1 for anything bad, 2 when a kind of fault was never met."""
        if self.findings:
            return EXIT_BAD
        return EXIT_NOT_MET if self.not_met else EXIT_CLEAN


def summary(result: Result) -> str:
    """The last lines on the screen."""
    counts = "  ".join(f"{verdict} {count}" for verdict, count in result.verdicts.items())
    lost = result.lost_answers
    lines = [
        f"{len(result.cases)} keys: {counts}",
        f"{sum(act_counts(result.evidence).values())} requests, {_faults(result)}",
        f"{_news(result)}",
        f"from a lost answer to the truth: {_spread(lost.on_the_wire)}",
        f"where nothing else was broken: {_spread(lost.alone)}",
        f"where two faults were planned: {_spread(lost.planned)}",
        _pairs_met(result),
        f"pairs {json.dumps(dict(result.pairs), ensure_ascii=False)}",
    ]
    lines += [f"✗ {_finding(finding)}" for finding in result.findings[:FINDINGS_SHOWN]]
    if result.not_met:
        lines.append(f"! never met, so the run does not count: {', '.join(result.not_met)}")
    return "\n".join(lines)


def as_markdown(result: Result) -> str:
    """report.md."""
    plan = result.plan
    parts = [
        f"# Chaos run, seed {plan.seed}",
        _head(result),
        "## Verdicts",
        _table(("verdict", "keys"), [(name, str(n)) for name, n in result.verdicts.items()]),
        _findings(result),
        "## Time from a lost answer to the truth",
        _lost(result),
        "## Webhooks",
        _news(result) + ".",
        "## Operations",
        _table(("request", "sent"), _texts(act_counts(result.evidence))),
        _table(("answer", "times"), _texts(answer_counts(result.evidence))),
        f"Open payments were final {result.healed_s:.1f} s after the last fault was taken away.",
        "## Fences",
        _table(("log event", "times"), _texts(result.fenced)),
        "## Faults met",
        _table(("kind", "times"), _texts(result.hits)),
        "## Pairs of faults on two requests of one payment",
        _pairs(result),
        "## Disasters in their order",
        _disasters(result),
        "## The provider in this run",
        _table(("setting", "value"), _texts(plan.weather.settings)),
    ]
    return "\n\n".join(parts) + "\n"


def _head(result: Result) -> str:
    plan = result.plan
    return (
        f"{plan.seconds:.0f} s of faults, {'with' if plan.redis else 'without'} Redis."
        f" Plan {plan.digest()}. Exit status {result.exit_status}."
    )


def _news(result: Result) -> str:
    told = result.evidence.told or ()
    taken = sum(one.taken for one in told)
    return (
        f"{len({one.message_id for one in told})} webhooks told in {len(told)} posts,"
        f" {len(told) - taken} of them refused or cut"
    )


def _faults(result: Result) -> str:
    return (
        f"{sum(result.hits.values())} faults of {len(result.hits)} kinds,"
        f" healed in {result.healed_s:.0f} s"
    )


def _findings(result: Result) -> str:
    parts = [f"- {_finding(finding)}" for finding in result.findings] or ["Nothing was found."]
    if result.not_met:
        parts.append(f"\nNever met, so this run does not count: {', '.join(result.not_met)}.")
    case = shortest(result.findings, result.cases)
    if case is not None:
        story = "\n".join(tell(case))
        parts.append(f"\nThe shortest history of the worst: key {case.key[1]} of {case.key[0]}.")
        parts.append(f"\n```\n{story}\n```")
    return "\n".join(parts)


def _finding(finding: Finding) -> str:
    where = "" if finding.key is None else f" [{finding.key[0]} {finding.key[1]}]"
    return f"{finding.verdict} {finding.rule}: {finding.text}{where}"


def _lost(result: Result) -> str:
    lost = result.lost_answers
    rows = [
        (name, str(one.count), f"{one.p50_s:.1f}", f"{one.p95_s:.1f}", f"{one.max_s:.1f}")
        for name, one in (
            ("on the wire", lost.on_the_wire),
            ("on the wire, and nothing else was broken", lost.alone),
            ("on the wire, and two faults were planned", lost.planned),
            ("with its worker", lost.with_its_process),
        )
    ]
    return _table(("the answer was lost", "payments", "p50 s", "p95 s", "max s"), rows)


def _pairs_met(result: Result) -> str:
    missing = never_met(result.pairs)
    return f"{len(result.pairs) - len(missing)} of {len(result.pairs)} pairs of faults met"


def _pairs(result: Result) -> str:
    missing = never_met(result.pairs)
    parts = [f"{_pairs_met(result)}."]
    if missing:
        parts.append("For these this run does not count: " + "; ".join(missing) + ".")
    met = [(name, str(count)) for name, count in result.pairs.items() if count]
    return "\n\n".join([*parts, _table(("pair", "times"), met)])


def _disasters(result: Result) -> str:
    if not result.met:
        return "None."
    start = min(met.began_at for met in result.met)
    rows = [
        (
            f"{met.began_at - start:.1f}",
            f"{met.ended_at - met.began_at:.1f}",
            met.name,
            met.target,
            "yes" if met.acted else f"no {met.error}".strip(),
        )
        for met in sorted(result.met, key=lambda met: met.began_at)
    ]
    return _table(("at s", "for s", "kind", "process", "acted"), rows)


def _spread(one: Spread) -> str:
    return f"p50 {one.p50_s:.1f} s, p95 {one.p95_s:.1f} s, max {one.max_s:.1f} s ({one.count})"


def _texts(counts: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(name, str(count)) for name, count in counts.items()]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
