"""An agent that is killed again and again at any moment, and replaced at once on the same listening socket.

`python -m tests.edge.mortal_agent LISTEN-FD FOLDER SEED`: what an anchor does, with the agent's server and sessions
over processes of the host. Each agent lives for some milliseconds, and does not serve in the first of them.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from pathlib import Path

from ballpoint.agent.server import serve
from ballpoint.agent.sessions.exec import ExecRoutes
from tests.agent.world import ENVIRONMENT, World

_LIFE_SECONDS = 0.04


async def _live(listener: socket.socket, folder: Path, life: float) -> None:
    loop = asyncio.get_running_loop()
    world = World(folder)
    serves_from = loop.time() + life / 4
    world.routes.serving = lambda: loop.time() >= serves_from
    ExecRoutes(world.sessions, lambda: ENVIRONMENT).add_to(world.routes)
    await serve(listener, world.routes)
    # The kernel ends it, wherever it is; a timer of the event loop would find it between two steps.
    signal.setitimer(signal.ITIMER_REAL, life)
    await loop.create_future()


def main() -> None:
    listener, folder, dice = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]), random.Random(sys.argv[3])
    while True:
        life = dice.uniform(0.001, _LIFE_SECONDS)
        pid = os.fork()
        if pid == 0:
            asyncio.run(_live(listener, folder, life))
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
