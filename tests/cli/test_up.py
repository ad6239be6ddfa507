"""up and down: from nothing to a console, and back."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ballpoint.cli.host.unit import UNIT_FILE, admin_token_file
from ballpoint.core.config import NodeConfig, load_config
from ballpoint.host import logfile
from ballpoint.host.requirements import INSTALLED_FILE, MODULES_FILE, SYSCTL_FILE
from ballpoint.image.catalogue import Image
from ballpoint.image.uses import Uses
from tests.cli.command import COMMAND, OWN_SETTINGS, Terminal, ballpoint
from tests.store import servers
from tests.support.host import traces
from tests.support.nodes import CACHE, TestNode
from tests.support.ports import free_port

pytestmark = [pytest.mark.host, pytest.mark.node, pytest.mark.slow, pytest.mark.usefixtures("root")]

_GREETING = "Hello from a sprite"


@dataclass
class Place:
    """Where an operator brings a node up: a home, and a data directory that is not there yet."""

    home: Path
    listen: str

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def config(self) -> NodeConfig:
        return load_config(None, data=self.data, cache=CACHE)

    @property
    def options(self) -> list[str]:
        return [
            "--data", str(self.data), "--cache", str(CACHE), "--image", "slim", "--listen", self.listen,
            "--pool", "2", "--pool-gb", "20",
        ]  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return ballpoint(self.home, *arguments, inside=OWN_SETTINGS)

    def up(self, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("up", *self.options, *more)

    def down(self) -> str:
        done = self.run("down", "--data", str(self.data))
        assert done.returncode == 0, done.stderr
        return done.stdout


def host_settings() -> dict[Path, bytes]:
    """What this host has of the files that `up` writes and `uninstall` removes."""
    files = (SYSCTL_FILE, MODULES_FILE, INSTALLED_FILE, UNIT_FILE)
    return {file: file.read_bytes() for file in files if file.exists()}


@pytest.fixture
def place(slim_image: Image, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, f"127.0.0.1:{free_port()}")
    settings = host_settings()
    try:
        yield made
    finally:
        made.down()
        Uses(CACHE).forget(made.config.node_id)  # its data goes with the test
    left = traces(made.config.node_id, made.data)
    assert left == dict.fromkeys(left, [])
    assert host_settings() == settings


def test_from_nothing_to_a_console_and_back(place: Place) -> None:
    first = place.up()
    assert first.returncode == 0, first.stderr
    assert _GREETING in first.stdout
    assert "starting a node" in first.stderr and "created the sprite" in first.stderr

    again = place.up()
    assert again.returncode == 0, again.stderr
    assert f"a node is running on {place.listen}" in again.stderr
    assert _GREETING in again.stdout
    assert "starting" not in again.stderr and "created" not in again.stderr

    terminal = Terminal(place.home, "up", *place.options, inside=OWN_SETTINGS)
    terminal.expect(b"opening a console")
    terminal.type(b"echo kept-$((6 * 7)) | tee kept\n")
    terminal.expect(b"kept-42")
    terminal.type(b"exit 3\n")
    assert terminal.end() == 3

    assert place.down() == f"stopped the node in {place.data}; its sprites are cold\n"
    assert place.up().returncode == 0
    kept = place.run("-s", "first", "exec", "--", "cat", "kept")
    assert (kept.returncode, kept.stdout) == (0, "kept-42\n")

    gone = place.run("uninstall", "--data", str(place.data), "--purge", "--cache", str(place.home / "none"))
    assert gone.returncode == 0, gone.stderr
    assert list(place.home.iterdir()) == []
    left = traces(place.config.node_id, place.data)
    assert left == dict.fromkeys(left, [])


def test_a_lost_host_is_back_with_recover_and_up(place: Place, tmp_path: Path) -> None:
    """The commands of the README, one after the other, and nothing else."""
    store = ("--store", f"file://{tmp_path / 'store'}")
    up = place.up(*store)
    assert up.returncode == 0, up.stderr
    assert place.run("-s", "first", "exec", "--", "sh", "-c", "echo precious > notes").returncode == 0
    assert place.run("sync", "first").returncode == 0
    place.down()
    shutil.rmtree(place.data)
    recovered = place.run("recover", "--data", str(place.data), *store)
    assert recovered.returncode == 0 and "recovered 1 sprites" in recovered.stdout, recovered.stderr
    up = place.up(*store)
    assert up.returncode == 0, up.stderr
    assert "created" not in up.stderr
    notes = place.run("-s", "first", "exec", "--", "cat", "notes")
    assert (notes.returncode, notes.stdout) == (0, "precious\n")


def test_what_a_running_node_does_not_take_is_refused_and_changes_nothing(place: Place) -> None:
    assert place.up().returncode == 0
    before = {path: path.read_bytes() for path in (place.data / "node.toml", place.config.run / "config.json")}
    for options, says in (
        (["--pids", "77"], "pids is 4096, not 77"),
        (["--listen", "127.0.0.1:1"], f"listen is {place.listen}, not 127.0.0.1:1"),
        (["--egress-allow", "10.1.2.0/24"], "egress_allow is empty, not 10.1.2.0/24"),
        (["--dns", "192.0.2.1"], "dns is not set, not 192.0.2.1"),
        (["--system"], "it is not run by systemd"),
    ):
        refused = place.up(*options)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert says in refused.stderr
        assert f"ballpoint down --data {place.data}" in refused.stderr
        assert len(re.findall(" is ", refused.stderr)) == 1  # and nothing that was not asked for
    assert {path: path.read_bytes() for path in before} == before

    file = place.home / "settings.toml"
    file.write_text("pids = 77\ncpus = 0\n")
    refused = place.run("up", "--data", str(place.data), "--config", str(file))
    assert refused.returncode == 1
    assert "pids is 4096, not 77" in refused.stderr and "cpus" not in refused.stderr
    assert {path: path.read_bytes() for path in before} == before

    # Whoever asks for nothing, or for what is so, finds it as it runs.
    for options in ([], ["--pids", "4096"]):
        found = place.run("up", "--data", str(place.data), *options)
        assert (found.returncode, _GREETING in found.stdout) == (0, True), found.stderr

    place.down()
    changed = place.up("--pids", "77")
    assert changed.returncode == 0, changed.stderr
    assert load_config(place.data / "node.toml").pids == 77


def test_a_start_that_fails_says_why(place: Place) -> None:
    place.data.mkdir()
    (place.data / "registry.db").write_bytes(b"no database" * 1000)
    admin_token_file(place.config).write_text("of/an/earlier/start\n")
    log = place.data / "node.log"
    log.write_bytes(b"ballpoint: what was wrong before\n")
    log.chmod(0o644)
    failed = place.up()
    (place.data / "registry.db").unlink()
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "the node did not start: the registry's database is damaged" in failed.stderr
    assert f"its log: {log}" in failed.stderr
    assert log.read_bytes().startswith(b"ballpoint: what was wrong before\n")
    assert log.stat().st_mode & 0o777 == logfile.MODE


def test_beside_a_damaged_registry_no_token_is_made_and_no_node_started(place: Place) -> None:
    place.data.mkdir()
    (place.data / "registry.db").write_bytes(b"no database" * 1000)
    refused = place.up()
    left = sorted(path.name for path in place.data.iterdir())
    (place.data / "registry.db").unlink()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the registry's database is damaged" in refused.stderr
    assert left == ["registry.db"]


def test_a_start_that_crashes_does_not_say_what_an_earlier_one_did(place: Place) -> None:
    place.data.mkdir()
    log = place.data / "node.log"
    log.write_bytes(b"ballpoint: what was wrong before\n")
    (place.config.run / "config.json").mkdir(parents=True)
    crashed = place.up()
    assert (crashed.returncode, crashed.stdout) == (1, "")
    assert "the node did not start" in crashed.stderr and "before" not in crashed.stderr
    assert "IsADirectoryError" in log.read_text()


def test_beside_another_node_on_its_port_it_is_refused_and_changes_nothing(
    node: TestNode, home: Path, place: Place
) -> None:
    """And what the client knows of that node stays."""
    known = {path.name: path.read_bytes() for path in (home / ".sprites").iterdir()}
    place.listen = node.url.removeprefix("http://")
    refused = ballpoint(home, "up", *place.options, inside=OWN_SETTINGS)
    assert refused.returncode == 1
    assert f"cannot listen on {place.listen}" in refused.stderr and "--listen" in refused.stderr
    assert {path.name: path.read_bytes() for path in (home / ".sprites").iterdir()} == known
    assert not place.data.exists()


def test_a_port_that_nobody_would_find_again_is_refused(place: Place) -> None:
    place.listen = "127.0.0.1:0"
    refused = place.up()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "a port of its own" in refused.stderr
    assert not place.data.exists()


def test_a_node_that_has_no_token_file_is_left_as_it_is(place: Place) -> None:
    """One that `serve` runs: `up` says how to get in."""
    serve = [*COMMAND, "serve", *place.options]
    with (
        (place.home / "log").open("ab") as log,
        subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=log, start_new_session=True) as served,
    ):
        assert served.stdout is not None
        assert b"serving on" in served.stdout.readline()
        refused = place.up()
        place.down()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "without a token file" in refused.stderr
    assert f"ballpoint token create --data {place.data}" in refused.stderr
    assert not (place.data / "admin.token").exists()


def test_down_says_what_it_did(own_node: TestNode) -> None:
    nothing = f"no node runs in {own_node.data}\n"
    assert own_node.down() == nothing
    own_node.start()
    assert own_node.down() == f"stopped the node in {own_node.data}; its sprites are cold\n"
    own_node.start()
    own_node.kill()
    assert own_node.down() == (
        f"the node in {own_node.data} was dead already: removed what it had left; its sprites are cold\n"
    )
    assert own_node.down() == nothing


def test_a_node_is_given_the_credentials_of_its_store(place: Place, tmp_path: Path) -> None:
    """Nothing but the environment has them; a store that is asked without refuses."""
    server = tmp_path / "server"
    server.mkdir()
    with servers.seaweedfs(server) as endpoint:
        store = ("--store", servers.store_url(endpoint, "node"))
        refused = place.up("--no-console", *store)
        assert refused.returncode != 0 and "it says 403" in refused.stderr
        up = ballpoint(
            place.home, "up", *place.options, "--no-console", *store, inside=OWN_SETTINGS, **servers.ENVIRONMENT
        )
        assert up.returncode == 0 and _GREETING in up.stdout, up.stderr
        place.down()
    log = (place.data / "node.log").read_text()
    for text in (refused.stderr, up.stderr, log):
        assert servers.SECRET_KEY not in text
