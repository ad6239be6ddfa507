"""The node's numbers, in the text format that Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Response

from ballpoint.core.metrics import Sample

# https://prometheus.io/docs/instrumenting/exposition_formats/, "Text-based format"
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_metrics_route(app: FastAPI, samples: Callable[[], list[Sample]]) -> None:
    """Give `app` the route `/metrics`, for whoever has a token of the node."""

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """What the node counts and measures, of all organizations together."""
        lines = [
            f"# HELP {each.name} {each.help}\n# TYPE {each.name} {each.kind}\n{each.name} {each.value:.15g}\n"
            for each in samples()
        ]
        return Response("".join(lines), media_type=_TYPE)
