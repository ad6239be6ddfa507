"""The terminal this command runs on: raw while a sprite's is joined to it, and lines for who sits there."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import termios
import tty
from contextlib import suppress
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)


class RawTerminal:
    """Standard input without anything between it and the sprite, from `enter` on; put back whatever happens."""

    def __init__(self) -> None:
        self._before: Any = None

    def enter(self) -> None:
        """Every key goes to the sprite. Does nothing where there is no terminal, or it is so already."""
        if self._before is None and sys.stdin.isatty():
            self._before = termios.tcgetattr(0)
            tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is the sprite's, too

    def __enter__(self) -> RawTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)
            self._before = None


def window() -> os.terminal_size:
    """The terminal's size, or what commands take for it where there is none.

    The terminal is asked first: LINES and COLUMNS, which readline exports to what it starts, do not follow it.
    """
    for standard in (0, 1):
        with suppress(OSError):
            size = os.get_terminal_size(standard)
            if size.lines and size.columns:  # nobody may have told it how large it is
                return size
    return shutil.get_terminal_size()


def notice(text: str) -> None:
    """Show a line to a person; a script's standard error is the command's alone."""
    log.info("%s", text)
    if sys.stderr.isatty():
        with suppress(OSError):
            os.write(2, f"\r{text}\r\n".encode())
