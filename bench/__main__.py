"""`python -m bench`: measure and print; after a whole run, write docs/bench.md, bench.json and the README's table."""

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
from pathlib import Path

from tests.support.nodes import TestNode

from ballpoint.host.cgroup import Hierarchies
from bench.context import Context, loop_devices, remove_loop_devices, say
from bench.report import Report, Result, describe_machine, now, revision, with_summary
from bench.rows import ROWS
from bench.yardsticks import containers

_ROOT = Path(__file__).parent.parent
_DOCS, _README = _ROOT / "docs", _ROOT / "README.md"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="few samples: to see that it works")
    parser.add_argument("--long", action="store_true", help="the longer form of rows that have one; not of a whole run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    given = parser.parse_args()
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"there is no row {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("a node runs as root, and so does this")
    if given.long and not given.rows:
        parser.error("--long is for rows that are named")
    report = asyncio.run(_measure(given.rows or list(ROWS), quick=given.quick, long=given.long))
    text = json.dumps(report.json(), indent=1) + "\n"
    print(report.markdown())
    if given.json is not None:
        given.json.write_text(text)
    if not given.quick and not given.rows:  # a part does not replace the whole
        (_DOCS / "bench.md").write_text(report.markdown())
        (_DOCS / "bench.json").write_text(text)
        _README.write_text(with_summary(_README.read_text(), report.summary()))
    return 1 if any(result.failure for result in report.results) else 0


async def _measure(rows: list[str], *, quick: bool, long: bool) -> Report:
    date, layout, devices = now(), Hierarchies.detect().layout, len(loop_devices())
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
            context = Context(quick, work, yardsticks, long)
            results = []
            gc.collect()
            gc.freeze()
            for row in rows:
                load, loops = os.getloadavg()[0], len(loop_devices())
                say(f"{row} ...")
                try:
                    result = await ROWS[row](context)
                except Exception as error:  # noqa: BLE001 - the other rows are measured, and this one is shown as failed
                    traceback.print_exc()
                    result = Result(
                        row, row, failure=f"{type(error).__name__}: {str(error).partition(chr(10))[0][:300]}"
                    )
                result.load, result.loop_devices = load, loops
                remove_loop_devices(devices)  # no row shall pay for how many devices an earlier one needed
                for check in result.checks:
                    met = {True: "met", False: "MISSED", None: "not judged"}[check.met]
                    say(f"  {check.measured} | {check.yardstick} | {check.ratio} | {check.target} | {met}")
                results.append(result)
            return Report(
                describe_machine(layout), date, revision(), quick, yardsticks.tools, results, context.left_behind
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)
        remove_loop_devices(devices)


if __name__ == "__main__":
    sys.exit(main())
