"""What a node adds to its sprites' own files: certificates it trusts, and where packages come from.

It is never part of an image, because images are shared between nodes; it is written into the volume, where its user may
change it like any other file.
"""

from __future__ import annotations

import re
import ssl
from hashlib import sha256
from pathlib import Path

import msgspec

from ballpoint.core.errors import InvalidError
from ballpoint.host import process
from ballpoint.image.mirrors import SOURCES, Mirrors, host_mirrors
from ballpoint.image.recipe import suite

_ADDED_BY_ADMINISTRATOR = Path("/usr/local/share/ca-certificates")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_MARKER = "etc/.ballpoint-injection"
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
        mirror: Debian archive for sprites; None takes the host's own, or else the default the image has.

    Raises:
        InvalidError: the bundle cannot be read or has no certificate in it, or a certificate is broken.
    """
    certificates = certificates_of_host() if ca_bundle is None else _certificates_of(ca_bundle)
    files = _files(host_mirrors(mirror).elsewhere())
    # Node.js and Python's requests have bundles of their own and look at nothing else.
    names = ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")
    environment = dict.fromkeys(names, _BUNDLE) if certificates else {}
    text = msgspec.json.encode([sorted(files.items()), certificates, sorted(environment.items())])
    return Injection(sha256(text).hexdigest(), files, certificates, environment)


def certificates_of_host(added: Path = _ADDED_BY_ADMINISTRATOR) -> tuple[bytes, ...]:
    """Certificates the host's administrator added beside the public ones (update-ca-certificates(8)).

    Raises:
        InvalidError: one of them is broken.
    """
    found = [pem for file in sorted(added.rglob("*.crt")) for pem in _certificates_in(file)]
    return tuple(dict.fromkeys(found))


def apply(injection: Injection, root: Path) -> None:
    """Write `injection` into the tree at `root`, which must be ours still: its programs are run."""
    for path, content in injection.files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o644)
    directory = root / "usr/local/share/ca-certificates"
    for number, pem in enumerate(injection.certificates):
        (directory / f"ballpoint-{number}.crt").write_bytes(pem)
    if injection.certificates:
        process.run(["chroot", str(root), "update-ca-certificates"], timeout=_UPDATE_SECONDS)
    (root / _MARKER).write_text(injection.digest + "\n")


def _certificates_of(bundle: Path) -> tuple[bytes, ...]:
    found = _certificates_in(bundle)
    if not found:
        raise InvalidError(f"{bundle} has no certificate in it", hint="give a PEM file")
    return tuple(dict.fromkeys(found))


def _certificates_in(file: Path) -> list[bytes]:
    try:
        found = [pem + b"\n" for pem in _PEM.findall(file.read_bytes())]
    except OSError as error:
        raise InvalidError(f"cannot read the certificates in {file}: {error.strerror}") from error
    try:
        for pem in found:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise InvalidError(f"{file} has a broken certificate in it", hint=f"openssl x509 -noout -in {file}") from error
    return found


def _files(mirrors: Mirrors) -> dict[str, bytes]:
    files = {}
    if mirrors.archives is not None:  # without one, the image has the default that mmdebstrap knows
        files[SOURCES] = mirrors.archives.sources(suite())
    if mirrors.apt:
        files["/etc/apt/apt.conf.d/90ballpoint"] = "".join(f"{line};\n" for line in mirrors.apt).encode()
    if mirrors.pip:
        lines = ["[global]", *(f"{key} = {value}" for key, value in sorted(mirrors.pip.items())), ""]
        files["/etc/pip.conf"] = "\n".join(lines).encode()
    if mirrors.npm:
        files["/etc/npmrc"] = "".join(f"{key}={value}\n" for key, value in sorted(mirrors.npm.items())).encode()
    return files
