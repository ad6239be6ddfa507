from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.files.world import FilesWorld
from tests.agent.world import descriptors, eventually


@pytest.fixture
async def world(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[FilesWorld]:
    """An agent. Whatever a test does to it, it shows no traceback and keeps neither a helper nor a descriptor."""
    before = descriptors().keys()
    made = FilesWorld(tmp_path)
    await made.start()
    try:
        yield made
    finally:
        await made.close()
    assert made.failures == []
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
    await eventually(lambda: len(descriptors()) == len(before) + made.gates)
    made.close_gates()
    assert descriptors().keys() == before
