"""The node's numbers, as Prometheus reads them."""

from __future__ import annotations

import httpx2
from fastapi import FastAPI

from ballpoint.core.metrics import Metrics

from .double import NodeDouble, app_of, caller_header


async def ask(app: FastAPI, headers: dict[str, str]) -> httpx2.Response:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://node") as client:
        return await client.get("/metrics", headers=headers)


async def test_numbers_are_told_as_they_are_now_and_to_those_with_a_token() -> None:
    metrics, lag = Metrics(), [0.25]
    saves = metrics.counter("ballpoint_saves_total", "Disks brought into the store.")
    metrics.gauge("ballpoint_lag_seconds_max", "How long.", lambda: lag[0])
    app = app_of(NodeDouble(), metrics)
    saves.add()
    saves.add(2)
    answer = await ask(app, caller_header())
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert answer.text == (
        "# HELP ballpoint_lag_seconds_max How long.\n"
        "# TYPE ballpoint_lag_seconds_max gauge\n"
        "ballpoint_lag_seconds_max 0.25\n"
        "# HELP ballpoint_saves_total Disks brought into the store.\n"
        "# TYPE ballpoint_saves_total counter\n"
        "ballpoint_saves_total 3\n"
    )
    lag[0] = 1.5
    assert "ballpoint_lag_seconds_max 1.5\n" in (await ask(app, caller_header())).text
    assert (await ask(app, {})).status_code == 401
