"""`python -m bench`: measure and print; unless it is quick, write docs/bench.md, bench.json and the README's table.

Each row is published as soon as it is measured, in the place of what was known of it, and says where it was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from tests.support.nodes import TestNode

from ballpoint.host.cgroup import Hierarchies
from bench.context import Context, loop_devices, remove_loop_devices, say
from bench.report import Report, Result, describe_machine, named, now, revision, with_summary
from bench.rows import ROWS
from bench.yardsticks import containers

_ROOT = Path(__file__).parent.parent
_DOCS, _README = _ROOT / "docs", _ROOT / "README.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few samples: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("a node runs as root, and so does this")
    known = _published() if not given.quick else None

    def measured(report: Report) -> None:
        if given.json is not None:
            given.json.write_text(_text(report))
        if not given.quick:
            published = (known or report).renewed(report, ROWS)
            (_DOCS / "bench.md").write_text(published.markdown())
            (_DOCS / "bench.json").write_text(_text(published))
            _README.write_text(with_summary(_README.read_text(), published.summary()))

    report = asyncio.run(_measure(given.rows or list(ROWS), given.quick, measured))
    print(report.markdown())
    return 1 if any(result.failure for result in report.results) else 0


def _published() -> Report | None:
    path = _DOCS / "bench.json"
    return Report.read(path.read_text()) if path.exists() else None


def _text(report: Report) -> str:
    return json.dumps(report.json(), indent=1) + "\n"


async def _measure(rows: list[str], quick: bool, measured: Callable[[Report], None]) -> Report:
    """Measure rows one after the other.

    Args:
        measured: called after each, with a report of those until then.
    """
    machine, devices = describe_machine(Hierarchies.detect().layout), len(loop_devices())
    work = Path(tempfile.mkdtemp(prefix="ballpoint-bench-"))
    try:
        say("building the image, if it is not there yet")
        first = TestNode(work / "first" / "data")
        try:
            await asyncio.to_thread(first.start)
        finally:
            await asyncio.to_thread(first.down)
        say("preparing the yardsticks")
        async with containers(work) as yardsticks:
            context = Context(quick, work, yardsticks)
            report = Report(machine, now(), revision(), quick, yardsticks.tools, [])
            gc.collect()
            gc.freeze()
            for row in rows:
                load, loops = os.getloadavg()[0], len(loop_devices())
                date, commit, started = now(), revision(), perf_counter()
                say(f"{row} ...")
                try:
                    result = await ROWS[row](context)
                except Exception as error:  # noqa: BLE001 - the other rows are measured, and this one is shown as failed
                    traceback.print_exc()
                    result = Result(
                        row, row, failure=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
                    )
                result.load, result.loop_devices = load, loops
                result.date, result.revision, result.seconds = date, commit, perf_counter() - started
                result.machine = named(machine)
                result.left_behind, context.left_behind = context.left_behind, []
                remove_loop_devices(devices)  # no row shall pay for how many devices an earlier one needed
                for check in result.checks:
                    met = {True: "met", False: "MISSED", None: "not judged"}[check.met]
                    say(f"  {check.measured} | {check.yardstick} | {check.ratio} | {check.target} | {met}")
                report = replace(report, date=date, revision=commit, results=[*report.results, result])
                measured(report)
            return report
    finally:
        shutil.rmtree(work, ignore_errors=True)
        remove_loop_devices(devices)


if __name__ == "__main__":
    sys.exit(main())
