"""`ballpoint`, whose node kills itself at a step, or fails at it, once a file names it: what starts it trips nothing.

Called with the file's path, and then as `ballpoint` is.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ballpoint.core import steps
from ballpoint.host import process
from ballpoint.host.nft import TableWatch

_NODE = "ballpoint.api"

# A watch of the node fails, as no code expects, when it next hears of its firewall's rules.
FAILING_WATCH = "the watch over the walls fails"


def arm(file: Path, step: str) -> None:
    """From now on the node dies at that step, or does what it is the name of here, until the file has gone."""
    new = file.with_suffix(".new")
    new.write_text(step)
    new.rename(file)


def as_command(file: Path) -> tuple[str, ...]:
    """The program that a test's node shall be."""
    return (sys.executable, __file__, str(file))


def _run_node(file: Path) -> None:
    def reach(step: str) -> None:
        if file.exists() and file.read_text() == step:
            os.kill(os.getpid(), signal.SIGKILL)

    read = TableWatch.read

    def read_or_fail(watch: TableWatch) -> str | None:
        if file.exists() and file.read_text() == FAILING_WATCH:
            raise RuntimeError(FAILING_WATCH)
        return read(watch)

    steps.reach = reach
    TableWatch.read = read_or_fail  # type: ignore[assignment, method-assign]
    runpy.run_module(_NODE, run_name="__main__", alter_sys=True)


def _run(file: Path) -> None:
    start = process.start

    def start_armed(argv: Sequence[str], **named: Any) -> process.Child:
        if list(argv[1:3]) == ["-m", _NODE]:
            argv = [*as_command(file), _NODE, *argv[3:]]
        return start(argv, **named)

    process.start = start_armed
    runpy.run_module("ballpoint.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    armed_file = Path(sys.argv.pop(1))
    # So that nothing beside this file is taken for a module.
    sys.path.pop(0)
    if sys.argv[1] == _NODE:
        sys.argv.pop(1)
        _run_node(armed_file)
    else:
        _run(armed_file)
