"""Building an image: Debian packages by mmdebstrap, npm packages, a few files, one plain erofs file.

The same recipe and the same packages give the same bytes: everything the build itself writes is dated like the newest
packaged file, and what differs from run to run (logs, caches, ids) is removed. Packaged files keep their dates, or
every compiled Python file would be taken for stale.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import UnavailableError
from ballpoint.host import process
from ballpoint.host.files import remove_tree
from ballpoint.image.injection import certificates_of_host
from ballpoint.image.mirrors import Mirrors, host_mirrors
from ballpoint.image.recipe import Recipe

_COMMAND_SECONDS = 600.0
_NPM_SECONDS = 1800.0
_UUID = uuid.uuid5(uuid.NAMESPACE_DNS, "standard-image.ballpoint")
_TOOLS = {"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils", "unshare": "util-linux"}
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
_APT_OPTIONS = (
    'Acquire::http::Timeout "15"',
    'Acquire::https::Timeout "15"',
    'Acquire::Retries "1"',
    'APT::Install-Recommends "false"',
)
_REMOVED = (
    "var/log/*", "var/cache/apt/*", "var/lib/apt/lists/*", "var/cache/ldconfig/*", "var/cache/debconf/*-old",
    "var/cache/man/*", "var/lib/dpkg/*-old", "etc/*-", "tmp/*", "var/tmp/*", "root/.npm", "root/.cache",
    "root/.wget-hsts", "etc/ssh/ssh_host_*", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/resolv.conf", "usr/local/share/ca-certificates/*",
    "run/*", "etc/.pwd.lock", "var/lib/systemd/*", "etc/machine-id", "var/lib/dbus/machine-id",
)  # fmt: skip
_EMPTY = ("var/lib/docker", "var/lib/containers")


class Progress(msgspec.Struct, frozen=True):
    """How far a build has come.

    Attributes:
        step: what is being done, for people.
        fraction: from 0 to 1; never falls.
    """

    step: str
    fraction: float


def build_filesystem(
    recipe: Recipe, target: Path, work: Path, *, mirror: str | None, progress: Callable[[Progress], None]
) -> None:
    """Build `recipe` into the erofs file `target`.

    Args:
        work: an empty directory for the tree; the caller removes it.
        mirror: Debian archive; None takes the host's own, or else mmdebstrap's default.

    Raises:
        UnavailableError: a tool or key is missing, or a package source does not answer.
    """
    _check_tools()
    mirrors = host_mirrors()
    root = work / "root"
    started = SYSTEM_CLOCK.now().timestamp()
    report = _Reporter(progress, bool(recipe.npm))
    _bootstrap(recipe, root, mirror or mirrors.debian, report)
    report.step("creating the user", 0.70)
    _add_user(root)
    if recipe.npm:
        report.step("installing npm packages", 0.72)
        _install_npm(recipe, root, mirrors)
    report.step("adding files", 0.90)
    _add_files(recipe, root)
    _clean(root)
    if mirror or mirrors.debian:
        (root / "etc/apt/sources.list").unlink(missing_ok=True)  # this host's choice; injected, never built in
    epoch = _newest_packaged(root, started)
    _date_passwords(root, epoch)
    report.step("writing the image", 0.93)
    process.run(
        ["mkfs.erofs", "--quiet", "-U", str(_UUID), str(target), str(root)],
        timeout=_COMMAND_SECONDS,
        env={"SOURCE_DATE_EPOCH": str(epoch)},
    )
    remove_tree(root)
    report.step("done", 1.0)


class _Reporter:
    """Turns mmdebstrap's messages into progress; they come in this order."""

    _STEPS = (
        ("running apt-get update", 0.02, "downloading package lists"),
        ("downloading packages with apt", 0.05, "downloading packages"),
        ("extracting archives", 0.15, "unpacking the base system"),
        ("installing essential packages", 0.20, "installing the base system"),
        ("downloading packages", 0.30, "downloading packages"),
        ("installing remaining packages", 0.35, "installing packages"),
        ("cleaning package lists", 0.68, "cleaning up"),
    )

    def __init__(self, progress: Callable[[Progress], None], with_npm: bool) -> None:
        self._progress = progress
        self._scale = 0.6 if with_npm else 1.0
        self._reached = 0.0

    def line(self, line: str) -> None:
        for text, fraction, name in self._STEPS:
            if line.startswith("I: ") and text in line:
                self.step(name, fraction)

    def step(self, name: str, fraction: float) -> None:
        scaled = fraction * self._scale if fraction < 0.72 else fraction
        self._reached = max(self._reached, scaled)
        self._progress(Progress(name, self._reached))


def _check_tools() -> None:
    for tool, package in _TOOLS.items():
        if process.which(tool) is None:
            raise UnavailableError(f"{tool} is not installed", hint=f"apt-get install {package}")
    if not _KEYRING.exists():
        raise UnavailableError("Debian's archive keys are not installed", hint="apt-get install debian-archive-keyring")


def _bootstrap(recipe: Recipe, root: Path, mirror: str | None, report: _Reporter) -> None:
    command = [
        # Its own mount namespace: an interrupted build leaves no mount behind.
        "unshare", "--mount", "--propagation", "private", "--kill-child", "--fork", "--",
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--keyring", str(_KEYRING),
        f"--include={','.join(recipe.packages)}",
        # A mirror that is down must be an error soon.
        *(f"--aptopt={option}" for option in _APT_OPTIONS),
        *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        recipe.suite, str(root), *([mirror] if mirror else []),
    ]  # fmt: skip
    try:
        process.run_lines(command, report.line)
    except process.CommandFailedError as error:
        lines = [line for line in error.output.splitlines() if line.startswith(("E:", "Err:", "W: Failed"))]
        reason = lines[0] if lines else error.message
        raise UnavailableError(
            f"the packages of the standard image could not be fetched or installed: {reason}",
            hint="check the mirror (--mirror URL, or the host's own apt sources), then try again",
        ) from error


def _chroot(root: Path, *command: str, timeout: float = _COMMAND_SECONDS, env: dict[str, str] | None = None) -> None:
    process.run(["chroot", str(root), *command], timeout=timeout, env=env)


def _add_user(root: Path) -> None:
    _chroot(root, "useradd", "--create-home", "--uid", "1000", "--user-group", "--shell", "/bin/bash", "sprite")


def _install_npm(recipe: Recipe, root: Path, mirrors: Mirrors) -> None:
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    bundle = root / "tmp/ca.pem"
    bundle.write_bytes(b"".join(certificates_of_host()))
    settings = {f"npm_config_{key.replace('-', '_')}": value for key, value in mirrors.npm.items()}
    if bundle.stat().st_size:
        settings["NODE_EXTRA_CA_CERTS"] = "/tmp/ca.pem"
    settings |= {"npm_config_cache": "/tmp/npm", "npm_config_update_notifier": "false"}
    try:
        for packages in recipe.npm:
            command = ("npm", "install", "--global", "--no-audit", "--no-fund", *packages)
            _chroot(root, *command, timeout=_NPM_SECONDS, env=settings)
    except process.CommandFailedError as error:
        raise UnavailableError(
            f"the npm packages of the standard image could not be installed: {error.message}",
            hint="check the host's npm registry setting, then try again",
        ) from error


def _add_files(recipe: Recipe, root: Path) -> None:
    for path, (mode, content) in recipe.files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
    for directory in _EMPTY:
        (root / directory).mkdir(parents=True, exist_ok=True)


def _clean(root: Path) -> None:
    for pattern in _REMOVED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()
    (root / "etc/machine-id").touch()
    # The node writes the name servers into /run at the claim.
    (root / "etc/resolv.conf").symlink_to("../run/resolv.conf")


def _newest_packaged(root: Path, started: float) -> int:
    """Date of the newest file that came out of a package, not out of this build; in seconds since the epoch."""
    newest = 0.0
    for directory, _, names in os.walk(root / "usr"):
        for name in names:
            changed = os.lstat(os.path.join(directory, name)).st_mtime  # noqa: PTH118 - a hundred thousand times
            if newest < changed < started:
                newest = changed
    return int(newest)


def _date_passwords(root: Path, epoch: int) -> None:
    """shadow(5) records the day of each password's change, which would be the day of the build."""
    shadow = root / "etc/shadow"
    lines = []
    for line in shadow.read_text().splitlines():
        fields = line.split(":")
        fields[2] = str(epoch // 86400)
        lines.append(":".join(fields))
    shadow.write_text("\n".join(lines) + "\n")
