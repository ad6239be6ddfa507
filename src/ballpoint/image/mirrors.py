"""Where packages come from: what the host itself uses, so that one setting serves the host, builds and sprites."""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

_SECURITY = re.compile(r"(^|[./-])security([./-]|$)")
_APT_PROXY = re.compile(r'^\s*(Acquire::(?:http|https)::Proxy\s+"(?:https?://[^"\s]*|DIRECT)";)', re.MULTILINE)
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries")
_NPM_KEYS = ("registry", "fetch-timeout", "fetch-retries", "strict-ssl")
_REMOTE = ("http", "https")


class Mirrors(msgspec.Struct, frozen=True):
    """Package sources of a host. What it has not set is None or empty, and the tools' own defaults hold.

    Attributes:
        debian, security: base of a Debian archive, and of the one with its security updates.
        apt: further lines of apt's configuration (proxies).
        pip, npm: settings by key; none names a file of the host or a secret.
    """

    debian: str | None = None
    security: str | None = None
    apt: tuple[str, ...] = ()
    pip: dict[str, str] = {}
    npm: dict[str, str] = {}


def host_mirrors(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> Mirrors:
    """Read the host's settings.

    Args:
        root: of the file system they are read from.
        environment: of the calling process: pip's and npm's own variables win over their files.
    """
    archives = _archives(root)
    return Mirrors(
        debian=next((uri for uri in archives if not _SECURITY.search(uri)), None),
        security=next((uri for uri in archives if _SECURITY.search(uri)), None),
        apt=_apt(root),
        pip=_pip(root, environment),
        npm=_npm(root, environment),
    )


def _archives(root: Path) -> list[str]:
    """Debian's own archives in a Debian host's sources (sources.list(5)), in order."""
    release = root / "etc/os-release"
    if not release.exists() or not re.search(r"^ID=debian$", release.read_text(), re.MULTILINE):
        return []
    found = []
    sources = root / "etc/apt"
    for file in (sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))):
        if file.is_file():
            text = file.read_text(errors="replace")
            stanzas = text.split("\n\n") if file.suffix == ".sources" else text.splitlines()
            found += [uri for uri in map(_archive, stanzas) if uri is not None]
    return found


def _archive(stanza: str) -> str | None:
    if re.search(r"^URIs:", stanza, re.MULTILINE):
        uris = re.search(r"^URIs:\s*(\S+)", stanza, re.MULTILINE)
        components = re.search(r"^Components:(.*)$", stanza, re.MULTILINE)
    else:
        line = re.fullmatch(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+\S+\s+(.*)", stanza)
        uris, components = line, None
        if line is not None and "main" not in line[2].split():
            return None
    if uris is None or (components is not None and "main" not in components[1].split()):
        return None
    uri = uris[1].rstrip("/")
    # Debian's mirror rules fix the last segments of the paths; vendors' repositories have others.
    path = urlsplit(uri).path
    return uri if urlsplit(uri).scheme in _REMOTE and path.endswith(("/debian", "/debian-security")) else None


def _apt(root: Path) -> tuple[str, ...]:
    """Proxies, as one-line settings (apt.conf(5))."""
    lines: list[str] = []
    for file in sorted((root / "etc/apt/apt.conf.d").glob("*")):
        text = file.read_text(errors="replace")
        lines += re.findall(
            r'^\s*(Acquire::(?:http|https|ftp)::Proxy\s+"(?:https?://[^"\s]*|DIRECT)";)', text, re.MULTILINE
        )
    return tuple(lines)


def _pip(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in (root / "etc/xdg/pip/pip.conf", root / "etc/pip.conf", root / "root/.config/pip/pip.conf"):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read_string(file.read_text() if file.exists() else "")
        except configparser.Error:
            continue  # pip itself refuses such a file
        for section in ("global", "install"):
            if parser.has_section(section):
                found.update({key: parser[section][key] for key in _PIP_KEYS if key in parser[section]})
    for key in _PIP_KEYS:
        value = environment.get(f"PIP_{key.replace('-', '_').upper()}") or (
            environment.get("PIP_DEFAULT_TIMEOUT") if key == "timeout" else None
        )
        if value:
            found[key] = value
    kept = {}
    for key, value in found.items():
        words = [word for word in value.split() if not key.endswith("index-url") or _is_remote(word)]
        if words:
            kept[key] = " ".join(words)
    return kept


def _npm(root: Path, environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in (root / "etc/npmrc", root / "usr/etc/npmrc", root / "root/.npmrc"):
        for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
            key, equals, value = (part.strip() for part in line.partition("="))
            if equals and key in _NPM_KEYS and "${" not in value:
                found[key] = value.strip('"')
    for key in _NPM_KEYS:
        for name in (f"npm_config_{key.replace('-', '_')}", f"NPM_CONFIG_{key.replace('-', '_').upper()}"):
            if environment.get(name):
                found[key] = environment[name]
    return {key: value for key, value in found.items() if key != "registry" or _is_remote(value)}


def _is_remote(url: str) -> bool:
    """Not a file of the host, and without a password in it."""
    parts = urlsplit(url)
    return parts.scheme in _REMOTE and parts.password is None
