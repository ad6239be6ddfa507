"""What code inside a sprite may ask of its node (/.sprite/api.sock): the control API's answers, about itself alone.

The agent passes requests on (agent/inside.py). Whose they are is known by the connection they come on; the API is told
by the scope's `ballpoint.inside`, which no request over HTTP can set, and decides which routes there are
(api/inside.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any
from urllib.parse import unquote

from ballpoint.core.errors import UnavailableError
from ballpoint.core.types import Caller
from ballpoint.node.lifecycle.running import Running
from ballpoint.node.views import Reason
from ballpoint.registry.registry import Registry
from ballpoint.runtime.container.questions import Question

log = logging.getLogger(__name__)

# In the scope of a request from inside: (the sprite's name, on whose behalf it asks).
SCOPE_KEY = "ballpoint.inside"
# In causes of events, in the place of a token's id.
TOKEN_ID = "inside"
# At once, of one sprite. The agent has its own bound; this one holds for an agent that was taken over.
QUESTIONS_MAX = 8
# A sync may have gigabytes to send. Whoever asked waits no longer; what was begun goes on.
_ANSWER_SECONDS = 1800.0
# What frames the answer is the agent's business (RFC 9110 section 7.6.1).
_FRAMING = frozenset({"content-length", "transfer-encoding", "connection", "keep-alive"})
_BUSY = b'{"error":"unavailable","message":"%d requests of this sprite are being answered already","hint":"try again"}'


class Inside:
    """Answers the questions of all sprites of one node."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._app: Any = None
        self._busy: Counter[str] = Counter()

    def open(self, app: Any) -> None:
        """Answer by `app`, the control API's ASGI application, from now on."""
        self._app = app

    def reasons(self, running: Running) -> list[Reason]:
        """See `Idling`: a sprite that asks something waits for the answer."""
        return [Reason(kind="request", what="inside")] if self._busy[running.instance.id] else []

    async def answer(self, running: Running, question: Question) -> None:
        """Answer what code inside `running` asks.

        Raises:
            UnavailableError: the node is starting, or the sprite is being stopped.
        """
        if self._app is None or running.ending:
            raise UnavailableError("the node answers no questions now", hint="try again")
        instance_id = running.instance.id
        if self._busy[instance_id] >= QUESTIONS_MAX:
            await question.begin(503, {"content-type": "application/json"})
            await question.write(_BUSY % QUESTIONS_MAX)
            return
        self._busy[instance_id] += 1
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._ask_app(running, question)
        except TimeoutError as error:
            raise UnavailableError(f"no answer within {_ANSWER_SECONDS:g} s") from error
        finally:
            self._busy[instance_id] -= 1
            if not self._busy[instance_id]:
                del self._busy[instance_id]

    async def _ask_app(self, running: Running, question: Question) -> None:
        sprite = await self._registry.sprite_by_id(running.sprite_id)
        caller = Caller(org_id=sprite.org_id, org=sprite.org, token_id=TOKEN_ID)
        # An agent that was taken over may send what is no text.
        path, query = (part.encode("utf-8", "replace") for part in question.target.partition("?")[::2])
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": question.method,
            "scheme": "http",
            "path": unquote(path.decode()),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(b"host", b"sprite"), (b"content-length", str(len(question.body)).encode())],
            "client": None,
            "server": None,
            "state": {},
            SCOPE_KEY: (sprite.name, caller),
        }
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": question.body, "more_body": False}
            await question.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if question.gone.is_set():
                return  # as the specification of ASGI has it: the next `receive` says so
            try:
                if message["type"] == "http.response.start":
                    fields = ((name.decode("latin-1").lower(), value) for name, value in message["headers"])
                    headers = {name: value.decode("latin-1") for name, value in fields if name not in _FRAMING}
                    await question.begin(message["status"], headers)
                elif body := message.get("body"):
                    await question.write(body)
            except UnavailableError as error:
                log.info("an answer for %s was not taken: %s", sprite.name, error)
                question.gone.set()

        await self._app(scope, receive, send)
