"""One edge process: `python -m ballpoint.edge --listen-fd N --run DIR [--uid N]`, started by the supervisor."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
from pathlib import Path

import msgspec
import uvloop

from ballpoint.core.config import NodeConfig
from ballpoint.edge.admission import Limits
from ballpoint.edge.server import Edge
from ballpoint.edge.stream import Stream
from ballpoint.host import malloc, prctl
from ballpoint.host.changes import Changes

_STOP_SECONDS = 5.0
# Bodies pass in pieces of up to 256,000 bytes (what uvloop reads at once); a few are under way at any time.
_KEPT_BYTES = 4 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="edge")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--uid", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    prctl.set_name("edge")
    malloc.keep_freed(_KEPT_BYTES)
    config = msgspec.json.decode(
        (options.run / "config.json").read_bytes(), type=NodeConfig, dec_hook=lambda kind, value: kind(value)
    )
    limits = Limits.of_process(per_address=config.connections_per_address)
    # Opened by a name that its identity may not use, before there is a client.
    counts = [
        Changes(path, counts=False) for path in (config.registry_changes, options.run / config.instance_changes.name)
    ]
    if options.uid:
        _drop_to(options.uid)
    prctl.die_with_parent()
    uvloop.run(_serve(socket.socket(fileno=options.listen_fd), options.run, config, limits, counts))


def _drop_to(uid: int) -> None:
    """Whoever takes an edge over gets an identity that owns nothing."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    prctl.prctl(prctl.PR_SET_NO_NEW_PRIVS, 1)
    prctl.prctl(prctl.PR_SET_DUMPABLE, 0)


async def _serve(listener: socket.socket, run: Path, config: NodeConfig, limits: Limits, counts: list[Changes]) -> None:
    edge = Edge(run, config, limits, counts)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listener.setblocking(False)
    server = await loop.create_server(lambda: Stream(edge.connected), sock=listener, backlog=4096)
    await stop.wait()
    server.close()
    await edge.stop(_STOP_SECONDS)


if __name__ == "__main__":
    main()
