from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.services.world import ServicesWorld
from tests.agent.world import descriptors, eventually


@pytest.fixture
async def world(root: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[ServicesWorld]:
    """An agent. Whatever a test does to it, it shows no traceback and keeps neither a process nor a descriptor."""
    before = descriptors().keys()
    made = ServicesWorld(tmp_path)
    await made.start()
    made.services.wake(False)
    try:
        yield made
    finally:
        await made.close()
    assert made.failures == []
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    await eventually(lambda: len(descriptors()) == len(before) + made.gates)
    made.close_gates()
    assert descriptors().keys() == before
    assert not made.cgroup.exists()
