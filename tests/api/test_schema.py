"""Every operation of the document, asked with what its schema allows and with what it forbids.

schemathesis makes the requests, and holds each answer against the document: its status, type, headers and body.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.result import Ok
from starlette.routing import Route

from ballpoint.api.guard import LIVENESS_PATH, LOG_IN_PATH
from ballpoint.api.tasks import PATH as TASKS

from .double import NodeDouble, app_of, behind_edge

# Routes that the document leaves out, each with what asks them at random or why nothing does.
UNDOCUMENTED = {
    "/openapi.json": "takes nothing",
    "/docs": "takes nothing",
    "/metrics": "takes nothing",
    "/v1/info": "takes nothing; test_inside.py asks it",
    LIVENESS_PATH: "takes nothing",
    LOG_IN_PATH: "test_fuzz.py",
    TASKS: "test_fuzz.py",
    TASKS + "/{task}": "test_fuzz.py",
}
# What is valid by its schema and yet may be refused, because a schema cannot say what makes it good.
OPAQUE = {"clear_labels", "continuation_token", "idle_timeout"}

SLOWNESS = [HealthCheck.too_slow, HealthCheck.filter_too_much]

NODE = NodeDouble()
APP = app_of(NODE, log_ins=Any, tasks=Any)  # type: ignore[arg-type]


def _document() -> dict[str, Any]:
    """Without the token, which is the edge's to check."""
    document = {key: value for key, value in APP.openapi().items() if key != "security"}
    components = {key: value for key, value in document["components"].items() if key != "securitySchemes"}
    return {**document, "components": components}


SCHEMA = schemathesis.openapi.from_dict(_document())
SCHEMA.app = behind_edge(APP)
OPERATIONS = {each.ok().label: each.ok() for each in SCHEMA.get_all_operations() if isinstance(each, Ok)}
every_operation = pytest.mark.parametrize("label", OPERATIONS)


def ask(case: Case[Any], known: bool) -> int:
    """The status of an answer that is as the document says. `known`: the sprite and the checkpoint are there."""
    NODE.reset()
    NODE.more.put_nowait(False)  # what would be followed ends
    NODE.put("web")
    for _ in range(2):  # so that the first is not in use
        NODE.put_checkpoint("web")
    if known:
        there = {"name": "web", "checkpoint": "v0"}
        case.path_parameters = {name: there[name] for name in case.path_parameters}
        if isinstance(case.body, dict) and isinstance(case.body.get("checkpoint"), str):
            case.body["checkpoint"] = there["checkpoint"]
    named = {*(case.query or {}), *(case.body if isinstance(case.body, dict) else ())}
    left_out: Any = [CHECKS.get_one("positive_data_acceptance")] if named & OPAQUE else []
    return case.call_and_validate(excluded_checks=left_out).status_code


def ask_many(label: str, mode: GenerationMode, examples: int) -> set[int]:
    """The statuses of all answers to requests of one operation."""
    statuses = set()

    @given(OPERATIONS[label].as_strategy(generation_mode=mode), st.booleans())
    @settings(max_examples=examples, suppress_health_check=SLOWNESS)
    def one(case: Case[Any], known: bool) -> None:
        statuses.add(ask(case, known))

    one()
    return statuses


@pytest.fixture
def examples(soak: bool) -> int:
    """How many requests of each kind: what schemathesis makes of one costs as much as ten of others."""
    return 2000 if soak else 25


@every_operation
def test_what_the_document_allows_is_done(label: str, examples: int) -> None:
    statuses = ask_many(label, GenerationMode.POSITIVE, examples)
    assert any(200 <= status < 300 for status in statuses), f"{label} was never done: {statuses}"


@pytest.mark.parametrize("label", [label for label, each in OPERATIONS.items() if each.body or each.query])
def test_what_the_document_forbids_is_refused(label: str, examples: int) -> None:
    assert ask_many(label, GenerationMode.NEGATIVE, examples) & {400, 404, 422}


def test_every_route_is_asked() -> None:
    """One that comes is in the document, and so above, or it is named here with what becomes of it."""
    routes = [route for route in APP.routes if isinstance(route, Route | APIRoute)]
    assert len(routes) == len(APP.routes)
    documented = {
        f"{method} {route.path}" for route in routes if route.include_in_schema for method in route.methods or ()
    }
    assert documented == set(OPERATIONS)
    assert {route.path for route in routes if not route.include_in_schema} == set(UNDOCUMENTED)
