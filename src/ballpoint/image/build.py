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

from ballpoint.core.clock import SYSTEM_CLOCK
from ballpoint.core.errors import InvalidError, UnavailableError
from ballpoint.host import process
from ballpoint.host.files import remove_tree
from ballpoint.image.bootstrap import bootstrap, contained
from ballpoint.image.injection import certificates_of_host
from ballpoint.image.mirrors import KEYRING, SOURCES, Archives, Mirrors, host_mirrors
from ballpoint.image.progress import Progress as Progress
from ballpoint.image.progress import Reporter
from ballpoint.image.recipe import Recipe

_COMMAND_SECONDS = 600.0
_NPM_SECONDS = 1800.0
_UUID = uuid.uuid5(uuid.NAMESPACE_DNS, "standard-image.ballpoint")
# program -> Debian package
_TOOLS = {"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils", "unshare": "util-linux", "setpriv": "util-linux"}
_REMOVED = (
    "var/log/*", "var/cache/apt/*", "var/lib/apt/lists/*", "var/cache/ldconfig/*", "var/cache/debconf/*-old",
    "var/cache/man/*", "var/lib/dpkg/*-old", "etc/*-", "tmp/*", "var/tmp/*", "root/.npm", "root/.cache",
    "root/.wget-hsts", "etc/ssh/ssh_host_*", "etc/apt/apt.conf.d/99mmdebstrap", "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/resolv.conf", "run/*", "etc/.pwd.lock", "var/lib/systemd/*", "etc/machine-id", "var/lib/dbus/machine-id",
)  # fmt: skip
_EMPTY = ("var/lib/docker", "var/lib/containers")


def build_filesystem(
    recipe: Recipe, target: Path, work: Path, *, mirror: str | None, progress: Callable[[Progress], None]
) -> None:
    """Build `recipe` into the erofs file `target`.

    Args:
        work: an empty directory for the tree; the caller removes it when the file is safe, which takes as long.
        mirror: Debian archive; None takes the host's own, or else mmdebstrap's default.

    Raises:
        InvalidError: the caller is not root, or a certificate of this host is broken.
        UnavailableError: a tool or key is missing, or a package source does not answer.
    """
    _check_host()
    mirrors = host_mirrors(mirror)
    root = work / "root"
    started = SYSTEM_CLOCK.now().timestamp()
    bootstrapped = 0.6 if recipe.npm else 0.9
    report = Reporter(progress, bootstrapped)
    default = bootstrap(
        recipe.suite, recipe.packages, root, work, archives=mirrors.archives, apt=mirrors.apt, on_line=report.line
    )
    report.step("creating the user", bootstrapped)
    _run(root, "useradd", "--create-home", "--uid", "1000", "--user-group", "--shell", "/bin/bash", "sprite")
    if recipe.npm:
        report.step("installing npm packages", bootstrapped)
        _install_npm(recipe, root, mirrors)
    report.step("adding files", 0.9)
    _add_files(recipe, root, default)
    _clean(root)
    epoch = _newest_packaged(root, started)
    _date_passwords(root, epoch)
    report.step("writing the image", 0.92)
    process.run(
        contained("mkfs.erofs", "--quiet", "-U", str(_UUID), str(target), str(root)),
        timeout=_COMMAND_SECONDS,
        env={"SOURCE_DATE_EPOCH": str(epoch)},
    )


def _check_host() -> None:
    if os.geteuid() != 0:
        raise InvalidError("building an image needs root", hint="sudo ballpoint image build")
    for tool, package in _TOOLS.items():
        if process.which(tool) is None:
            raise UnavailableError(f"{tool} is not installed", hint=f"apt-get install {package}")
    if not KEYRING.exists():
        raise UnavailableError("Debian's archive keys are not installed", hint="apt-get install debian-archive-keyring")


def _run(root: Path, *command: str, timeout: float = _COMMAND_SECONDS, env: dict[str, str] | None = None) -> None:
    process.run(contained(*command, root=root), timeout=timeout, env=env)


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
            _run(root, *command, timeout=_NPM_SECONDS, env=settings)
    except process.CommandFailedError as error:
        causes = [line for line in error.output.splitlines() if line.startswith(("npm ERR! ", "npm error "))]
        reason = "; ".join(causes[:2]) or error.message
        raise UnavailableError(
            f"the npm packages of the image could not be installed: {reason}",
            hint="check the host's npm registry setting, then try again",
        ) from error
    _forget_unknown_setting(root)


def _forget_unknown_setting(root: Path) -> None:
    """npm carries its built-in settings over to the npm it installs; that one warns of Debian's at every call."""
    settings = root / "usr/local/lib/node_modules/npm/npmrc"
    if settings.exists():
        lines = settings.read_text().splitlines(keepends=True)
        settings.write_text("".join(line for line in lines if not line.startswith("globalignorefile")))


def _add_files(recipe: Recipe, root: Path, default: Archives) -> None:
    files = {**recipe.files, SOURCES.lstrip("/"): (0o644, default.sources(recipe.suite))}
    for path, (mode, content) in files.items():
        target = root / path
        _make_directory(root, target.parent)
        target.write_bytes(content)
        target.chmod(mode)
    for directory in _EMPTY:
        _make_directory(root, root / directory)


def _make_directory(root: Path, directory: Path) -> None:
    """With its parents below `root`, whatever the caller's umask is."""
    if directory != root and not directory.exists():
        _make_directory(root, directory.parent)
        directory.mkdir()
        directory.chmod(0o755)


def _clean(root: Path) -> None:
    for pattern in _REMOVED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()
    (root / "etc/machine-id").touch(0o444)
    # The node writes the name servers into /run at the claim.
    (root / "etc/resolv.conf").symlink_to("../run/resolv.conf")
    # The socket of the sprite's agent, and its checkpoints (helpers/inner.c).
    for name in ("api.sock", "checkpoints"):
        (root / ".sprite" / name).symlink_to(f"../run/sprite/{name}")


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
