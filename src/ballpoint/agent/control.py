"""The node's requests to an agent, over a socket that nothing inside can reach.

hello   {}                        -> {version, instance, nonce, sprite, phase, how, busy} + log, netns, userns
claim   {sprite, environment, resolv_conf, targets, profile, no_new_privileges, services} + root, binds -> {}
settings{environment?, profile?, no_new_privileges?}   -> {}
ping    {}                                             -> {sessions}
halt    {}                                             -> {}, and the inner container ends as after a shutdown
show    {name} + a checkpoint's mount                  -> {}
hide    {name}                                         -> {}
shown   {}                                             -> {names}
Notices to the node: {notice: "inner-exited", how}, {notice: "gone", question}, {notice: "activity", busy}: whether
commands run for control sockets, whose connections alone say nothing

And the agent's requests to its node, made for code inside the sprite (agent/inside.py):
ask     {question, method, target, body}               -> {}, once all of the answer has been given by
answer  {question, status, headers} or {question, data}, asked of the agent -> {taken}: false where nobody waits for it
Bodies are bytes, each as the character of its number.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any

from ballpoint.agent.agent import Agent
from ballpoint.agent.inside import Answer
from ballpoint.core.errors import ConflictError, InvalidError, UnavailableError
from ballpoint.core.peer import Peer

# A node serves agents of its own version and of the one before (the hello says which).
PROTOCOL_VERSION = 1
# A restore copies nothing, but a sync may have gigabytes to send; the node's own deadlines are shorter.
_ASK_SECONDS = 3600.0
_LINGER_SECONDS = 1.0


class Control:
    """Serves every node connection; more than one may exist while a node is being replaced."""

    def __init__(self, listener: socket.socket, agent: Agent) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._agent = agent
        self._peers: dict[Peer, None] = {}  # in the order of their coming
        self._numbers = count(1)
        self._questions: dict[int, Answer] = {}
        self.busy = False
        self._doing = 0
        self._operations: dict[str, Callable[[dict[str, Any], list[int]], Any]] = {
            "hello": self._hello,
            "claim": self._claim,
            "settings": self._settings,
            "ping": self._ping,
            "halt": self._halt,
            "shown": self._shown,
        }
        self._slow: dict[str, Callable[[dict[str, Any], list[int]], Awaitable[Any]]] = {
            "answer": self._answer,
            "show": self._show,
            "hide": self._hide,
        }
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def notify(self, notice: str, **details: Any) -> None:
        """Tell every connected node."""
        for peer in list(self._peers):
            peer.notify({"notice": notice, **details})

    def began(self) -> None:
        """Something has begun that keeps the sprite awake."""
        self._doing += 1
        self._tell()

    def ended(self) -> None:
        """It has ended. The node is told some time later: of many, one after the other, it hears little."""
        self._doing -= 1
        if not self._doing:
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._tell)

    def _tell(self) -> None:
        busy = self._doing > 0
        if busy != self.busy:
            self.busy = busy
            self.notify("activity", busy=busy)

    async def ask(self, method: str, target: str, body: bytes, answer: Answer) -> None:
        """Pass a request from inside to the node that came last.

        Args:
            answer: is given the parts of the response, one after the other, until this returns.

        Raises:
            UnavailableError: no node is connected, or the one asked has gone; InternalError: it failed.
        """
        if not self._peers:
            raise UnavailableError("the node is not connected", hint="it is being started again: try again")
        node = next(reversed(self._peers))
        number = next(self._numbers)
        self._questions[number] = answer
        try:
            text = body.decode("latin-1")
            await node.call("ask", seconds=_ASK_SECONDS, question=number, method=method, target=target, body=text)
        except asyncio.CancelledError:
            node.notify({"notice": "gone", "question": number})
            raise
        finally:
            del self._questions[number]

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        peer = Peer(sock, serve=self._serve, on_close=lambda: self._peers.pop(peer, None))
        self._peers[peer] = None

    async def _serve(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        if message["op"] in self._slow:
            return await self._slow[message["op"]](message, fds), ()
        operation = self._operations.get(message["op"])
        if operation is None:
            raise InvalidError(f"this agent knows no {message['op']!r}")
        result: tuple[Any, Sequence[int]] = operation(message, fds)
        return result

    def _hello(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        agent = self._agent
        answer = {
            "version": PROTOCOL_VERSION,
            "instance": agent.state["instance"],
            "nonce": agent.state["nonce"],
            "sprite": agent.state["sprite"],
            "phase": agent.phase,
            "how": agent.how,
            "busy": self.busy,
        }
        return answer, [os.dup(fd) for fd in (agent.log_fd, agent.netns, agent.userns)]

    def _claim(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        if self._agent.phase != "parked":
            raise ConflictError(f"the instance is {self._agent.phase}, not parked")
        root, *mounts = fds
        binds = list(zip(message["targets"], mounts, strict=True))
        self._agent.claim(message, root, binds)
        return {}, ()

    def _settings(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        self._agent.configure(message)
        return {}, ()

    def _ping(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        return {"sessions": len(self._agent.sessions or ())}, ()

    def _halt(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        self._agent.inner.halt()
        return {}, ()

    def _shown(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, Sequence[int]]:
        return {"names": self._agent.reveal.names}, ()

    async def _show(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if self._agent.phase != "running":
            raise ConflictError(f"the instance is {self._agent.phase}")
        (mount,) = fds
        await self._agent.reveal.show(message["name"], mount)
        self._agent.save()
        return {}

    async def _hide(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        await self._agent.reveal.hide(message["name"])
        self._agent.save()
        return {}

    async def _answer(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        answer = self._questions.get(message["question"])
        if answer is None:
            return {"taken": False}
        if "status" in message:
            answer.begin(message["status"], message["headers"])
            return {"taken": True}
        return {"taken": await answer.write(message["data"].encode("latin-1"))}
