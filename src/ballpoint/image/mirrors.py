"""Where packages come from: what the host itself uses, so that one setting serves the host, builds and sprites.

Only what works elsewhere too is taken: nothing that names a file of the host, and nothing with a secret in it.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from ballpoint.core.errors import InvalidError
from ballpoint.host import process

# Debian's keys, at the same place on a host and in an image (package debian-archive-keyring).
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Where an image has its Debian archives, and a node may put others.
SOURCES = "/etc/apt/sources.list.d/debian.sources"

_SECURITY = re.compile(r"(^|[./-])security([./-]|$)")
_APT_PROXY = re.compile(r'(Acquire::https?::Proxy(?:::[^\s"]+)?) "([^"]+)";')
_PIP_URLS = ("index-url", "extra-index-url", "proxy")
_PIP_KEYS = (*_PIP_URLS, "trusted-host", "timeout", "retries")
_NPM_URLS = ("registry", "proxy", "https-proxy")
_NPM_KEYS = (*_NPM_URLS, "noproxy", "fetch-timeout", "fetch-retries", "strict-ssl")
_PIP_VARIABLES = {key: f"PIP_{key.replace('-', '_').upper()}" for key in _PIP_KEYS} | {"timeout": "PIP_DEFAULT_TIMEOUT"}
_NPM_NAMES = {key: f"npm_config_{key.replace('-', '_')}" for key in _NPM_KEYS}
_NPM_VARIABLES = {key: (name, name.upper()) for key, name in _NPM_NAMES.items()}
_APT_SECONDS = 30.0


class Archives(msgspec.Struct, frozen=True):
    """Debian archives: the base URLs of the main one, and of the one with security updates."""

    debian: str
    security: str | None = None

    def sources(self, suite: str) -> bytes:
        """Content of a `.sources` file for `suite` (sources.list(5), the deb822 style)."""
        parts = [(self.debian, f"{suite} {suite}-updates")]
        if self.security is not None:
            parts.append((self.security, f"{suite}-security"))
        return "\n".join(
            f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n"
            for uri, suites in parts
        ).encode()


class Mirrors(msgspec.Struct, frozen=True):
    """Package sources of a host. What it has not set is None or empty, and the tools' own defaults hold.

    Attributes:
        archives: of Debian packages.
        apt: further lines of apt's configuration (proxies), without the final semicolon.
        pip, npm: settings by key; none names a file of the host or a secret.
    """

    archives: Archives | None = None
    apt: tuple[str, ...] = ()
    pip: dict[str, str] = {}
    npm: dict[str, str] = {}

    def elsewhere(self) -> Mirrors:
        """What of it makes sense in a network of its own: all but the host's loopback."""
        archives = self.archives
        if archives is not None and _is_loopback(archives.debian):
            archives = None
        if archives is not None and archives.security is not None and _is_loopback(archives.security):
            archives = Archives(archives.debian)
        return Mirrors(
            archives=archives,
            apt=tuple(line for line in self.apt if not _is_loopback(line.partition('"')[2].rstrip('"'))),
            pip=_kept(self.pip, _PIP_URLS, _is_loopback),
            npm=_kept(self.npm, _NPM_URLS, _is_loopback),
        )


def host_mirrors(
    mirror: str | None = None, root: Path = Path("/"), environment: Mapping[str, str] = os.environ
) -> Mirrors:
    """Read the host's settings.

    Args:
        mirror: Debian archive to take instead of the host's; it is then the only one.
        root: of the file system they are read from.
        environment: of the calling process: pip's and npm's own variables win over their files.

    Raises:
        InvalidError: `mirror` is not an http or https URL; one with a password would end up in every sprite.
    """
    if mirror and (_is_private(mirror) or len(mirror.split()) != 1):
        raise InvalidError("the mirror is not an address without credentials", hint="--mirror http://HOST/debian")
    return Mirrors(
        archives=Archives(mirror.rstrip("/")) if mirror else _archives(root),
        apt=_apt(root),
        pip=_pip(root, environment),
        npm=_npm(root, environment),
    )


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those of `environment` that `host_mirrors` reads, for a child process that gets no others."""
    names = {*_PIP_VARIABLES.values(), *(name for pair in _NPM_VARIABLES.values() for name in pair)}
    return {name: environment[name] for name in sorted(names) if environment.get(name)}


def archives_in(text: str) -> Archives | None:
    """The Debian archives that sources.list(5) `text` names, in either style; None where there is none."""
    uris = [uri for uri in (*_one_line(text), *_deb822(text)) if _is_debian(uri) and not _is_private(uri)]
    debian = next((uri for uri in uris if not _SECURITY.search(uri)), None)
    if debian is None:
        return None
    return Archives(debian, next((uri for uri in uris if _SECURITY.search(uri)), None))


def _archives(root: Path) -> Archives | None:
    """Those of a Debian host: an Ubuntu host's archive has no Debian in it."""
    release = root / "etc/os-release"
    if not release.exists() or not re.search(r"^ID=\"?debian\"?$", release.read_text(), re.MULTILINE):
        return None
    sources = root / "etc/apt"
    files = (
        sources / "sources.list",
        *sorted((sources / "sources.list.d").glob("*.list")),
        *sorted((sources / "sources.list.d").glob("*.sources")),
    )
    return archives_in("\n\n".join(file.read_text(errors="replace") for file in files if file.is_file()))


def _one_line(text: str) -> Iterator[str]:
    for line in re.finditer(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+\S+\s+(.*)$", text, re.MULTILINE):
        if "main" in line[2].partition("#")[0].split():
            yield line[1].rstrip("/")


def _deb822(text: str) -> Iterator[str]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, list[str]] = {}
        words: list[str] = []
        for line in stanza.splitlines():
            name, colon, value = line.partition(":")
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                words += line.split()
            elif colon:
                words = fields.setdefault(name.lower(), [])
                words += value.split()
        enabled = fields.get("enabled", ["yes"])[:1] not in (["no"], ["false"], ["0"])
        if enabled and "deb" in fields.get("types", ()) and "main" in fields.get("components", ()):
            yield from (uri.rstrip("/") for uri in fields.get("uris", ()))


def _is_debian(uri: str) -> bool:
    """Debian's mirror rules fix the last segment of the paths; vendors' repositories have others."""
    return urlsplit(uri).path.endswith(("/debian", "/debian-security"))


def _apt(root: Path) -> tuple[str, ...]:
    """Proxies, as one-line settings; apt itself reads its configuration (apt-config(8)), where there is an apt."""
    if process.which("apt-config") is None:
        return ()
    with tempfile.NamedTemporaryFile("w", prefix="ballpoint-apt-") as file:
        file.write(f'Dir "{root}";\n')
        file.flush()
        dump = process.run(["apt-config", "dump"], timeout=_APT_SECONDS, env={"APT_CONFIG": file.name})
    return tuple(
        f'{name} "{value}"'
        for name, value in (match.groups() for match in map(_APT_PROXY.fullmatch, dump.splitlines()) if match)
        if value == "DIRECT" or not _is_private(value)
    )


def _pip(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in (root / "etc/xdg/pip/pip.conf", root / "etc/pip.conf", root / "root/.config/pip/pip.conf"):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read_string(file.read_text(errors="replace") if file.exists() else "")
        except configparser.Error:
            continue  # pip itself refuses such a file
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key: parser[section][key] for key in _PIP_KEYS if key in parser[section]})
    found.update({key: environment[name] for key, name in _PIP_VARIABLES.items() if environment.get(name)})
    return _kept(found, _PIP_URLS, _is_private)


def _npm(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in (root / "etc/npmrc", root / "usr/etc/npmrc", root / "usr/local/etc/npmrc", root / "root/.npmrc"):
        for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
            key, equals, value = (part.strip() for part in line.partition("="))
            if equals and key in _NPM_KEYS and "${" not in value:
                found[key] = value.strip('"')
    for key, (lower, upper) in _NPM_VARIABLES.items():
        if given := environment.get(lower) or environment.get(upper):
            found[key] = given
    return _kept(found, _NPM_URLS, _is_private)


def _kept(settings: Mapping[str, str], urls: tuple[str, ...], dropped: Callable[[str], bool]) -> dict[str, str]:
    """The settings, one line each; of the keys in `urls` only those URLs that are not `dropped`."""
    kept = {}
    for key, value in settings.items():
        words = [word for word in value.split() if key not in urls or not dropped(word)]
        if words:
            kept[key] = " ".join(words)
    return kept


def _is_private(url: str) -> bool:
    """A file of the host, an address with credentials in it, or none at all."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    return parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
