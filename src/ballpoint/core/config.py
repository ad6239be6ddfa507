"""A node's settings: one dataclass, read from a TOML file and from the flags of `ballpoint serve`, which win."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from ballpoint.core.errors import InvalidError
from ballpoint.core.hosts import USUAL_PORT, Site, is_domain

DEFAULT_DATA = Path("/var/lib/ballpoint")
DEFAULT_CACHE = Path("/var/cache/ballpoint")
DEFAULT_LISTEN = "127.0.0.1:7070"
DEFAULT_ORG = "local"  # of the administrator's token, and of tokens made for nobody else
RUN_ROOT = Path("/run/ballpoint")
_LOWEST = {
    "pool": 0, "pool_max": 1, "edges": 0, "connections_per_address": 1, "memory_mb": 64, "pids": 16, "reserve_mb": 0,
    "journal_mb": 0, "disk_gb": 1, "wake_seconds": 1, "idle_seconds": 0, "cold_seconds": 0,
}  # fmt: skip


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `ballpoint serve` can be told. The TOML file uses the same names.

    Attributes:
        data: directory of the node: registry, volumes, secrets. Its path is the node's identity.
        cache: built images and compiled helpers; shared by every node of the host.
        listen: HOST:PORT of the front door.
        image: recipe of the standard image new sprites get.
        pool: blanks kept standing by at least.
        pool_max: blanks kept at most when demand is high.
        edges: front-door processes; 0 means one per core.
        connections_per_address: connections one client address may have at each front-door process; an IPv6 address
            stands for its /64. Loopback, where a proxy of everybody's may be, is not limited by it.
        token_file: file with one token `org/orgid/tokenid/value`, made known at start.
        dns: HOST[:PORT] of the resolver asked for instances; None takes the host's own.
        ca_bundle: PEM file of certificates instances shall trust beside the public ones; None takes those the
            host's administrator added.
        egress_allow: CIDRs reachable although they lie in a blocked range.
        mirror: Debian mirror of the image build; None takes the host's own.
        subnet: addresses of instances on this host; must route nowhere else.
        memory_mb, cpus, pids: limits of a sprite that asks for none. cpus 0 means all.
        reserve_mb: memory that stays free, of the host and of the node's own cgroup: with less, a create that finds no
            blank is refused.
        journal_mb: how much of what its commands wrote can be read again, of each running sprite.
        disk_gb: apparent size of a new volume.
        pool_gb: size of the loop-backed volume pool, where the data directory is not a reflink XFS; 0 chooses.
        store: URL of the object store that keeps the disks (store.md); None takes the directory `store` in `data`.
        domain: what sprites' URLs end with (urls.md). Every name below it must lead here.
        front: what clients find there, `http[:PORT]` or `https[:PORT]`; None is `http` at the port of `listen`.
        trusted_proxies: CIDRs of proxies in front, whose word counts for whom they speak.
        idle_seconds: a sprite that nobody uses for so long is frozen, unless it says otherwise; 0 is never.
        cold_seconds: a sprite that was frozen for so long is stopped, and only its disk stays; 0 is never.
        wake_seconds: how long a request to a URL is held while its sprite is being started.
    """

    data: Path = DEFAULT_DATA
    cache: Path = DEFAULT_CACHE
    listen: str = DEFAULT_LISTEN
    image: Literal["standard", "slim"] = "standard"
    pool: int = 4
    pool_max: int = 32
    edges: int = 0
    connections_per_address: int = 2048
    token_file: Path | None = None
    dns: str | None = None
    ca_bundle: Path | None = None
    egress_allow: tuple[str, ...] = ()
    mirror: str | None = None
    subnet: str = "10.213.0.0/16"
    memory_mb: int = 8192
    cpus: float = 0.0
    pids: int = 4096
    reserve_mb: int = 128
    journal_mb: int = 64
    disk_gb: int = 100
    pool_gb: int = 0
    store: str | None = None
    domain: str = "sprites.localhost"
    front: str | None = None
    trusted_proxies: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    idle_seconds: int = 30
    cold_seconds: int = 3600
    wake_seconds: int = 30

    @property
    def node_id(self) -> str:
        """Six hexadecimal digits that name this node in every cgroup, link, table and path it makes.

        Derived from the data directory's path, so that a later process finds what an earlier one left.
        """
        return hashlib.sha256(str(self.data.resolve()).encode()).hexdigest()[:6]

    @property
    def run(self) -> Path:
        """Directory of the node's sockets and instances; gone after a reboot, as they are."""
        return RUN_ROOT / self.node_id

    @property
    def registry_file(self) -> Path:
        """The database of the node's registry."""
        return self.data.resolve() / "registry.db"

    @property
    def registry_changes(self) -> Path:
        """How often the registry was changed (registry/database.py); also edges see it."""
        return self.registry_file.with_name(f"{self.registry_file.name}-changes")

    @property
    def instance_changes(self) -> Path:
        """How often what runs here was changed (node/node.py); also edges see it."""
        return self.run / "changes"

    @property
    def store_url(self) -> str:
        """`store`, or where it is by default."""
        return self.store or (self.data.resolve() / "store").as_uri()

    @property
    def listen_address(self) -> tuple[str, int]:
        """`listen` as host and port."""
        return split_host_port(self.listen)

    @property
    def url(self) -> str:
        """Where a client on this machine finds the node."""
        host, port = self.listen_address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def site(self, port: int) -> Site:
        """How clients reach sprites' URLs, where `port` is what the node listens on."""
        scheme, _, given = (self.front or f"http:{port}").partition(":")
        return Site(self.domain, scheme, int(given) if given else USUAL_PORT[scheme])


def split_host_port(text: str, default_port: int | None = None) -> tuple[str, int]:
    """`HOST:PORT` (IPv6 in brackets) as a pair; with `default_port`, the port may be missing.

    Raises:
        InvalidError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        host, port = text, "" if default_port is None else str(default_port)
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidError(f"{text!r} is not HOST:PORT", hint="for example 127.0.0.1:7070")
    return host.strip("[]"), int(port)


def load_config(file: Path | None, base: NodeConfig | None = None, **flags: Any) -> NodeConfig:
    """Settings from the TOML `file` (if any) with `flags` put over them; flags that are None count as not given.

    Args:
        base: settings that count where neither the file nor a flag gives any, instead of the defaults.

    Raises:
        InvalidError: the file is missing or malformed, a key is unknown, or a value is not acceptable.
    """
    values = {} if base is None else msgspec.structs.asdict(base)
    if file is not None:
        try:
            values.update(tomllib.loads(file.read_text()))
        except OSError as error:
            raise InvalidError(f"cannot read the configuration {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidError(f"{file} is not TOML: {error}") from error
    values.update({name: value for name, value in flags.items() if value is not None})
    try:
        config = msgspec.convert(values, NodeConfig, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidError(f"bad configuration: {error}", hint="docs/configuration.md lists every key") from error
    return _checked(config)


def _decode(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value).absolute()  # a unit that starts the node has another working directory
    raise NotImplementedError(kind)


def _is_front(text: str) -> bool:
    found = re.fullmatch(r"https?(?::([1-9][0-9]{0,4}))?", text)
    return found is not None and int(found[1] or 1) < 1 << 16


def _checked(config: NodeConfig) -> NodeConfig:
    split_host_port(config.listen)
    if config.dns is not None:
        split_host_port(config.dns, default_port=53)
    for cidr in (*config.egress_allow, config.subnet):
        try:
            ipaddress.IPv4Network(cidr)
        except ValueError as error:
            raise InvalidError(f"{cidr!r} is not an IPv4 network: {error}", hint="for example 10.1.2.0/24") from error
    for cidr in config.trusted_proxies:
        try:
            ipaddress.ip_network(cidr)
        except ValueError as error:
            raise InvalidError(f"{cidr!r} is not a network: {error}", hint="for example 10.1.2.3/32") from error
    if not is_domain(config.domain):
        raise InvalidError(
            f"{config.domain!r} is not a domain for sprites' URLs", hint="for example sprites.example.com"
        )
    if config.front is not None and not _is_front(config.front):
        raise InvalidError(f"front is http[:PORT] or https[:PORT], not {config.front!r}", hint="for example https")
    for name, low in _LOWEST.items():
        if getattr(config, name) < low:
            raise InvalidError(f"{name} must be at least {low}, not {getattr(config, name)}")
    if config.pool > config.pool_max:
        return msgspec.structs.replace(config, pool_max=config.pool)
    return config
