"""The one door for child processes: an argv list, an explicit environment, no standard input, a deadline."""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ballpoint.core.errors import InternalError, UnavailableError

log = logging.getLogger(__name__)

# A running child, as `start` returns it.
Child = subprocess.Popen[bytes]

# Host tools live in sbin directories that a plain user's PATH may lack.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class CommandFailedError(InternalError):
    """A child process ended with a failure.

    Attributes:
        returncode: its exit status; -n after signal n.
        output: what it printed on both streams.
    """

    def __init__(self, argv: Sequence[str], returncode: int, output: str) -> None:
        last = output.strip().splitlines()[-1:] or ["it printed nothing"]
        super().__init__(f"{Path(argv[0]).name} failed with status {returncode}: {last[0]}", hint=shlex.join(argv))
        self.returncode = returncode
        self.output = output


def base_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment children get: a fixed PATH and locale, plus `extra`. Nothing is inherited."""
    return {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(extra or {})}


def which(program: str) -> str | None:
    """Path of `program` on the fixed PATH, or None."""
    return shutil.which(program, path=_PATH)


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: str | Path | None = None,
) -> str:
    """Run `argv` to its end and return what it printed on stdout.

    Args:
        argv: program and arguments; no shell is involved.
        timeout: seconds after which the child is killed.
        stdin: bytes fed to it; None gives an empty standard input.
        env: variables added to `base_environment`.

    Raises:
        CommandFailedError: a non-zero status; carries the output.
        UnavailableError: the program is not installed, or the deadline passed.
    """
    try:
        done = subprocess.run(
            argv,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            timeout=timeout,
            env=base_environment(env),
            pass_fds=pass_fds,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise UnavailableError(f"{argv[0]} is not installed", hint="ballpoint doctor says what to install") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{argv[0]} did not end within {timeout:g} s", hint=shlex.join(argv)) from error
    if done.returncode != 0:
        output = (done.stdout + done.stderr).decode(errors="replace")
        log.debug("failed (%d): %s\n%s", done.returncode, shlex.join(argv), output)
        raise CommandFailedError(argv, done.returncode, output)
    return done.stdout.decode(errors="replace")


def run_lines(
    argv: Sequence[str],
    on_line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> None:
    """Run `argv` and hand each line of its combined output to `on_line` as it comes (for progress).

    The child dies with the caller's interest: an exception from `on_line` kills it.

    Raises:
        CommandFailedError: a non-zero status; carries the last 200 lines.
    """
    tail: list[str] = []
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=base_environment(env),
            cwd=cwd,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise UnavailableError(f"{argv[0]} is not installed", hint="ballpoint doctor says what to install") from error
    try:
        assert child.stdout is not None
        for line in child.stdout:
            tail = [*tail[-199:], line]
            on_line(line.rstrip("\n"))
        status = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        assert child.stdout is not None
        child.stdout.close()
    if status != 0:
        raise CommandFailedError(argv, status, "".join(tail))


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
    cwd: str | Path | None = None,
    new_session: bool = False,
    clean_environment: bool = False,
) -> Child:
    """Start a long-running child and return it; the caller owns it and must wait for it.

    Args:
        pass_fds: descriptors the child inherits, under their own numbers.
        stdin: descriptor for its standard input; empty by default.
        stdout, stderr: descriptors for its streams; None inherits the caller's.
        clean_environment: give it no variable at all, not even `base_environment`.
        new_session: give it a session of its own, so that a terminal's signals miss it.
    """
    return subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={} if clean_environment else base_environment(env),
        pass_fds=pass_fds,
        cwd=cwd,
        start_new_session=new_session,
    )


def pause(seconds: float) -> None:
    """Wait between two looks at something that tells nobody when it changes."""
    threading.Event().wait(seconds)
