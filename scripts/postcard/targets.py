"""What the bundled model shall reach, held against a report of `scripts.postcard.evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Report = dict[str, Any]
"""What `scripts.postcard.evaluate` writes."""

MEAN = 0.92
LOWEST = 0.80
LATE_LOSS = 0.04
TEACHER_LEAD = 0.03
CLASSIFIER = 0.98
SWITCH_LOSS = 0.04
"""Beyond it the new attributes do not show: the same margin as for a long stream."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Target:
    """One number and its limit."""

    name: str
    measured: float
    bound: Literal["at least", "at most"]
    limit: float
    unit: Literal["share", "difference", "levels", "count"]

    @property
    def reached(self) -> bool:
        if self.bound == "at least":
            return self.measured >= self.limit - _ROUNDING
        return self.measured <= self.limit + _ROUNDING


def check_targets(report: Report) -> list[dict[str, Any]]:
    """Every target that the report has numbers for, and whether it was reached."""
    streams = {stream["name"]: stream for stream in report["streams"]}
    seconds = report["settings"]["seconds"]
    student, late = streams["student"], f"{seconds:g} s"
    found = [*_few_steps(student, late)]
    if "teacher" in streams:
        found += [
            Target(f"teacher's mean less student's, {when}", teacher - own, "at most", TEACHER_LEAD, "difference")
            for when, teacher, own in (
                (when, streams["teacher"][window]["mean"], student[window]["mean"])
                for when, window in (("5 s", "early"), (late, "late"))
            )
        ]
    on_renders = report["renders"]["early"]
    lowest, share = lowest_attribute(on_renders)
    found.append(Target("classifier's mean on renders", on_renders["mean"], "at least", CLASSIFIER, "share"))
    found.append(Target(f"classifier's lowest attribute on renders: {lowest}", share, "at least", CLASSIFIER, "share"))
    found += _switch(report["switch"]) if "switch" in report else []
    broken = sum(not stream["finite"] for stream in [*report["streams"], *report.get("adaptive", [])])
    found.append(Target("streams with numbers that are none", broken, "at most", 0, "count"))
    return [{**asdict(target), "reached": target.reached} for target in found]


def _few_steps(student: dict[str, Any], late: str) -> Iterator[Target]:
    early = student["early"]
    lowest, share = lowest_attribute(early)
    yield Target("student's mean, 5 s", early["mean"], "at least", MEAN, "share")
    yield Target(f"student's lowest attribute, 5 s: {lowest}", share, "at least", LOWEST, "share")
    loss = early["mean"] - student["late"]["mean"]
    yield Target(f"student's mean, 5 s less {late}", loss, "at most", LATE_LOSS, "difference")


def lowest_attribute(judged: dict[str, Any]) -> tuple[str, float]:
    """Which attribute was read right least often, and its share."""
    shares: dict[str, float] = judged["attributes"]
    return min(shares.items(), key=lambda item: item[1])


def _switch(switch: dict[str, Any]) -> Iterator[Target]:
    loss = switch["without"]["mean"] - switch["switched"]["mean"]
    yield Target("mean of prompts, from the start less switched to", loss, "at most", SWITCH_LOSS, "difference")
    for kind in ("change", "jolt"):
        elsewhere = max(found["maximum"] for source, found in switch[kind].items() if source != "switch")
        yield Target(f"greatest {kind} at a switch", switch[kind]["switch"]["maximum"], "at most", elsewhere, "levels")
    yield Target("switched streams with numbers that are none", float(not switch["finite"]), "at most", 0, "count")
