"""What a node adds to its sprites' own files: certificates it trusts, and where packages come from.

It is never part of an image, because images are shared between nodes; it is written into the volume, where its user may
change it like any other file.
"""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import msgspec

from ballpoint.core.errors import InvalidError
from ballpoint.host import process
from ballpoint.image.mirrors import Mirrors, host_mirrors

_ADDED_BY_ADMINISTRATOR = Path("/usr/local/share/ca-certificates")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_MARKER = "etc/.ballpoint-injection"
_SUITE = "trixie"
_UPDATE_SECONDS = 120.0


class Injection(msgspec.Struct, frozen=True):
    """Files and variables a node gives its sprites.

    Attributes:
        digest: of everything in it.
        files: absolute path inside -> content, all readable by everyone.
        certificates: one PEM each.
        environment: variables of every process.
    """

    digest: str
    files: dict[str, bytes]
    certificates: tuple[bytes, ...]
    environment: dict[str, str]


def host_injection(ca_bundle: Path | None, mirror: str | None = None) -> Injection:
    """What this host's node injects.

    Args:
        ca_bundle: certificates to trust instead of those the host's administrator added.
        mirror: Debian archive for sprites; None takes the host's own.

    Raises:
        InvalidError: the bundle cannot be read or has no certificate in it.
    """
    certificates = certificates_of_host() if ca_bundle is None else _certificates_in(ca_bundle)
    mirrors = host_mirrors()
    files = _files(mirrors, mirror)
    # Node.js and Python's requests have bundles of their own and look at nothing else.
    environment = (
        {"NODE_EXTRA_CA_CERTS": _BUNDLE, "SSL_CERT_FILE": _BUNDLE, "REQUESTS_CA_BUNDLE": _BUNDLE, "PIP_CERT": _BUNDLE}
        if certificates
        else {}
    )
    text = msgspec.json.encode([sorted(files.items()), certificates, sorted(environment.items())])
    return Injection(sha256(text).hexdigest(), files, tuple(certificates), environment)


def certificates_of_host() -> list[bytes]:
    """Certificates the host's administrator added beside the public ones (update-ca-certificates(8))."""
    return [pem for file in sorted(_ADDED_BY_ADMINISTRATOR.rglob("*.crt")) for pem in _PEM.findall(file.read_bytes())]


def apply(injection: Injection, root: Path) -> None:
    """Write `injection` into the tree at `root`, which must be ours still: its programs are run."""
    for path, content in injection.files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    directory = root / "usr/local/share/ca-certificates"
    for number, pem in enumerate(injection.certificates):
        (directory / f"ballpoint-{number}.crt").write_bytes(pem)
    if injection.certificates:
        process.run(["chroot", str(root), "update-ca-certificates"], timeout=_UPDATE_SECONDS)
    (root / _MARKER).write_text(injection.digest + "\n")


def _certificates_in(bundle: Path) -> list[bytes]:
    try:
        found = _PEM.findall(bundle.read_bytes())
    except OSError as error:
        raise InvalidError(f"cannot read the CA bundle {bundle}: {error.strerror}") from error
    if not found:
        raise InvalidError(f"{bundle} has no certificate in it", hint="give a PEM file")
    return list(found)


def _files(mirrors: Mirrors, mirror: str | None) -> dict[str, bytes]:
    files = {}
    debian, security = (mirror, None) if mirror else (mirrors.debian, mirrors.security)
    if debian is not None:  # without one, the image has the default that mmdebstrap knows
        files["/etc/apt/sources.list"] = b""
        files["/etc/apt/sources.list.d/debian.sources"] = _sources(debian, security)
    if mirrors.apt:
        files["/etc/apt/apt.conf.d/90ballpoint"] = "\n".join([*mirrors.apt, ""]).encode()
    if mirrors.pip:
        lines = ["[global]", *(f"{key} = {value}" for key, value in sorted(mirrors.pip.items())), ""]
        files["/etc/pip.conf"] = "\n".join(lines).encode()
    if mirrors.npm:
        files["/etc/npmrc"] = "".join(f"{key}={value}\n" for key, value in sorted(mirrors.npm.items())).encode()
    return files


def _sources(debian: str, security: str | None) -> bytes:
    """sources.list(5), in the deb822 style."""
    archives = [(debian, f"{_SUITE} {_SUITE}-updates")]
    if security is not None:
        archives.append((security, f"{_SUITE}-security"))
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {keyring}\n"
        for uri, suites in archives
    ).encode()
