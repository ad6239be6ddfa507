"""uninstall: what nodes share goes with the last one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from ballpoint.cli.client import settings
from ballpoint.cli.host.down import remove_data
from ballpoint.core.config import RUN_ROOT, NodeConfig
from ballpoint.core.errors import UnauthorizedError
from ballpoint.host.requirements import INSTALLED_FILE, PACKAGES, SYSCTL_FILE
from ballpoint.image.uses import Uses
from tests.cli.command import OWN_SETTINGS
from tests.support.nodes import TestNode

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("root")]

# For what must happen. Seconds.
_DEADLINE = 120
# A host of its own, as far as uninstall can see.
_ELSEWHERE = f"""
mount -t tmpfs none /run
rm -rf /etc/ballpoint
mkdir -p /etc/sysctl.d /etc/modules-load.d /etc/ballpoint
touch /etc/sysctl.d/60-ballpoint.conf /etc/modules-load.d/60-ballpoint.conf
printf '%%s\\n' '# a comment' nosuch-package {PACKAGES["nft"]} {PACKAGES["gcc"]} >/etc/ballpoint/installed-packages
mkdir -p {RUN_ROOT}/slots {RUN_ROOT}/forwarding {RUN_ROOT}/mounts
%s
"$0" -m ballpoint.cli uninstall --data "$1"
find /run -mindepth 1 ! -path '/run/mount*' | sort
find /etc -path '*ballpoint*' | sort
"""


def elsewhere(data: Path, before: str = "") -> list[str]:
    done = subprocess.run(
        [*OWN_SETTINGS, "sh", "-euc", _ELSEWHERE % before, sys.executable, str(data)],
        capture_output=True, text=True, timeout=_DEADLINE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_last_node_takes_along_what_nodes_share(tmp_path: Path) -> None:
    stay, command, removed, *left = elsewhere(tmp_path / "data")
    assert "these packages were installed for it and stay" in stay
    assert command.split() == ["apt-get", "remove", "--autoremove", PACKAGES["gcc"], PACKAGES["nft"]]
    assert removed.startswith("removed /etc/sysctl.d/60-ballpoint.conf")
    assert "modules-load.d" in removed and "installed-packages" in removed
    assert left == []


def test_beside_another_node_it_stays(tmp_path: Path) -> None:
    dead, unknown, damaged = tmp_path / "a dead one", RUN_ROOT / "0a1b2d", RUN_ROOT / "0a1b2e"
    config = f"""
mkdir {RUN_ROOT}/0a1b2c {unknown} {damaged}
echo '{{"data":"{dead}"}}' >{RUN_ROOT}/0a1b2c/config.json
echo nonsense >{damaged}/config.json
"""
    said, first, second, third, *left = elsewhere(tmp_path / "data", before=config)
    assert "stays" in said
    assert "is dead" in first and f"ballpoint down --data '{dead}'" in first
    assert str(unknown) in second
    assert str(damaged) in third
    assert {f"{RUN_ROOT}/0a1b2c", f"{RUN_ROOT}/slots", str(SYSCTL_FILE), str(INSTALLED_FILE)} <= set(left)


@pytest.mark.node
def test_beside_a_real_node_it_stays(node: TestNode, tmp_path: Path) -> None:
    """And that one goes on as if nothing had been."""
    command = [sys.executable, "-m", "ballpoint.cli", "uninstall", "--data", str(tmp_path / "data"), "--purge",
               "--cache", str(tmp_path / "cache")]  # fmt: skip
    done = subprocess.run(command, check=True, timeout=_DEADLINE, capture_output=True, text=True)
    assert f"the node in {node.data}, which runs\n" in done.stdout
    assert (RUN_ROOT / node.id).is_dir()
    assert node.api("GET", "/v1/sprites").status_code == 200


def test_its_own_token_is_forgotten_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = NodeConfig(data=tmp_path / "data")
    config.data.mkdir()
    (config.data / "admin.token").write_text("local/o1/t1/v1\n")
    for token in ("local/o1/t1/v1", "acme/o2/t2/v2"):
        settings.remember(settings.selection(config.url, token))
    assert remove_data(config, tmp_path / "none") == [f"the token for {config.url}", str(config.data)]
    assert settings.select("acme").token == "acme/o2/t2/v2"
    with pytest.raises(UnauthorizedError):
        settings.select("local")


def test_images_that_another_node_uses_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = NodeConfig(data=tmp_path / "data")
    cache = tmp_path / "cache"
    (cache / "images").mkdir(parents=True)
    for directory, node_id in ((config.data, config.node_id), (tmp_path / "other", "0a1b2c")):
        directory.mkdir()
        record = msgspec.json.encode({"data": str(directory), "digests": ["a" * 64]})
        (cache / "images/.uses").mkdir(exist_ok=True)
        (cache / "images/.uses" / f"{node_id}.json").write_bytes(record)
    assert remove_data(config, cache) == [str(config.data)]
    assert str(tmp_path / "other") in capsys.readouterr().out
    assert set(Uses(cache).read()) == {"0a1b2c"}
    Uses(cache).forget("0a1b2c")
    assert remove_data(config, cache) == [str(cache)]
    assert not cache.exists()
