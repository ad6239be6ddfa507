"""The Debian packages of an image, by mmdebstrap(1); and how a build's programs are kept from outliving it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from ballpoint.core.errors import InternalError, UnavailableError
from ballpoint.host import process
from ballpoint.image.mirrors import KEYRING, Archives, archives_in

# A mirror that is down must be an error soon; one that stumbles must not cost a build. A try takes up to two timeouts.
_APT_OPTIONS = (
    'Acquire::http::Timeout "10"',
    'Acquire::https::Timeout "10"',
    'Acquire::Retries "1"',
    'APT::Install-Recommends "false"',
)
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
_INCLUDED = ("/usr/share/doc/*/copyright",)
# What apt says of a source that cannot be used; the rest of its errors follow from it.
_CAUSES = (
    (re.compile(r"NO_PUBKEY|EXPKEYSIG|BADSIG"), "install the newest debian-archive-keyring on this host"),
    (
        re.compile(r"[EW]: .*(Failed to fetch|does not have a Release file|is not signed)"),
        "check the mirror: --mirror URL, or else the host's own apt sources",
    ),
    (re.compile(r"No space left on device"), "make room in the cache directory"),
)


def contained(*command: str, root: Path | None = None) -> list[str]:
    """`command` as one that dies with us, however we end: with all its descendants, and with what it has mounted.

    Args:
        root: directory it has as its root.

    It is pid 1 of a pid namespace, in a mount namespace, so its end is the end of both; setpriv(1) and unshare(1) ask
    the kernel for its death at ours (PR_SET_PDEATHSIG).
    """
    inside = [] if root is None else [f"--root={root}", "--wd=/"]
    return [
        "setpriv", "--pdeathsig", "KILL",
        "unshare", "--mount-proc", "--propagation", "private", "--pid", "--fork", "--kill-child", *inside, "--",
        *command,
    ]  # fmt: skip


def bootstrap(
    suite: str,
    packages: tuple[str, ...],
    root: Path,
    work: Path,
    *,
    archives: Archives | None,
    apt: tuple[str, ...],
    on_line: Callable[[str], None],
) -> Archives:
    """Install `packages` and what they need into the new directory `root`.

    Args:
        work: an existing directory for notes.
        archives: where packages come from; None takes mmdebstrap's default.
        apt: further lines of apt's configuration, such as proxies.
        on_line: is told each line that mmdebstrap prints.

    Returns:
        mmdebstrap's default archives, whichever were used: they do not depend on this host.

    Raises:
        UnavailableError: packages could not be fetched, verified or installed; the reason and what helps are in it.
    """
    default = work / "default.list"
    hooks = [f'mv "$1/etc/apt/sources.list" {shlex.quote(str(default))}']
    chosen = default if archives is None else work / "debian.sources"
    if archives is not None:
        chosen.write_bytes(archives.sources(suite))
    where = "sources.list" if archives is None else "sources.list.d/debian.sources"
    hooks.append(f'cp {shlex.quote(str(chosen))} "$1/etc/apt/{where}"')
    command = [
        "mmdebstrap", "--verbose", "--mode=root", "--variant=minbase", "--format=directory", f"--keyring={KEYRING}",
        f"--include={','.join(packages)}",
        *(f"--aptopt={option}" for option in (*_APT_OPTIONS, *apt)),
        # Nobody keeps the tree, so nothing in it has to survive a crash: a fsync for each file is most of the time.
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
        *(f"--dpkgopt=path-include={path}" for path in _INCLUDED),
        # Before the lists are fetched, the default sources that mmdebstrap has written are put aside.
        *(f"--setup-hook={hook}" for hook in hooks),
        suite, str(root),
    ]  # fmt: skip
    refused = ""

    def line(text: str) -> None:
        nonlocal refused
        if refused:
            raise _explained([f"{refused}: {text.strip()}"])
        if text.startswith("Err:"):  # apt has given up on one file; it would try all others before it fails
            refused = f"E: Failed to fetch {text.partition(' ')[2]}"
        on_line(text)

    try:
        process.run_lines(contained(*command), line)
    except process.CommandFailedError as error:
        raise _explained(error.output.splitlines() or [error.message]) from error
    (root / "etc/apt" / where).unlink()
    found = archives_in(default.read_text())
    if found is None:
        raise InternalError(f"mmdebstrap's default for {suite} names no archive", hint="report it with its version")
    return found


def _explained(lines: list[str]) -> UnavailableError:
    """The error that `lines`, printed by apt and mmdebstrap, are about."""
    found = next(((line, hint) for pattern, hint in _CAUSES for line in lines if pattern.search(line)), None)
    if found is None:
        errors = [line for line in lines if line.startswith("E: ")] or lines[-1:]
        found = errors[0], "ballpoint doctor says what this host lacks"
    reason = re.sub(r"^[EW]: ", "", found[0]).strip()
    return UnavailableError(f"the Debian packages of the image could not be installed: {reason}", hint=found[1])
