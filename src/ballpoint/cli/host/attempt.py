"""Trying something in a process of its own, which may hang in the kernel without hanging us."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from ballpoint.core.errors import UnavailableError
from ballpoint.host import process

_PROBES = "ballpoint.cli.host.probes"
_PROBE_SECONDS = 30.0
# What a killed process may take to end where nothing holds it in the kernel.
_KILL_SECONDS = 2.0

# Children that outlived their SIGKILL, held by a device or a frozen disk: kept, so that they are reaped when they end.
stuck: list[process.Child] = []


def attempt(
    command: Sequence[str], *, seconds: float, mend: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run `command` and return the last line it printed.

    Unlike `process.run`, it comes back in time also when the child waits in the kernel where no signal reaches it.

    Args:
        seconds: deadline.
        mend: command that mends what fails; becomes the error's hint.
        env: variables that it gets beside those of `process.base_environment`.

    Raises:
        UnavailableError: the command failed, and the message is its last line; or it did not end in time.
    """
    with tempfile.TemporaryFile() as output:
        try:
            child = process.start(command, stdout=output.fileno(), stderr=output.fileno(), new_session=True, env=env)
        except FileNotFoundError as error:
            raise UnavailableError(f"{command[0]} is not installed", hint=mend) from error
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"it did not end within {seconds:g} s", hint=mend) from error
        finally:
            _end(child)
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
    if code != 0:
        raise UnavailableError(lines[-1] if lines else f"it ended with status {code}", hint=mend)
    return lines[-1] if lines else ""


def probe(
    name: str,
    *arguments: str,
    seconds: float = _PROBE_SECONDS,
    mend: str | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """`attempt` one of the `probes`."""
    return attempt([sys.executable, "-m", _PROBES, name, *arguments], seconds=seconds, mend=mend, env=env)


def _end(child: process.Child) -> None:
    if child.poll() is not None:
        return
    child.kill()
    try:
        child.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        stuck.append(child)
