"""Results, their targets, and how both are written down."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from ballpoint.core.clock import SYSTEM_CLOCK, rfc3339
from ballpoint.core.errors import BallpointError
from ballpoint.host import process

_BEGIN, _END = "<!-- bench: written by ./dev bench -->", "<!-- bench ends -->"


@dataclass(frozen=True)
class Series:
    """Measurements of one thing. Quantiles are samples (nearest rank), never in between."""

    unit: str
    n: int
    p50: float
    p90: float
    p99: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float], unit: str) -> Series:
        ordered = sorted(samples)

        def quantile(part: float) -> float:
            return ordered[max(0, -int(-len(ordered) * part // 1) - 1)]

        return cls(unit, len(ordered), quantile(0.5), quantile(0.9), quantile(0.99), ordered[0], ordered[-1])

    def __str__(self) -> str:
        if self.n == 1:
            return f"{number(self.p50)} {self.unit}"
        values = " / ".join(number(value) for value in (self.p50, self.p90, self.p99))
        return f"{values} {self.unit} (n={self.n})"


@dataclass(frozen=True)
class Check:
    """One target of a row.

    Attributes:
        measured, yardstick: as shown; the yardstick's text says why where it is missing.
        ratio: what is held against the target: measured by yardstick, or the measured value itself.
        target: in words. met: None where it cannot be judged.
    """

    measured: str
    yardstick: str
    ratio: float | None
    target: str
    met: bool | None


def at_most(measured: str, ratio: float, limit: float, *, yardstick: str = "", unit: str = "x") -> Check:
    return Check(measured, yardstick or "-", ratio, f"at most {limit:g}{unit}", ratio <= limit)


def at_least(measured: str, ratio: float, limit: float, *, yardstick: str = "", unit: str = "x") -> Check:
    return Check(measured, yardstick or "-", ratio, f"at least {limit:g}{unit}", ratio >= limit)


def missing(measured: str, yardstick: str, why: str, target: str) -> Check:
    """A target that cannot be judged, as its yardstick does not run on this host."""
    return Check(measured, f"{yardstick}: MISSING ({why})", None, target, None)


@dataclass
class Result:
    """A row of the table.

    Attributes:
        series: everything measured, by name.
        profile: where the time goes, in sentences; shown where a target is missed, always in the JSON.
        notes: what a reader has to know of how it was measured; always shown.
        failure: why the row could not be measured.
        load, loop_devices: the host's load average and its loop devices, used or not, when the row began.
        date, revision, machine: when that was, of which revision, and where; seconds: how long it took.
        left_behind: what its nodes left on the host after they were stopped.
    """

    row: str
    title: str
    series: dict[str, Series] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    profile: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failure: str | None = None
    load: float = 0.0
    loop_devices: int = 0
    date: str = ""
    revision: str = ""
    machine: str = ""
    seconds: float = 0.0
    left_behind: list[str] = field(default_factory=list)

    @property
    def measured(self) -> tuple[str, str, str]:
        """Day, revision and machine: rows that differ in these are not of one run."""
        return self.date[:10], self.revision, self.machine


@dataclass(frozen=True)
class Report:
    """A whole run, or one some of whose rows were measured anew since. Every ratio is of one run, on one machine.

    Attributes:
        date, revision: of the newest row. results: in the order of the table.
        unmeasured: rows that no run has measured.
    """

    machine: dict[str, Any]
    date: str
    revision: str
    quick: bool
    tools: dict[str, str]
    results: list[Result]
    unmeasured: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, text: str) -> Report:
        """One that was written by `json`; a row of a run before rows had dates has that of its run."""
        report: Report = msgspec.convert(json.loads(text), cls)
        for result in report.results:
            result.date, result.revision = result.date or report.date, result.revision or report.revision
            result.machine = result.machine or named(report.machine)
        return report

    def renewed(self, newer: Report, rows: Iterable[str]) -> Report:
        """With the rows of another run in the place of these, in the order of `rows`; what is not in those goes."""
        by_row = {result.row: result for result in (*self.results, *newer.results)}
        results = [by_row[row] for row in rows if row in by_row]
        return replace(newer, results=results, unmeasured=[row for row in rows if row not in by_row])

    def json(self) -> dict[str, Any]:
        return asdict(self)

    def markdown(self) -> str:
        machine = self.machine
        lines = [
            "# Benchmark",
            "",
            "Written by `./dev bench`; every yardstick was measured in the same run of its row, alternated with what it"
            " is held against. `./dev bench ROW` measures some rows anew and leaves the others.",
            "",
            f"- Date: {self.date}; revision {self.revision}" + ("; quick run, few samples" if self.quick else ""),
            f"- Machine: {machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB memory,"
            f" {machine['system']}, kernel {machine['kernel']}, cgroups {machine['cgroups']}",
            "- Loop devices that a row leaves behind unused are removed before the next row.",
            f"- Loop devices on the host, used or not, at the start of each row:"
            f" {min((r.loop_devices for r in self.results), default=0)} to"
            f" {max((r.loop_devices for r in self.results), default=0)}",
            f"- Load average at the start of each row: {min((r.load for r in self.results), default=0):.1f} to"
            f" {max((r.load for r in self.results), default=0):.1f}, the row before included",
            *(f"- {sentence}" for sentence in self._others()),
            *(f"- Yardstick {name}: {text}" for name, text in self.tools.items()),
            "- Times are p50 / p90 / p99. The client is one asyncio process with the `websockets` library, over TCP to"
            " the node's front door; each sprite and each WebSocket is new.",
            "",
            "What a create and an exec consist of, and what was found out about it: [performance.md](performance.md).",
            "",
            *_table(self.results),
        ]
        notes = [(result, note) for result in self.results for note in result.notes]
        if notes:
            lines += ["", "## Notes", "", *(f"- {result.title}: {note}" for result, note in notes)]
        missed = [r for r in self.results if r.profile and any(check.met is False for check in r.checks)]
        if missed:
            lines += ["", "## Where the time goes, where a target is missed"]
            for result in missed:
                lines += ["", f"### {result.title}", "", *(f"- {sentence}" for sentence in result.profile)]
        left_behind = [f"- {result.title}: {trace}" for result in self.results for trace in result.left_behind]
        if left_behind:
            lines += ["", "## What went wrong at the end of a node", "", *left_behind]
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """The first line of each row and all that miss their target, with the machine and the date, for the README."""
        machine = self.machine
        shown = [replace(result, checks=_headlines(result.checks)) for result in self.results]
        lines = [
            f"The last of it was measured on {self.date[:10]} (revision {self.revision}) with {machine['cores']} cores"
            f" ({machine['cpu']}), {machine['memory_gb']} GB, {machine['system']}, kernel {machine['kernel']};"
            " which row is of which day and machine, and all other lines, are in [docs/bench.md](docs/bench.md):",
            "",
            *_table(shown),
        ]
        return "\n".join(lines) + "\n"

    def _others(self) -> list[str]:
        """Which rows are not of the day, revision and machine of the report, and which there are none of."""
        mine, found = (self.date[:10], self.revision, named(self.machine)), dict[tuple[str, str, str], list[Result]]()
        for result in self.results:
            if result.measured != mine:
                found.setdefault(result.measured, []).append(result)
        lines = [
            f"Measured on {date} (revision {revision}{'' if machine == mine[2] else ', ' + machine}),"
            f" load average {min(result.load for result in results):.1f} to"
            f" {max(result.load for result in results):.1f}: {'; '.join(result.title for result in results)}"
            for (date, revision, machine), results in sorted(found.items(), reverse=True)
        ]
        if self.unmeasured:
            lines.append(f"Not measured yet: {', '.join(f'`{row}`' for row in self.unmeasured)}")
        return lines


def _headlines(checks: list[Check]) -> list[Check]:
    return [check for position, check in enumerate(checks) if position == 0 or check.met is False]


def _table(results: Iterable[Result]) -> list[str]:
    lines = ["| row | measured | yardstick | ratio or value | target | met |", "|---|---|---|---|---|---|"]
    for result in results:
        if result.failure is not None:
            lines.append(f"| {result.title} | **not measured**: {result.failure} | | | | **no** |")
        for check in result.checks:
            ratio = "" if check.ratio is None else f"{check.ratio:.2f}"
            met = {True: "yes", False: "**no**", None: "**not judged**"}[check.met]
            cells = (result.title, check.measured, check.yardstick, ratio, check.target, met)
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def with_summary(readme: str, summary: str) -> str:
    """`readme` with `summary` between its two markers. ValueError where it has none."""
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the README has no {_BEGIN} and {_END}")
    return f"{before}{begin}\n{summary}{end}{after}"


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


def describe_machine(cgroups: str) -> dict[str, Any]:
    """What a reader needs to compare numbers."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    total = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    system = next(
        (line.split("=", 1)[1].strip('"') for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME")), ""
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(total / 2**20),
        "system": system,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cgroups": cgroups,
    }


def named(machine: dict[str, Any]) -> str:
    """What of a machine tells it from others, in a few words."""
    return f"{machine['cores']} cores of {machine['cpu']}, kernel {machine['kernel']}"


def now() -> str:
    return rfc3339(SYSTEM_CLOCK.now())


def revision() -> str:
    """Commit of the working tree, and whether it has changes beyond it."""
    try:
        commit = process.run(["git", "rev-parse", "--short=12", "HEAD"], timeout=10).strip()
        changed = process.run(["git", "status", "--porcelain", "--", "src", "bench"], timeout=10).strip()
    except BallpointError:
        return "unknown"
    return f"{commit} with changes" if changed else commit


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
