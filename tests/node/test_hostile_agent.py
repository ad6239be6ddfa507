"""An agent that was taken over answers what it likes: it is an answer, or the node says that it makes no sense."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hypothesis import example, given
from hypothesis import strategies as st

from ballpoint.core import peer, wire
from ballpoint.core.errors import InternalError
from ballpoint.runtime.container.instance import ContainerInstance
from tests.acceptance.hostile import JSON

NONCE = "n"
TRUE = {"nonce": NONCE, "instance": "i1"}
ANSWERS = JSON | st.dictionaries(st.sampled_from(["phase", "busy", "how", "names"]), JSON)


class Surroundings:
    """Where the instance is, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def instance_directory(self, instance_id: str) -> Path:
        return self.folder

    def instance_cgroup(self, instance_id: str) -> Any:
        return None


async def answer(listener: socket.socket, answers: list[Any], count: int) -> None:
    """Give each request the next answer, with so many descriptors."""
    loop = asyncio.get_running_loop()
    sock, _ = await loop.sock_accept(listener)
    null = os.open("/dev/null", os.O_RDONLY)
    try:
        for each in answers:
            readable = asyncio.Event()
            loop.add_reader(sock, readable.set)
            await readable.wait()
            loop.remove_reader(sock)
            message, _ = wire.receive(sock)
            if not message:
                return
            wire.send(sock, {"id": message["id"], "ok": each}, [null] * count)
    finally:
        os.close(null)
        sock.close()


@given(ANSWERS, ANSWERS, ANSWERS, st.integers(0, 4), st.booleans())
@example([], {}, {}, 3, False)
@example({}, {}, {"names": 5}, 3, True)
@example({}, [], 5, 3, True)
def test_whatever_an_agent_answers_is_an_answer_or_makes_no_sense(
    hello: Any, ping: Any, shown: Any, count: int, knows: bool
) -> None:
    if knows and isinstance(hello, dict):
        hello = {**hello, **TRUE}

    async def meet() -> None:
        with tempfile.TemporaryDirectory() as folder:
            instance = ContainerInstance(cast(Any, Surroundings(Path(folder))), "i1", 0, NONCE)
            listener = peer.listen(Path(folder, "control.sock"), mode=0o600)
            with listener:
                agent = asyncio.create_task(answer(listener, [hello, ping, shown], count))
                try:
                    with suppress(InternalError):
                        await instance._greet()
                        assert knows and count == 3
                        with suppress(InternalError):
                            assert isinstance(await instance.ping(30), dict)
                        assert all(isinstance(name, str) for name in await instance.shown())
                finally:
                    instance.release()
                    agent.cancel()
                    await asyncio.wait([agent])

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(meet())
    assert len(os.listdir("/proc/self/fd")) == before
