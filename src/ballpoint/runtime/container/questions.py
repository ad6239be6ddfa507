"""What code inside an instance asks of its node, as the instance's agent passes it on.

Nothing of it is believed but which instance it comes from, which the connection says. The wire is described in
agent/control.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from ballpoint.core.errors import InvalidError, UnavailableError
from ballpoint.core.peer import Peer

# An agent waits this long for its reader (agent/inside.py); then there is none.
_TAKEN_SECONDS = 60.0
# Escaped for the wire, a byte takes up to six.
_PIECE = 16 * 1024


class Question:
    """A request over HTTP from inside.

    Attributes:
        method, target, body: as they were sent, bounded by one message of the wire; anything else may be in them.
        gone: set when nobody waits for the answer any more.
        begun: whether the answer's head has been sent.
    """

    def __init__(self, agent: Peer, message: Mapping[str, Any]) -> None:
        """Raises InvalidError where it is no question."""
        number, method, target, body = (message.get(name) for name in ("question", "method", "target", "body"))
        if not (isinstance(number, int) and isinstance(method, str) and isinstance(target, str)):
            raise InvalidError("an agent asked nothing that can be read")
        if not isinstance(body, str):
            raise InvalidError("an agent asked nothing that can be read")
        try:
            self.body = body.encode("latin-1")
        except UnicodeEncodeError as error:
            raise InvalidError("an agent sent characters for bytes") from error
        self.number = number
        self.method = method
        self.target = target
        self.gone = asyncio.Event()
        self.begun = False
        self._agent = agent

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the answer's head.

        Raises:
            UnavailableError: nobody waits for it.
        """
        self.begun = True
        await self._give(status=status, headers=dict(headers))

    async def write(self, data: bytes) -> None:
        """Send a part of the answer's body; returns when there is room for more. Raises as `begin`."""
        for at in range(0, len(data), _PIECE):
            await self._give(data=data[at : at + _PIECE].decode("latin-1"))

    async def _give(self, **part: Any) -> None:
        result, fds = await self._agent.call("answer", seconds=_TAKEN_SECONDS, question=self.number, **part)
        for fd in fds:
            os.close(fd)
        if not isinstance(result, dict) or result.get("taken") is not True:
            raise UnavailableError("nobody waits for the answer")
