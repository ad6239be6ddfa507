from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

# Rows are in no test module, and say what differs all the same.
pytest.register_assert_rewrite("tests.sdk.rows")

JS = Path(__file__).parent / "js"
_INSTALL_SECONDS = 600.0


@pytest.fixture(scope="session")
def packages() -> Path:
    """The directory of the packages of package-lock.json: installed once, and whole or not there."""
    lock = (JS / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ballpoint-tests"
    place = cache / f"npm-{hashlib.sha256(lock).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)  # until it is closed: another run of tests may want the same
        if not place.exists():
            _install(cache, place)
    return place


def _install(cache: Path, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        for name in ("package.json", "package-lock.json"):
            (Path(unfinished) / name).write_bytes((JS / name).read_bytes())
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=unfinished, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (Path(unfinished) / "node_modules").rename(place)
