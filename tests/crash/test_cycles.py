"""Checkpoints and restores over and over, while the node is killed at random moments: none is lost, none half done."""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from typing import Any

import httpx2
import pytest
from sprites import SpriteError

from tests.crash.test_kill import kill
from tests.support.checkpoints import checkpoint, content, fork, listed, new_sprite, pool, post, write
from tests.support.host import traces
from tests.support.nodes import TestNode
from tests.support.seeds import fresh_seed
from tests.support.waiting import eventually

pytestmark = [pytest.mark.node, pytest.mark.slow]

_ROUNDS, _SOAK_ROUNDS = 20, 500
# So long a restore takes at most, mostly.
_MOMENT_SECONDS = 1.0


def answered(call: Any) -> bool:
    """Whether a call of the SDK gets through now; what stands in the way while a node is started does not count."""
    with suppress(SpriteError, httpx2.TransportError, AssertionError):
        call()
        return True
    return False


@pytest.mark.timeout(900)
def test_cycles_with_random_kills(own_node: TestNode, soak: bool) -> None:
    seed = fresh_seed()
    chance = random.Random(seed)
    own_node.start()
    own_node.options += ["--listen", own_node.url.removeprefix("http://")]
    sprite = new_sprite(own_node)
    states: dict[str, str] = {}
    seconds: dict[str, list[float]] = {"checkpoint": [], "restore": []}
    present = "none"
    write(sprite, present)
    with ThreadPoolExecutor(1) as threads:
        for number in range(_SOAK_ROUNDS if soak else _ROUNDS):
            present = f"round-{number}"
            write(sprite, present)
            before = {each["id"] for each in listed(own_node, sprite)}
            wanted = chance.choice([*states]) if states and chance.random() < 0.6 else None
            verb = "checkpoint" if wanted is None else f"checkpoints/{wanted}/restore"
            asked = threads.submit(_ask, own_node, sprite, verb)
            killed = chance.random() < 0.7
            if killed:
                threading.Event().wait(chance.uniform(0.0, _MOMENT_SECONDS))
                (process,) = own_node.processes("node")
                kill(process)
                eventually(lambda process=process: set(own_node.processes("node")) - {process}, 60)  # type: ignore[misc]
            done, took = asked.result()
            if done and not killed:
                seconds["checkpoint" if wanted is None else "restore"].append(took)
            eventually(lambda: answered(lambda: content(sprite)), 120)
            found = content(sprite)
            if wanted is None:
                assert found == present
            else:
                assert found == states[wanted] if done else found in {present, states[wanted]}
            new = [each for each in listed(own_node, sprite) if each["id"] not in before]
            assert {each["id"] for each in listed(own_node, sprite)} >= states.keys()
            assert len(new) >= done
            states.update({each["id"]: present for each in new if not each["is_auto"]})
            present = found
    for name, each in seconds.items():
        if each:
            p50, p99 = (sorted(each)[len(each) * share // 100] for share in (50, 99))
            sys.stdout.write(f"{name}: p50 {p50:.3f} s, p99 {p99:.3f} s (n={len(each)})\n")
    for name in chance.sample([*states], min(5, len(states))):
        copy = fork(own_node, sprite, name)
        assert content(copy) == states[name]
    assert post(own_node, sprite, "sync").status_code == 200
    checkpoint(own_node, sprite, params={"wait": "durable"})
    assert all(each["durable"] for each in listed(own_node, sprite))
    assert list((pool(own_node) / "staging").iterdir()) == []
    for each in own_node.api("GET", "/v1/sprites").json()["sprites"]:
        assert own_node.api("DELETE", f"/v1/sprites/{each['name']}").status_code == 204
    assert own_node.terminate() == 0
    left = traces(own_node.id, own_node.data)
    assert left == dict.fromkeys(left, [])


def _ask(node: TestNode, sprite: Any, verb: str) -> tuple[bool, float]:
    """Ask for something. Returns whether it was said to be done, and after how many seconds."""
    began = monotonic()
    with suppress(httpx2.TransportError):
        answer = post(node, sprite, verb)
        assert answer.status_code in (200, 503), answer.text
        return '"complete"' in answer.text, monotonic() - began
    return False, 0.0
