"""Answers of the node that are as good as asking again: nothing they rest on has changed since.

That is seen in two counts of changes, which the node and whoever else writes to the registry have in shared memory
(host/changes.py; docs/edge.md says why this is exact).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ballpoint.core.hosts import OWN_PATH
from ballpoint.edge.head import RequestHead
from ballpoint.edge.holds import Holds
from ballpoint.host.changes import Changes, is_settled

# RFC 9110 9.2.1: to do them twice does no more than once.
SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})
_OWN_PATH = OWN_PATH.encode()
_OF_ONE_REQUEST = frozenset({"method", "target"})
_MOST = 4096


class Known:
    """The answers of one edge.

    Args:
        counts: all that tell of changes; None where they cannot be seen: then nothing is remembered.
        holds: an answer is good while this edge keeps its sprite awake.
        connected: whether the node that answered is there.
    """

    def __init__(self, counts: list[Changes] | None, holds: Holds, connected: Callable[[], bool]) -> None:
        self._counts = counts or []
        self._holds = holds
        self._connected = connected
        self._loop = asyncio.get_running_loop()
        self._answers: dict[str, tuple[float, dict[str, Any]]] = {}
        self._seen = b""

    @staticmethod
    def key(head: RequestHead, question: dict[str, Any]) -> str | None:
        """What all questions have in common that have one answer; None where this one's may be for it alone."""
        if head.method not in SAFE or head.upgrade is not None or head.target.startswith(_OWN_PATH):
            return None
        # A text, as that has its hash with it.
        return repr([each for each in question.items() if each[0] not in _OF_ONE_REQUEST])

    def look(self) -> bytes:
        """What is the same as long as nothing changes; empty where that cannot be told. Taken before a question."""
        looks = [each.look() for each in self._counts]
        return b"".join(looks) if all(map(is_settled, looks)) else b""

    def remember(self, key: str, looked: bytes, answer: dict[str, Any]) -> None:
        """Keep an answer to a question that was asked after the look."""
        if not looked or looked != self._look() or "lasts" not in answer:
            return
        if looked != self._seen or len(self._answers) >= _MOST:
            self._answers.clear()
            self._seen = looked
        self._answers[key] = self._loop.time() + answer["lasts"], answer

    def recall(self, key: str) -> dict[str, Any] | None:
        """The node's answer, if it is certainly what it would answer now.

        Its lease is there if this edge holds the socket: the node is told of the end of what is held only once it is
        held no more, which the caller must change before it lets go of the processor.
        """
        found = self._answers.get(key)
        if found is None:
            return None
        until, answer = found
        if self._look() != self._seen or not self._connected():
            self._answers.clear()
            return None
        if self._loop.time() > until or not self._holds.holding(answer["socket"]):
            del self._answers[key]
            return None
        return answer

    def _look(self) -> bytes:
        looked = b""
        for each in self._counts:
            looked += each.look()
        return looked
