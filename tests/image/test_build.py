"""Real builds: from an empty cache, twice, from mirrors that fail, and killed half-way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ballpoint.core.errors import InvalidError, UnavailableError
from ballpoint.image.catalogue import Catalogue, Image
from ballpoint.image.mount import mount_image
from ballpoint.image.progress import Progress
from tests.support.waiting import eventually

pytestmark = pytest.mark.host

BUILD = """
import sys
from pathlib import Path
from ballpoint.image.catalogue import Catalogue
Catalogue(Path(sys.argv[1])).build("slim", mirror=None, progress=lambda each: print(each.step, flush=True))
"""


class Missing(BaseHTTPRequestHandler):
    """A web server, but no mirror."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def no_mirror() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Missing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/debian"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dead_mirror() -> Iterator[str]:
    """An address where nobody listens: the port is bound, so that nobody else will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/debian"


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "images").iterdir() if path.name != ".lock")


def build(cache: Path, mirror: str | None = None) -> tuple[Image, list[Progress]]:
    said: list[Progress] = []
    return Catalogue(cache).build("slim", mirror=mirror, progress=said.append), said


@pytest.mark.parametrize("kind", ["dead_mirror", "no_mirror"])
def test_a_mirror_that_fails(root: None, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    mirror = request.getfixturevalue(kind)
    with pytest.raises(UnavailableError) as caught:
        build(tmp_path, mirror)
    assert mirror in caught.value.message
    assert "--mirror" in str(caught.value.hint)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "mirror", ["ftp-ish", "file:///nowhere/debian", "http://[/debian", "-o/debian", "http://a b/debian"]
)
def test_a_mirror_that_is_none(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(InvalidError) as caught:
        build(tmp_path, mirror)
    assert "http" in str(caught.value.hint)
    assert left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_empty_cache_and_the_same_packages_give_the_same_image(slim_image: Image, tmp_path: Path) -> None:
    fresh, said = build(tmp_path / "first")
    assert left(tmp_path / "first") == [fresh.digest]
    assert said[-1].fraction == 1
    assert [each.fraction for each in said] == sorted(each.fraction for each in said)
    # The mirror may have moved on since the shared image was built; then a second build has to be the witness.
    other = slim_image if packages(slim_image) == packages(fresh) else build(tmp_path / "second")[0]
    assert packages(other) == packages(fresh)
    assert other.digest == fresh.digest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_build_takes_its_programs_along_and_is_swept(root: None, tmp_path: Path, dead_mirror: str) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-c", BUILD, str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        for line in builder.stdout:
            if (
                line == "installing packages\n"
                and (cache / "images" / f".build-{builder.pid}/root/usr/bin/dpkg").exists()
            ):
                break
        assert running(cache)
        builder.kill()
    assert builder.returncode == -signal.SIGKILL
    eventually(lambda: not running(cache))
    assert str(cache) not in Path("/proc/self/mountinfo").read_text()
    assert Catalogue(cache).list() == []
    assert left(cache) == [f".build-{builder.pid}"]
    with pytest.raises(UnavailableError):
        build(cache, dead_mirror)
    assert left(cache) == []


def packages(image: Image) -> str:
    fd = mount_image(image)
    try:
        return Path(f"/proc/self/fd/{fd}/var/lib/dpkg/status").read_text()
    finally:
        os.close(fd)


def running(cache: Path) -> list[str]:
    """Processes that work on `cache`: named in their command, or with their root in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            place = os.readlink(process / "root")
        except OSError:
            continue  # it has ended meanwhile
        if (str(cache) in command or place.startswith(str(cache))) and process.name != str(os.getpid()):
            found.append(f"{process.name} {command}")
    return found
