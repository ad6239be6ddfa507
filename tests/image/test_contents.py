"""What is in the slim image, seen by the programs in it; `standard` is the same and more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ballpoint.core.errors import CorruptError
from ballpoint.image.catalogue import Image
from ballpoint.image.mount import mount_image

from .machine import Machine

pytestmark = [pytest.mark.host, pytest.mark.slow]

STALE = """
import glob, importlib.util, os, struct, sys
seen = stale = 0
for compiled in glob.glob('/usr/lib/python3*/**/__pycache__/*.pyc', recursive=True):
    head = open(compiled, 'rb').read(16)
    flags, mtime, size = struct.unpack('<III', head[4:])
    source = os.stat(importlib.util.source_from_cache(compiled))
    seen += 1
    good = head[:4] == importlib.util.MAGIC_NUMBER and flags == 0
    stale += not good or (mtime, size) != (int(source.st_mtime), source.st_size)
print(seen > 500, stale)
"""


def test_the_user(slim: Machine) -> None:
    assert slim.run("id", "sprite") == "uid=1000(sprite) gid=1000(sprite) groups=1000(sprite)"
    assert slim.run("getent", "passwd", "sprite").endswith(":/home/sprite:/bin/bash")
    assert slim.run("stat", "-c", "%U:%G", "/home/sprite") == "sprite:sprite"
    assert slim.run("su", "-", "sprite", "-c", "sudo -n id -un") == "root"
    assert slim.run("visudo", "--check", "--quiet") == ""
    assert "/.sprite/bin" in slim.run("su", "-", "sprite", "-c", "echo $PATH").split(":")


def test_its_name_and_its_resolver(slim: Machine) -> None:
    assert slim.run("cat", "/etc/hostname") == "sprite"
    assert slim.run("getent", "hosts", "sprite").split()[0] in ("127.0.0.1", "::1")
    assert slim.run("readlink", "/etc/resolv.conf") == "../run/resolv.conf"
    assert slim.run("cat", "/etc/machine-id") == ""


def test_its_languages_run(slim: Machine) -> None:
    assert slim.run("node", "-e", "console.log(6*7)") == "42"
    assert slim.run("npm", "--version")
    assert slim.run("git", "--version").startswith("git version")
    assert slim.run("curl", "--version").startswith("curl")
    slim.run("su", "-", "sprite", "-c", "python3 -m venv ~/env && ~/env/bin/pip --version")
    assert slim.run("python3", "-c", "print(open('/etc/hostname').encoding.lower())") == "utf-8"


def test_compiled_python_is_not_stale(slim: Machine) -> None:
    assert slim.run("python3", "-c", STALE) == "True 0"


def test_it_carries_no_trace_of_its_build(slim: Machine) -> None:
    assert slim.run("sh", "-c", "ls -A /var/log /var/cache/apt /tmp /var/tmp /root/.npm 2>/dev/null | grep -v :") == ""
    assert slim.attempt("sh", "-c", "ls /etc/ssh/ssh_host_* /etc/*- /usr/local/share/ca-certificates/*").stdout == ""
    assert sorted(path.name for path in (slim.root / "etc/apt/apt.conf.d").iterdir()) == ["01autoremove", "70debconf"]
    assert not (slim.root / "etc/apt/sources.list").exists()
    assert [path.name for path in (slim.root / "etc/apt/sources.list.d").iterdir()] == ["debian.sources"]
    for directory in ("var/lib/docker", "var/lib/containers"):
        assert list((slim.root / directory).iterdir()) == []


def test_what_the_build_wrote_is_dated_like_the_newest_package(slim: Machine) -> None:
    newest = max(os.lstat(path).st_mtime for path in _walk(slim.root / "usr"))
    for written in ("etc/shadow", "etc/ld.so.cache", "etc/sudoers.d/sprite", "var/lib/dpkg/status"):
        assert (slim.root / written).stat().st_mtime == newest


def test_apt_works_at_once(slim: Machine) -> None:
    slim.run("apt-get", "update", "--error-on=any")
    slim.run("apt-get", "install", "-y", "--no-install-recommends", "hello")
    assert slim.run("hello") == "Hello, world!"


def test_packages_start_no_service_and_systemctl_says_why(slim: Machine) -> None:
    assert slim.attempt("/usr/sbin/policy-rc.d").returncode == 101
    assert slim.attempt("systemctl", "enable", "ssh").returncode == 0
    refused = slim.attempt("systemctl", "start", "nothing")
    assert refused.returncode == 1
    assert "no systemd" in refused.stderr


def test_a_mount_is_read_only_and_has_no_devices(slim_image: Image) -> None:
    fd = mount_image(slim_image)
    try:
        place = Path(f"/proc/self/fd/{fd}")
        with pytest.raises(OSError, match="Read-only"):
            (place / "etc/hostname").write_text("mine")
        with pytest.raises(PermissionError):
            (place / "dev/null").open("rb")
    finally:
        os.close(fd)


def test_a_file_that_is_no_image_is_refused(slim_image: Image, tmp_path: Path) -> None:
    file = tmp_path / "image.erofs"
    file.write_bytes(bytes(1 << 20))
    damaged = Image("0" * 64, "slim", slim_image.recipe_digest, file, slim_image.built_at, 1 << 20)
    with pytest.raises(CorruptError) as caught:
        mount_image(damaged)
    assert "ballpoint image build slim" in str(caught.value)


def _walk(top: Path) -> list[str]:
    return [os.path.join(directory, name) for directory, _, names in os.walk(top) for name in names]
