"""A volume of a pool, and what all uploads of a node share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ballpoint.core import ids
from ballpoint.volume.pool import VolumePool
from ballpoint.volume.sync.upload import Uploads


@pytest.fixture
def uploads() -> Iterator[Uploads]:
    made = Uploads(2)
    yield made
    made.close()


@pytest.fixture
def volume_id(pool: VolumePool) -> str:
    made = ids.new_uuid()
    pool.create(made, template="base", meta={"image": "digest"})
    return made
