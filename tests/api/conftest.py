from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI

from .double import NodeDouble, app_of, caller_header


@pytest.fixture(scope="session")
def served() -> tuple[NodeDouble, FastAPI]:
    """One application for all tests, as it keeps no state, and the node behind it."""
    node = NodeDouble()
    return node, app_of(node)


@pytest.fixture
def node(served: tuple[NodeDouble, FastAPI]) -> NodeDouble:
    """The node, as good as new."""
    served[0].reset()
    return served[0]


@pytest.fixture
def app(served: tuple[NodeDouble, FastAPI], node: NodeDouble) -> FastAPI:
    return served[1]


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client as the edge is one, on behalf of Alice."""
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://node", headers=caller_header()) as client:
        yield client
