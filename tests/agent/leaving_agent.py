"""An agent whose container ends when it is told to: `python -m tests.agent.leaving_agent LISTEN-FD FOLDER`.

It says `left` once it was sent SIGTERM and takes no more requests, and then goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

from ballpoint.agent.server import serve
from ballpoint.agent.sessions.exec import ExecRoutes
from tests.agent.world import ENVIRONMENT, World


async def _live(listener: socket.socket, folder: Path) -> None:
    world = World(folder)
    ExecRoutes(world.sessions, lambda: ENVIRONMENT).add_to(world.routes)
    server = await serve(listener, world.routes)

    def leave() -> None:
        server.leave_unread()
        _say("left")

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, leave)
    _say("serves")
    await asyncio.Event().wait()


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_live(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])))
