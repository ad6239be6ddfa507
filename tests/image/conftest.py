"""Fixtures of the image's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ballpoint.image.catalogue import Image

from .machine import Machine, machine


@pytest.fixture
def slim(slim_image: Image, tmp_path: Path) -> Iterator[Machine]:
    """A writable tree over the slim image, as it was built: nothing is injected."""
    with machine(slim_image, tmp_path / "machine") as made:
        yield made
