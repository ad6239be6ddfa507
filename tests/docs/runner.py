"""A user at a shell, who types what a page shows, with a node that is his."""

from __future__ import annotations
from tests.support.ports import free_port

import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.cli.command import COMMAND
from tests.docs.pages import Step, says
from tests.support.nodes import TestNode
from tests.support.waiting import eventually

# The node's port as pages show it, and ports of this machine that pages use: others stand for them here, which are free.
NODE_PORT = "7070"
FREE_PORTS = ("8000", "8443", "15432")
_SECONDS = 120
_BACKGROUND = re.compile(r"&\s*(#.*)?$")
# What every program of a page finds, besides the variables that are in every environment here.
_PYTHON = """
import os as _os
from sprites import SpritesClient as _SpritesClient
client = _SpritesClient(token=_os.environ["SPRITE_TOKEN"], base_url=_os.environ["SPRITES_API_URL"])
"""
_LOOP = r"""
while IFS= read -r -d '' file && IFS= read -r -d '' command; do
    (exit "${status:-0}")
    eval "$command" >"$file" 2>&1 </dev/null
    status=$?
    printf '%s\n' "$status" >&3
done
"""


class Ports:
    """Which ports of this machine stand for those of the pages."""

    def __init__(self) -> None:
        self._here = {port: str(free_port()) for port in FREE_PORTS}

    def node_is(self, url: str) -> None:
        self._here[NODE_PORT] = url.rpartition(":")[2]

    def here(self, text: str) -> str:
        """A page's text with the ports of this machine."""
        return _replaced(text, self._here)

    def shown(self, text: str) -> str:
        """What was printed here, as a page has it."""
        return _replaced(text, {here: page for page, here in self._here.items()})


def _replaced(text: str, by: dict[str, str]) -> str:
    return re.sub(r"\b(?:" + "|".join(by) + r")\b", lambda found: by[found[0]], text)


class User:
    """A shell in a directory of its own, logged in to a node; what it was told stays until it is closed."""

    def __init__(self, home: Path, node: TestNode, ports: Ports) -> None:
        self._home, self._ports, self._count = home, ports, 0
        programs = home / ".programs"
        programs.mkdir()
        (programs / "ballpoint").write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
        (programs / "ballpoint").chmod(0o755)
        (programs / "caddy").symlink_to(Path(sys.executable).parent / "caddy")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        environment |= {
            "HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", "URL": node.url, "TOKEN": node.token,
            "AUTH": f"Authorization: Bearer {node.token}", "SPRITE_TOKEN": node.token, "SPRITES_API_URL": node.url,
            "CADDY_ADMIN": f"unix/{home}/.caddy",  # its usual port may be another's
        }  # fmt: skip
        told, self._said = os.pipe()
        self._told = os.fdopen(told)
        self._shell = subprocess.Popen(
            ["bash", "-c", f"exec 3>&{self._said}\n{_LOOP}"], stdin=subprocess.PIPE, cwd=home, env=environment,
            pass_fds=[self._said], start_new_session=True,
        )  # fmt: skip
        os.close(self._said)
        login = self.run("ballpoint login $URL")
        assert login[0] == 0, login

    def run(self, command: str) -> tuple[int, Path]:
        """Its status, and the file of what it prints, also later where it runs in the background."""
        self._count += 1
        output = self._home / f".output-{self._count}"
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{output}\0{command}\0".encode())
        self._shell.stdin.flush()
        ended, _, _ = select.select([self._told], [], [], _SECONDS)
        assert ended, f"it does not end: {command}\n{output.read_text()}"
        return int(self._told.readline()), output

    def do(self, step: Step, next_step: Step | None) -> None:
        """Do what the page shows, and see what it shows."""
        text = self._ports.here(step.text)
        if step.kind == "file":
            (self._home / step.name).write_text(text)
            return
        if step.kind == "python":
            program = self._home / f"line-{step.line}.py"
            program.write_text(_PYTHON + text)
            text = shlex.join([sys.executable, str(program)])
        elif step.sprite is not None:
            text = f"ballpoint -s {step.sprite} exec -- bash -c {shlex.quote(text)}"
        status, output = self.run(text)

        def printed() -> str:
            return self._ports.shown(output.read_text(errors="replace"))

        if next_step is None or not next_step.text.startswith("echo $?"):
            assert status == 0, f"line {step.line}: {step.text}\nended with {status}:\n{printed()}"
        if step.shown is None:
            return
        shown = step.shown
        if _BACKGROUND.search(step.text):
            with suppress(AssertionError):  # told below, with what was printed
                eventually(lambda: says(shown, printed()))
        assert says(shown, printed()), f"line {step.line}: {step.text}\nshows:\n{shown}\nbut printed:\n{printed()}"

    def close(self) -> None:
        """End the shell, and what it has left in the background."""
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        self._told.close()
        assert self._shell.stdin is not None
        self._shell.stdin.close()
